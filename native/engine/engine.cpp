#include "engine/engine.hpp"

#include <algorithm>
#include <cstring>

namespace wkv::engine {

namespace {

// Rows of a chunk: its quantized hidden vectors should stay in a core's own cache.
constexpr int kChunk = 128;
// A sparse product reads scattered lines: it must skip this share to be worth it.
constexpr float kSparse = 0.6f;
constexpr uint32_t kMeasureEvery = 16;  // single tokens between two looks at a dense layer's zeros
constexpr int kSlots = 3;

int up16(int n) { return (n + 15) / 16 * 16; }

}  // namespace

Engine::Engine(Weights weights, int threads, const std::string& instruction_set)
    : w_(std::move(weights)), k_(kernels(instruction_set)), pool_(threads) {
  density_.assign(w_.layers.size() * size_t(pool_.threads()), 1.0f);
  age_.assign(density_.size(), 0);
}

std::vector<float> Engine::density() const {
  return {density_.begin(), density_.begin() + std::ptrdiff_t(w_.layers.size())};
}

size_t Engine::scratch_bytes() const { return memory_.size(); }

// --- where things are ---------------------------------------------------------------------------

void Engine::reserve(int rows) {
  if (rows <= capacity_) return;
  capacity_ = rows;
  const size_t n = size_t(rows), threads = size_t(pool_.threads());
  const size_t d = size_t(up16(w_.hidden)), a = size_t(up16(w_.attention)), f = size_t(up16(w_.ffn));

  slot_bytes_ = 0;  // what one slot of quantized inputs needs for a row, whichever matrix reads it
  const auto widest = [&](const Matrix& m) {
    slot_bytes_ = std::max(slot_bytes_, Layout(m.format, m.cols).bytes);
  };
  for (const Layer& l : w_.layers)
    for (const Matrix* m : {&l.key, &l.value, &l.receptance, &l.output, &l.ffn_key, &l.ffn_value, &l.ffn_receptance})
      widest(*m);
  widest(w_.head);

  private_floats_ = 2 * d + f;
  const size_t slots = kSlots * std::max(n, threads);
  const size_t floats = n * (4 * d + 3 * a + f) + threads * (d + private_floats_);
  memory_.assign(floats * sizeof(float) + slots * slot_bytes_ + 64, 0);
  auto at = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) / 64 * 64);
  const auto take = [&](size_t count) {
    float* p = reinterpret_cast<float*>(at);
    at += count * sizeof(float);
    return p;
  };
  x_ = take(n * d);
  xn_ = take((n + threads) * d);
  k_rows_ = take(n * a);
  v_rows_ = take(n * a);
  r_rows_ = take(n * a);
  hidden_rows_ = take(n * f);
  gate_rows_ = take(n * d);
  out_rows_ = take(n * d);
  private_ = take(threads * private_floats_);
  quantized_ = at;
}

Engine::Span Engine::tokens_of(int rows, int thread) const {
  const int n = pool_.threads();
  return {rows * thread / n, rows * (thread + 1) / n};
}

Engine::Span Engine::panels_of(const Matrix& m, int thread) const {
  const int n = pool_.threads(), panels = m.panels();
  return {int(int64_t(panels) * thread / n), int(int64_t(panels) * (thread + 1) / n)};
}

Engine::Inputs Engine::inputs(const Matrix& m, int slot, int rows, int thread) const {
  Layout layout(m.format, m.cols);
  const size_t each = slot_bytes_ * std::max(size_t(capacity_), size_t(pool_.threads()));
  uint8_t* base = quantized_ + size_t(slot) * each;
  if (redundant(rows)) base += size_t(thread) * slot_bytes_;
  return {layout, base};
}

float* Engine::normed(int rows, int thread) const {
  return xn_ + (redundant(rows) ? size_t(capacity_ + thread) * size_t(up16(w_.hidden)) : 0);
}

void Engine::product(const Matrix& m, const Inputs& x, int rows, int thread, float* out, size_t stride) const {
  const Span p = panels_of(m, thread);
  if (p.first < p.last) k_.matmul(m, p.first, p.last, x.data, x.layout, rows, out, stride);
}

std::vector<Engine::Chunk> Engine::plan(const Request& r) const {
  std::vector<Chunk> chunks;
  const int64_t total = r.starts[r.sequences];
  int64_t wanted = 0;
  int sequence = 0;
  for (int64_t at = 0; at < total; at += kChunk) {
    Chunk c{at, int(std::min<int64_t>(kChunk, total - at)), {}, wanted, wanted};
    const int64_t end = at + c.rows;
    while (sequence < r.sequences && r.starts[sequence] < end) {
      const int64_t from = std::max(at, r.starts[sequence]), to = std::min(end, r.starts[sequence + 1]);
      if (from < to)
        c.segments.push_back({sequence, int(from - at), int(to - from), from == r.starts[sequence]});
      if (r.starts[sequence + 1] > end) break;
      ++sequence;
    }
    while (wanted < r.wanted_count && r.wanted[wanted] < end) ++wanted;
    c.wanted_last = wanted;
    chunks.push_back(std::move(c));
  }
  return chunks;
}

// --- the pass -----------------------------------------------------------------------------------

Outcome Engine::forward(const Request& r) {
  const std::lock_guard lock(one_at_a_time_);
  const size_t layers = w_.layers.size(), d = size_t(w_.hidden), a = size_t(w_.attention);
  for (int b = 0; b < r.sequences; ++b) {  // a sequence without tokens keeps its state
    if (r.starts[b] != r.starts[b + 1]) continue;
    const auto copy = [&](const float* from, float* to, size_t width) {
      std::memcpy(to + size_t(b) * layers * width, from + size_t(b) * layers * width, layers * width * sizeof(float));
    };
    copy(r.before.att_x, r.after.att_x, d);
    copy(r.before.ffn_x, r.after.ffn_x, d);
    copy(r.before.num, r.after.num, a);
    copy(r.before.den, r.after.den, a);
    copy(r.before.max, r.after.max, a);
  }
  const auto chunks = plan(r);
  int rows = 0;
  for (const Chunk& c : chunks) rows = std::max(rows, c.rows);
  reserve(rows);
  stop_ = 0;
  wrong_ = false;
  pool_.run([&](int thread) { run(r, chunks, thread); });
  if (stop_.load()) return Outcome::cancelled;
  return wrong_.load() ? Outcome::not_finite : Outcome::done;
}

void Engine::run(const Request& r, const std::vector<Chunk>& chunks, int thread) {
  for (const Chunk& c : chunks) {
    embed(r, c, thread);
    for (int layer = 0; layer < int(w_.layers.size()); ++layer)
      if (!run_layer(r, c, layer, thread)) return;
    head(r, c, thread);
  }
}

void Engine::embed(const Request& r, const Chunk& c, int thread) {
  const int d = w_.hidden, stride = up16(d);
  const Span own = tokens_of(c.rows, thread);
  float* row = private_ + size_t(thread) * private_floats_;
  for (int t = own.first; t < own.last; ++t) {
    unpack_row(w_.embedding, r.tokens[c.at + t], row);
    k_.layer_norm(row, w_.ln0_weight, w_.ln0_bias, w_.epsilon, d, x_ + size_t(t) * stride);
  }
  pool_.barrier();
}

bool Engine::run_layer(const Request& r, const Chunk& c, int index, int thread) {
  const Layer& l = w_.layers[size_t(index)];
  const int d = w_.hidden, rows = c.rows;
  const size_t ds = size_t(up16(d)), as = size_t(up16(w_.attention)), fs = size_t(up16(w_.ffn));
  if (thread == 0 && r.cancelled && r.cancelled()) stop_.store(1, std::memory_order_relaxed);

  const Inputs k = inputs(l.key, 0, rows, thread), v = inputs(l.value, 1, rows, thread),
               q = inputs(l.receptance, 2, rows, thread);
  shifted_inputs(c, index, thread, {l.ln1_weight, l.ln1_bias, r.before.att_x, r.after.att_x},
                 {{l.mix_k, k}, {l.mix_v, v}, {l.mix_r, q}});
  product(l.key, k, rows, thread, k_rows_, as);
  product(l.value, v, rows, thread, v_rows_, as);
  product(l.receptance, q, rows, thread, r_rows_, as);
  recurrence(r, c, index, thread);
  pool_.barrier();
  if (stop_.load(std::memory_order_relaxed)) return false;

  keep_last(c, index, thread, normed(rows, thread), r.after.att_x);
  const Inputs y = inputs(l.output, 0, rows, thread);
  if (redundant(rows)) {
    k_.quantize(r_rows_, y.layout, y.data);
  } else {
    const Span own = tokens_of(rows, thread);
    for (int t = own.first; t < own.last; ++t) k_.quantize(r_rows_ + size_t(t) * as, y.layout, y.row(t));
    pool_.barrier();
  }
  product(l.output, y, rows, thread, out_rows_, ds);
  const Span own = panels_of(l.output, thread);
  const int first = own.first * l.output.panel_rows(), last = std::min(d, own.last * l.output.panel_rows());
  if (first < last)
    for (int t = 0; t < rows; ++t) k_.add(x_ + t * ds + first, out_rows_ + t * ds + first, last - first);
  pool_.barrier();

  const Inputs fk = inputs(l.ffn_key, 0, rows, thread), fr = inputs(l.ffn_receptance, 1, rows, thread);
  shifted_inputs(c, index, thread, {l.ln2_weight, l.ln2_bias, r.before.ffn_x, r.after.ffn_x},
                 {{l.ffn_mix_k, fk}, {l.ffn_mix_r, fr}});
  product(l.ffn_key, fk, rows, thread, hidden_rows_, fs);
  product(l.ffn_receptance, fr, rows, thread, gate_rows_, ds);
  pool_.barrier();

  keep_last(c, index, thread, normed(rows, thread), r.after.ffn_x);
  ffn_value(c, index, thread);
  pool_.barrier();
  return true;
}

// The row before a segment's first: in the state it starts from, or the one it reached a chunk ago.
const float* Engine::previous(const Segment& s, const float* before, const float* after, int layer) const {
  const size_t at = (size_t(s.sequence) * w_.layers.size() + size_t(layer)) * size_t(w_.hidden);
  return (s.starts ? before : after) + at;
}

// Normalises this thread's rows of x, shifts them by a token, and mixes and rounds them for each of
// the products in `uses`.
void Engine::shifted_inputs(const Chunk& c, int index, int thread, const Shift& shift,
                            std::initializer_list<Use> uses) {
  const int d = w_.hidden;
  const size_t ds = size_t(up16(d));
  const bool all = redundant(c.rows);
  const Span own = all ? Span{0, 1} : tokens_of(c.rows, thread);
  float* const scratch = private_ + size_t(thread) * private_floats_;
  float* const mixed = scratch + ds;
  float* const rows = normed(c.rows, thread);
  const auto norm = [&](int t, float* to) {
    k_.layer_norm(x_ + size_t(t) * ds, shift.weight, shift.bias, w_.epsilon, d, to);
    return to;
  };
  const Segment* segment = c.segments.data();
  for (int t = own.first; t < own.last; ++t) {
    while (t >= segment->first + segment->count) ++segment;
    const float* before = rows + size_t(t - 1) * ds;
    if (t == segment->first) before = previous(*segment, shift.before, shift.after, index);
    else if (t == own.first) before = norm(t - 1, scratch);  // another thread's row: do it again
    const float* x = norm(t, rows + size_t(t) * ds);
    for (const Use& use : uses) {
      k_.mix(x, before, use.mix, d, mixed);
      k_.quantize(mixed, use.to.layout, use.to.row(t));
    }
  }
  if (!all) pool_.barrier();
}

// Each thread runs the recurrence over the channels whose k, v and r it has just computed.
void Engine::recurrence(const Request& r, const Chunk& c, int index, int thread) {
  const Layer& l = w_.layers[size_t(index)];
  const Span own = panels_of(l.key, thread);
  const int first = own.first * l.key.panel_rows();
  const int n = std::min(w_.attention, own.last * l.key.panel_rows()) - first;
  if (n <= 0) return;
  const size_t stride = size_t(up16(w_.attention));
  for (const Segment& s : c.segments) {
    const size_t at = (size_t(s.sequence) * w_.layers.size() + size_t(index)) * size_t(w_.attention) + size_t(first);
    const bool in = s.starts;
    const WkvRow row{(in ? r.before.num : r.after.num) + at, (in ? r.before.den : r.after.den) + at,
                     (in ? r.before.max : r.after.max) + at, r.after.num + at, r.after.den + at,
                     r.after.max + at};
    const size_t x = size_t(s.first) * stride + size_t(first);
    k_.wkv(k_rows_ + x, v_rows_ + x, r_rows_ + x, stride, s.count, n, l.decay + first, l.first + first, row);
  }
}

// The last normalised row of each segment becomes the state's; after a barrier, because until then
// other threads may still read the row that it replaces.
void Engine::keep_last(const Chunk& c, int layer, int thread, const float* rows, float* state) {
  const int threads = pool_.threads();
  for (size_t i = size_t(thread); i < c.segments.size(); i += size_t(threads)) {
    const Segment& s = c.segments[i];
    const size_t at = (size_t(s.sequence) * w_.layers.size() + size_t(layer)) * size_t(w_.hidden);
    std::memcpy(state + at, rows + size_t(s.first + s.count - 1) * size_t(up16(w_.hidden)),
                size_t(w_.hidden) * sizeof(float));
  }
}

void Engine::ffn_value(const Chunk& c, int index, int thread) {
  const Layer& l = w_.layers[size_t(index)];
  const int d = w_.hidden, rows = c.rows;
  const size_t ds = size_t(up16(d)), fs = size_t(up16(w_.ffn));
  float* const scratch = private_ + size_t(thread) * private_floats_ + 2 * ds;
  const Inputs h = inputs(l.ffn_value, 2, rows, thread);
  const Span own = panels_of(l.ffn_value, thread);
  bool sparse = false;
  if (redundant(rows)) {
    k_.relu_squared(hidden_rows_, w_.ffn, scratch);
    k_.quantize(scratch, h.layout, h.data);
    // Every thread decides for itself: both ways give the same bits.
    float& density = density_[size_t(index) + size_t(thread) * w_.layers.size()];
    uint32_t& age = age_[size_t(index) + size_t(thread) * w_.layers.size()];
    if (density < kSparse || age++ % kMeasureEvery == 0) {
      density = float(list_steps(h.layout, h.data)) / float(h.layout.blocks * block_steps(h.layout.format));
      sparse = density < kSparse;
    }
  } else {
    const Span mine = tokens_of(rows, thread);
    for (int t = mine.first; t < mine.last; ++t) {
      k_.relu_squared(hidden_rows_ + size_t(t) * fs, w_.ffn, scratch);
      k_.quantize(scratch, h.layout, h.row(t));
    }
    pool_.barrier();
  }
  if (own.first >= own.last) return;
  if (sparse) k_.matvec_sparse(l.ffn_value, own.first, own.last, h.data, h.layout, out_rows_);
  else k_.matmul(l.ffn_value, own.first, own.last, h.data, h.layout, rows, out_rows_, ds);
  const int first = own.first * l.ffn_value.panel_rows();
  const int n = std::min(d, own.last * l.ffn_value.panel_rows()) - first;
  for (int t = 0; t < rows; ++t) {
    const size_t at = size_t(t) * ds + size_t(first);
    k_.add_gated(x_ + at, gate_rows_ + at, out_rows_ + at, n);
  }
}

void Engine::head(const Request& r, const Chunk& c, int thread) {
  const int count = int(c.wanted_last - c.wanted_first);
  if (count == 0) return;
  const int d = w_.hidden;
  const size_t ds = size_t(up16(d)), v = size_t(w_.vocab);
  float* const row = private_ + size_t(thread) * private_floats_;
  const Inputs x = inputs(w_.head, 0, count, thread);
  const bool all = redundant(count);
  const Span own = all ? Span{0, 1} : tokens_of(count, thread);
  for (int i = own.first; i < own.last; ++i) {
    const int64_t t = r.wanted[c.wanted_first + i] - c.at;
    k_.layer_norm(x_ + size_t(t) * ds, w_.ln_out_weight, w_.ln_out_bias, w_.epsilon, d, row);
    k_.quantize(row, x.layout, x.row(i));
  }
  if (!all) pool_.barrier();
  const Span panels = panels_of(w_.head, thread);
  if (panels.first < panels.last) {
    float* logits = r.logits + size_t(c.wanted_first) * v;
    k_.matmul(w_.head, panels.first, panels.last, x.data, x.layout, count, logits, v);
    const int first = panels.first * w_.head.panel_rows();
    const int n = std::min(w_.vocab, panels.last * w_.head.panel_rows()) - first;
    for (int i = 0; i < count; ++i)
      if (!k_.finite(logits + size_t(i) * v + size_t(first), n)) wrong_.store(true, std::memory_order_relaxed);
  }
  // The next chunk's inputs reuse these buffers.
  pool_.barrier();
}

}  // namespace wkv::engine
