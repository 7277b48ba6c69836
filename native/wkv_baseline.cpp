#define WKV_ISA baseline
#define WKV_VECTOR_BYTES 16
#include "wkv_kernels.inc"

namespace wkv {
using namespace baseline;
const Kernels kernels_baseline = WKV_KERNELS;
}  // namespace wkv
