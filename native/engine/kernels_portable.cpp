#include "engine/simd_portable.hpp"

#include "engine/kernels.hpp"
#include "engine/kernels.inl"

WKV_KERNELS(k_portable, "portable")
