// The wkv operator of RWKV-4: one signature for every dtype and instruction set.
//
// Tokens of all rows lie one after another: keys and values are [tokens, channels], row n owns
// tokens starts[n] … starts[n + 1] − 1. Per channel, with w the log decay of a step and u the bonus
// of the current token, from a state (a, b, p):
//
//   q = max(p, u + k)   y = (e^(p−q)·a + e^(u+k−q)·v) / (e^(p−q)·b + e^(u+k−q))
//   q = max(p + w, k)   a ← e^(p+w−q)·a + e^(k−q)·v;  b ← e^(p+w−q)·b + e^(k−q);  p ← q
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace wkv {

// Of keys, values and outputs. Everything else is float, or double for f64: "wide" below.
enum class DType { f32, bf16, f16, f64 };

// The forward pass keeps the state before every 64th token, from which the backward pass
// recomputes the others.
constexpr int64_t kSegment = 64;

struct Inputs {
    DType dtype;
    int64_t rows, tokens, channels;
    const int64_t* starts;          // [rows + 1], from 0 to tokens, not decreasing
    const void *k, *v;              // [tokens, channels] dtype
    const void *decay, *first;      // [channels] wide
    const void *num, *den, *max;    // [rows, channels] wide
};

struct Outputs {
    void* y;                   // [tokens, channels] dtype
    void *num, *den, *max;     // [rows, channels] wide
    void* checkpoints;         // [⌈tokens / kSegment⌉, 4, channels] wide: the state before token 64·i
};

// Gradients of a loss; the running maximum's goes to the key or initial maximum that attains it.
struct Gradients {
    const void* y;                              // [tokens, channels] dtype
    const void *num_out, *den_out, *max_out;    // [rows, channels] wide
    const void* checkpoints;                    // from the forward pass
    void *k, *v;                                // [tokens, channels] dtype
    void *decay, *first;                        // [channels] wide
    void *num, *den, *max;                      // [rows, channels] wide
};

// Every channel of every row is computed by itself: results do not depend on `threads`.
void wkv_forward(const Inputs& in, const Outputs& out, int threads);
void wkv_backward(const Inputs& in, const Gradients& grad, int threads);

// "baseline", "avx2", "avx512": those that this processor can run, best last.
std::vector<std::string> instruction_sets();
// The one in use; set_… throws std::invalid_argument for one not in the list.
std::string instruction_set();
void set_instruction_set(const std::string& name);

}  // namespace wkv
