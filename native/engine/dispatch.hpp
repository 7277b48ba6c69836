// Which instruction sets this CPU has.
#pragma once

#include <string>
#include <vector>

#include "engine/kernels.hpp"

namespace wkv::engine {

// What this CPU can run, best first; "portable" is always last.
std::vector<std::string> instruction_sets();
// By name, "" being the best. Throws std::invalid_argument for one that this CPU cannot run.
const Kernels& kernels(const std::string& name);

}  // namespace wkv::engine
