// What this machine can do, measured with the engine's own kernels: the denominators of `wkv bench`.
#pragma once

#include <cstddef>
#include <string>

#include "engine/format.hpp"

namespace wkv::engine {

// Bytes a second of a plain read of `bytes` of memory by `threads` threads, each its own share:
// the best of `repeats` passes.
double read_bandwidth(size_t bytes, int threads, int repeats, const std::string& instruction_set);

// Operations (two a multiply-add) a second of the format's product instruction, registers only.
double product_peak(Format format, int threads, const std::string& instruction_set);

}  // namespace wkv::engine
