// What each instruction set provides: channels [c0, c1) of one row, forward or backward.
#pragma once

#include "wkv.hpp"

namespace wkv {

// A task holds its channels' states in a cache and walks through memory token by token, a block at
// a time: the wider the block, the nearer that is to reading in order. Bytes of wide numbers.
constexpr int64_t kBlockBytes = 4096;

// Vectors of (a, b, max, weight) for each token of a segment, and one more.
constexpr int64_t kScratchBytes = (kSegment + 1) * 4 * kBlockBytes;

struct Kernels {
    // Indexed by DType.
    void (*forward[4])(const Inputs&, const Outputs&, int64_t row, int64_t c0, int64_t c1);
    // decay, first: [channels], to which the row's share of the gradient is added; scratch: of
    // kScratchBytes, aligned to 64.
    void (*backward[4])(const Inputs&, const Gradients&, int64_t row, int64_t c0, int64_t c1,
                        double* decay, double* first, void* scratch);
};

extern const Kernels kernels_baseline;
#ifdef WKV_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace wkv
