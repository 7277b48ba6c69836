// What each instruction set provides: a row's channels [c0, c1), forward or backward.
#pragma once

#include "wkv.hpp"

namespace wkv {

struct Kernels {
    // Indexed by DType.
    void (*forward[4])(const Inputs&, const Outputs&, int64_t row, int64_t c0, int64_t c1);
    // decay_rows, first_rows: [rows, channels] in double, each row's share of the gradient.
    void (*backward[4])(const Inputs&, const Gradients&, double* decay_rows, double* first_rows,
                        int64_t row, int64_t c0, int64_t c1);
};

extern const Kernels kernels_baseline;
#ifdef WKV_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace wkv
