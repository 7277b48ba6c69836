#include "engine/simd_neon.hpp"

#include "engine/kernels.hpp"
#include "engine/kernels.inc"

WKV_KERNELS(k_neon, "neon")
