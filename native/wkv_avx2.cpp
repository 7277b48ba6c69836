#define WKV_ISA avx2
#define WKV_VECTOR_BYTES 32
#include "wkv_kernels.inc"

namespace wkv {
using namespace avx2;
const Kernels kernels_avx2 = WKV_KERNELS;
}  // namespace wkv
