#include "engine/simd_portable.hpp"

#include "engine/kernels.hpp"
#include "engine/kernels.inc"

WKV_KERNELS(k_portable, "portable")
