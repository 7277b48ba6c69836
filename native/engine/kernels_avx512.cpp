#include "engine/simd_avx512.hpp"

#include "engine/kernels.hpp"
#include "engine/kernels.inc"

WKV_KERNELS(k_avx512, "avx512")
