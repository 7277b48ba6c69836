// Each part of the core adds its own functions to the Python module.
#pragma once

#include <nanobind/nanobind.h>

void bind_engine(nanobind::module_& m);
