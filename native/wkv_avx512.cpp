#define WKV_ISA avx512
#define WKV_VECTOR_BYTES 64
#include "wkv_kernels.inc"

namespace wkv {
using namespace avx512;
const Kernels kernels_avx512 = WKV_KERNELS;
}  // namespace wkv
