#include "engine/simd_avx2.hpp"

#include "engine/kernels.hpp"
#include "engine/kernels.inc"

WKV_KERNELS(k_avx2, "avx2")
