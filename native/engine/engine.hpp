// One forward pass of RWKV-4 over a ragged batch.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <mutex>
#include <string>
#include <vector>

#include "engine/dispatch.hpp"
#include "engine/pool.hpp"

namespace wkv::engine {

// Vectors are float32, of D values unless said otherwise; matrices are [out, in].
struct Layer {
  const float *ln1_weight, *ln1_bias, *ln2_weight, *ln2_bias;
  const float *decay, *first;  // [A]; decay = −exp(time_decay)
  const float *mix_k, *mix_v, *mix_r, *ffn_mix_k, *ffn_mix_r;
  Matrix key, value, receptance;  // [A, D]
  Matrix output;                  // [D, A]
  Matrix ffn_key;                 // [F, D]
  Matrix ffn_value;               // [D, F]
  Matrix ffn_receptance;          // [D, D]
};

struct Weights {
  int hidden = 0, attention = 0, ffn = 0, vocab = 0;  // D, A, F, V
  float epsilon = 1e-5f;
  const float *ln0_weight, *ln0_bias, *ln_out_weight, *ln_out_bias;
  Matrix embedding, head;  // [V, D]
  std::vector<Layer> layers;
};

template <class T>
struct StateArrays {  // att_x, ffn_x [B, L, D]; num, den, max [B, L, A]
  T *att_x, *ffn_x, *num, *den, *max;
};

struct Request {
  const int32_t* tokens;            // packed, each in [0, V)
  const int64_t* starts;            // [sequences + 1], from 0, not decreasing
  int sequences;
  StateArrays<const float> before;  // not the arrays of `after`
  StateArrays<float> after;
  const int64_t* wanted;            // ascending packed positions whose logits are asked for
  int64_t wanted_count;
  float* logits;                    // [wanted_count, V]
  std::function<bool()> cancelled;  // asked by the calling thread before each layer; may be empty
};

enum class Outcome { done, cancelled, not_finite };

class Engine {
 public:
  Engine(Weights weights, int threads, const std::string& instruction_set);

  // One call runs at a time; others wait. Nothing of `after` or `logits` is meaningful unless done.
  Outcome forward(const Request& request);

  const Weights& weights() const { return w_; }
  const char* instruction_set() const { return k_.name; }
  int threads() const { return pool_.threads(); }
  size_t scratch_bytes() const;
  // Share of the steps of each layer's feed-forward value product that were not all zero when last
  // looked at (single tokens only).
  std::vector<float> density() const;

 private:
  struct Segment {  // consecutive tokens of one sequence within a chunk
    int sequence, first, count;  // first: row in the chunk
    bool starts;                 // whether the sequence starts in this chunk
  };
  struct Chunk {
    int64_t at;  // packed position of row 0
    int rows;
    std::vector<Segment> segments;
    int64_t wanted_first, wanted_last;
  };
  // The inputs of one matrix product for some tokens, in `scratch`.
  struct Inputs {
    Layout layout;
    uint8_t* data;
    uint8_t* row(int t) const { return data + size_t(t) * layout.bytes; }
  };
  struct Span { int first, last; };
  struct Shift {  // a layer norm, and the rows before each sequence: as given, and as left
    const float *weight, *bias, *before, *after;
  };
  struct Use {  // one product of shifted rows
    const float* mix;
    Inputs to;
  };

  std::vector<Chunk> plan(const Request& r) const;
  void reserve(int rows);
  void run(const Request& r, const std::vector<Chunk>& chunks, int thread);
  bool run_layer(const Request& r, const Chunk& c, int layer, int thread);
  void embed(const Request& r, const Chunk& c, int thread);
  void shifted_inputs(const Chunk& c, int layer, int thread, const Shift& shift,
                      std::initializer_list<Use> uses);
  void recurrence(const Request& r, const Chunk& c, int layer, int thread);
  void ffn_value(const Chunk& c, int layer, int thread);
  void keep_last(const Chunk& c, int layer, int thread, const float* rows, float* state);
  void head(const Request& r, const Chunk& c, int thread);

  // With one token every thread prepares its inputs itself: cheaper than a barrier.
  bool redundant(int rows) const { return rows == 1; }
  Span tokens_of(int rows, int thread) const;
  Span panels_of(const Matrix& m, int thread) const;
  void product(const Matrix& m, const Inputs& x, int rows, int thread, float* out, size_t stride) const;
  Inputs inputs(const Matrix& m, int slot, int rows, int thread) const;
  const float* previous(const Segment& s, const float* before, const float* after, int layer) const;
  float* normed(int rows, int thread) const;

  Weights w_;
  const Kernels& k_;
  Pool pool_;
  std::mutex one_at_a_time_;

  int capacity_ = 0;
  std::vector<uint8_t> memory_;
  float *x_ = nullptr, *xn_ = nullptr, *k_rows_ = nullptr, *v_rows_ = nullptr, *r_rows_ = nullptr;
  float *hidden_rows_ = nullptr, *gate_rows_ = nullptr, *out_rows_ = nullptr, *private_ = nullptr;
  uint8_t* quantized_ = nullptr;
  size_t slot_bytes_ = 0, private_floats_ = 0;
  std::atomic<int> stop_{0};
  std::atomic<bool> wrong_{false};
  std::vector<float> density_;   // [threads][layers]
  std::vector<uint32_t> age_;    // [threads][layers]: single tokens since the last look
};

}  // namespace wkv::engine
