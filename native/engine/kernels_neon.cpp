#include "engine/simd_neon.hpp"

#include "engine/kernels.hpp"
#include "engine/kernels.inl"

WKV_KERNELS(k_neon, "neon")
