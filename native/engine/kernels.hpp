// The arithmetic of the engine, once for each instruction set. Every function computes each output
// value by one fixed chain of operations, whatever the number of tokens, panels or threads: that is
// what makes results independent of the batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/format.hpp"

namespace wkv::engine {

struct WkvRow {  // one layer's recurrence of one sequence, each [channels]
  const float *num_in, *den_in, *max_in;
  float *num, *den, *max;
};

struct Kernels {
  const char* name;

  // out[t][r] = Σ_c W[r][c]·x[t][c] for the rows of panels [first, last) and `tokens` inputs in `l`.
  void (*matmul)(const Matrix& w, int first, int last, const uint8_t* x, const Layout& l,
                 int tokens, float* out, size_t out_stride);
  // The same for one token, reading only the steps whose inputs are not all zero (list_steps).
  void (*matvec_sparse)(const Matrix& w, int first, int last, const uint8_t* x, const Layout& l,
                        float* out);
  // x [l.cols] -> one token's input of a product.
  void (*quantize)(const float* x, const Layout& l, uint8_t* out);
  // out = relu(x)², in place if out == x.
  void (*relu_squared)(const float* x, int n, float* out);

  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n, float* out);
  // out = x·mix + previous·(1 − mix)
  void (*mix)(const float* x, const float* previous, const float* mix, int n, float* out);
  void (*add)(float* x, const float* y, int n);                            // x += y
  void (*add_gated)(float* x, const float* gate, const float* y, int n);   // x += σ(gate)·y
  bool (*finite)(const float* x, int n);
  // r ← σ(r)·wkv(k, v) over `tokens` rows `stride` floats apart; decay and first are [channels].
  void (*wkv)(const float* k, const float* v, float* r, size_t stride, int tokens, int channels,
              const float* decay, const float* first, const WkvRow& state);
  // For `wkv bench`: a plain read (the sum is returned so that it happens), and a loop of the
  // format's products in registers, which returns the operations done (two a multiply-add).
  uint64_t (*read)(const uint8_t* data, size_t bytes);
  double (*peak)(Format f, long rounds, float* sink);
};

// Fills the list of a quantized input's non-zero steps; returns how many there are.
int list_steps(const Layout& l, uint8_t* x);

}  // namespace wkv::engine
