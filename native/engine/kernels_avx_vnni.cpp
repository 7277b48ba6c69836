#define WKV_AVX_VNNI
#include "engine/simd_avx2.hpp"

#include "engine/kernels.hpp"
#include "engine/kernels.inc"

WKV_KERNELS(k_avx_vnni, "avx_vnni")
