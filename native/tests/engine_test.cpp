// Every instruction set against the portable reference, the pool, and a small engine: what the
// sanitizers watch, and what runs under emulation of another processor. Prints one line a part and
// exits with 1 at the first difference.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engine/dispatch.hpp"
#include "engine/engine.hpp"
#include "engine/pool.hpp"

using namespace wkv::engine;

namespace {

std::mt19937 random_bits(1);

std::vector<float> normal(size_t n, float size = 1) {
  std::normal_distribution<float> d(0, size);
  std::vector<float> out(n);
  for (auto& x : out) x = d(random_bits);
  return out;
}

void require(bool good, const char* what, const std::string& where) {
  if (good) return;
  std::printf("FAILED: %s: %s\n", where.c_str(), what);
  std::exit(1);
}

// Exactly as large as it must be, so that a sanitizer sees every byte too many.
struct Bytes {
  uint8_t* p;
  explicit Bytes(size_t n) : p(static_cast<uint8_t*>(std::malloc(n ? n : 1))) { std::memset(p, 0xa5, n); }
  ~Bytes() { std::free(p); }
  Bytes(const Bytes&) = delete;
};

bool close(const std::vector<float>& a, const std::vector<float>& b, float bound) {
  float scale = 0;
  for (float x : b) scale = std::max(scale, std::fabs(x));
  for (size_t i = 0; i < a.size(); ++i)
    if (!(std::fabs(a[i] - b[i]) <= bound * scale)) return false;
  return true;
}

void products(const Kernels& k, const Kernels& reference) {
  // The last one is wide enough for several chunks of columns in every format.
  const int sizes[][2] = {{1, 1}, {16, 64}, {17, 65}, {70, 129}, {64, 300}, {130, 128}, {86, 1700}};
  for (int f = 0; f < 4; ++f)
    for (int lanes : {1, 4})
      for (const auto& size : sizes) {
        Matrix m;
        m.format = Format(f);
        m.rows = size[0];
        m.cols = size[1];
        m.lanes = lanes;
        const std::string where = std::string(k.name) + " " + format_name(m.format) + " " +
                                  std::to_string(m.rows) + "x" + std::to_string(m.cols) + " lanes " +
                                  std::to_string(lanes);
        const auto w = normal(size_t(m.rows) * size_t(m.cols));
        Bytes data(m.bytes());
        pack_panels(m, 0, m.panels(), w.data(), nullptr, data.p);
        m.data = data.p;
        const int tokens = 27;
        auto x = normal(size_t(tokens) * size_t(m.cols));
        for (auto& v : x)
          if (v < 0) v = 0;
        const Layout l(m.format, m.cols);
        Bytes a(l.bytes * tokens), b(l.bytes * tokens);
        for (int t = 0; t < tokens; ++t) {
          k.quantize(x.data() + t * m.cols, l, a.p + size_t(t) * l.bytes);
          reference.quantize(x.data() + t * m.cols, l, b.p + size_t(t) * l.bytes);
          const size_t values = l.headers;  // the quantized values agree to a unit
          if (f >= 2)
            for (size_t i = 0; i < values; ++i)
              require(std::abs(int(int8_t(a.p[size_t(t) * l.bytes + i])) -
                               int(int8_t(b.p[size_t(t) * l.bytes + i]))) <= (i < size_t(m.cols) ? 1 : 0) ||
                          i >= size_t(m.padded_cols()),
                      "quantize", where);
        }
        // The same inputs for both from here on.
        std::vector<float> out(size_t(tokens) * size_t(m.rows), NAN), expected(out.size(), NAN);
        k.matmul(m, 0, m.panels(), a.p, l, tokens, out.data(), size_t(m.rows));
        reference.matmul(m, 0, m.panels(), a.p, l, tokens, expected.data(), size_t(m.rows));
        require(close(out, expected, f < 2 ? 3e-5f : 3e-6f), "matmul", where);
        for (int t = 0; t < tokens; ++t) {
          std::vector<float> one(size_t(m.rows), NAN);
          k.matmul(m, 0, m.panels(), a.p + size_t(t) * l.bytes, l, 1, one.data(), size_t(m.rows));
          require(std::memcmp(one.data(), out.data() + t * m.rows, one.size() * 4) == 0, "one token", where);
          list_steps(l, a.p + size_t(t) * l.bytes);
          std::vector<float> sparse(size_t(m.rows), NAN);
          k.matvec_sparse(m, 0, m.panels(), a.p + size_t(t) * l.bytes, l, sparse.data());
          require(std::memcmp(sparse.data(), one.data(), one.size() * 4) == 0, "sparse", where);
        }
        std::vector<float> row(size_t(m.cols));
        for (int r = 0; r < m.rows; ++r) {
          unpack_row(m, r, row.data());
          for (int c = 0; c < m.cols; ++c)
            require(std::fabs(row[size_t(c)] - w[size_t(r) * size_t(m.cols) + size_t(c)]) < (f == 3 ? 0.5f : 0.05f),
                    "unpack", where);
        }
      }
}

void vectors(const Kernels& k, const Kernels& reference) {
  for (int n : {1, 15, 16, 33, 128}) {
    const std::string where = std::string(k.name) + " n " + std::to_string(n);
    const size_t size = size_t(n);
    const auto x = normal(size, 3), y = normal(size), weight = normal(size), bias = normal(size);
    std::vector<float> a(size), b(size);
    k.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, a.data());
    reference.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, n, b.data());
    require(close(a, b, 1e-5f), "layer_norm", where);
    k.mix(x.data(), y.data(), weight.data(), n, a.data());
    reference.mix(x.data(), y.data(), weight.data(), n, b.data());
    require(close(a, b, 1e-5f), "mix", where);
    k.relu_squared(x.data(), n, a.data());
    reference.relu_squared(x.data(), n, b.data());
    require(close(a, b, 1e-6f), "relu_squared", where);
    a = b = x;
    k.add(a.data(), y.data(), n);
    reference.add(b.data(), y.data(), n);
    require(close(a, b, 1e-6f), "add", where);
    a = b = x;
    k.add_gated(a.data(), weight.data(), y.data(), n);
    reference.add_gated(b.data(), weight.data(), y.data(), n);
    require(close(a, b, 1e-5f), "add_gated", where);
    require(k.finite(x.data(), n), "finite", where);
    auto broken = x;
    broken[size - 1] = INFINITY;
    require(!k.finite(broken.data(), n), "not finite", where);

    const int tokens = 40;
    const auto key = normal(size * tokens, 4), value = normal(size * tokens), gate = normal(size * tokens);
    auto decay = normal(size);
    for (auto& d : decay) d = -std::exp(d);
    std::vector<float> states[2], results[2];
    for (int i = 0; i < 2; ++i) {
      states[i].assign(3 * size, 0.0f);
      for (size_t c = 0; c < size; ++c) states[i][2 * size + c] = -1e38f;
      results[i] = gate;
      float* s = states[i].data();
      (i ? reference : k).wkv(key.data(), value.data(), results[i].data(), size, tokens, n, decay.data(),
                              bias.data(), {s, s + n, s + 2 * n, s, s + n, s + 2 * n});
    }
    require(close(results[0], results[1], 2e-5f), "wkv", where);
    for (int i = 0; i < 3; ++i)
      require(close({states[0].begin() + i * n, states[0].begin() + (i + 1) * n},
                    {states[1].begin() + i * n, states[1].begin() + (i + 1) * n}, 2e-5f),
              "wkv state", where);
  }
}

void pools() {
  for (int n : {1, 2, 3, 5}) {
    Pool pool(n);
    std::vector<int> seen(size_t(n), 0);
    std::atomic<int> total{0};
    for (int i = 0; i < 200; ++i) {
      pool.run([&](int t) {
        seen[size_t(t)] += 1;
        pool.barrier();
        for (int other = 0; other < n; ++other)
          require(seen[size_t(other)] == i + 1, "a barrier let a thread through", "pool");
        pool.barrier();
        total += 1;
      });
      require(total == n * (i + 1), "a run returned early", "pool");
      if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));  // all asleep
    }
  }
}

struct Model {
  std::vector<std::vector<float>> vectors;
  std::vector<std::vector<uint8_t>> matrices;
  Weights w;

  const float* vector(int n, float mean = 0) {
    vectors.push_back(normal(size_t(n), 0.3f));
    for (auto& x : vectors.back()) x += mean;
    return vectors.back().data();
  }
  Matrix matrix(Format f, int rows, int cols, int lanes = 1) {
    Matrix m;
    m.format = f;
    m.rows = rows;
    m.cols = cols;
    m.lanes = lanes;
    const auto source = normal(size_t(rows) * size_t(cols), 1.0f / std::sqrt(float(cols)));
    matrices.emplace_back(m.bytes());
    pack_panels(m, 0, m.panels(), source.data(), nullptr, matrices.back().data());
    m.data = matrices.back().data();
    return m;
  }
  explicit Model(Format f) {
    const int d = 40, a = 56, h = 90, v = 101;
    w.hidden = d;
    w.attention = a;
    w.ffn = h;
    w.vocab = v;
    w.ln0_weight = vector(d, 1);
    w.ln0_bias = vector(d);
    w.ln_out_weight = vector(d, 1);
    w.ln_out_bias = vector(d);
    w.embedding = matrix(f, v, d);
    w.head = matrix(f, v, d);
    for (int i = 0; i < 2; ++i) {
      Layer l;
      l.ln1_weight = vector(d, 1);
      l.ln1_bias = vector(d);
      l.ln2_weight = vector(d, 1);
      l.ln2_bias = vector(d);
      l.decay = vector(a, -1.5f);
      l.first = vector(a);
      l.mix_k = vector(d, 0.5f);
      l.mix_v = vector(d, 0.5f);
      l.mix_r = vector(d, 0.5f);
      l.ffn_mix_k = vector(d, 0.5f);
      l.ffn_mix_r = vector(d, 0.5f);
      l.key = matrix(f, a, d);
      l.value = matrix(f, a, d);
      l.receptance = matrix(f, a, d);
      l.output = matrix(f, d, a);
      l.ffn_key = matrix(f, h, d);
      l.ffn_value = matrix(f, d, h, 4);
      l.ffn_receptance = matrix(f, d, d);
      w.layers.push_back(l);
    }
  }
};

struct Run {
  std::vector<float> x[2], a[3], logits;
  Outcome outcome;
};

Run forward(Engine& engine, const std::vector<int32_t>& tokens, const std::vector<int64_t>& starts,
            std::function<bool()> cancelled = {}) {
  const Weights& w = engine.weights();
  const size_t batch = starts.size() - 1, layers = w.layers.size();
  const size_t nx = batch * layers * size_t(w.hidden), na = batch * layers * size_t(w.attention);
  std::vector<float> zero_x(nx, 0), zero_a(na, 0), low(na, -1e38f);
  Run r;
  for (auto& x : r.x) x.assign(nx, NAN);
  for (auto& a : r.a) a.assign(na, NAN);
  std::vector<int64_t> wanted;
  for (size_t i = 0; i < tokens.size(); ++i) wanted.push_back(int64_t(i));
  r.logits.assign(tokens.size() * size_t(w.vocab), NAN);
  r.outcome = engine.forward({tokens.data(), starts.data(), int(batch),
                              {zero_x.data(), zero_x.data(), zero_a.data(), zero_a.data(), low.data()},
                              {r.x[0].data(), r.x[1].data(), r.a[0].data(), r.a[1].data(), r.a[2].data()},
                              wanted.data(), int64_t(wanted.size()), r.logits.data(), std::move(cancelled)});
  return r;
}

void engines(const std::string& isa) {
  for (int f = 0; f < 4; ++f) {
    Model model{Format(f)};
    std::vector<int32_t> tokens;
    for (int i = 0; i < 301; ++i) tokens.push_back(int32_t(random_bits() % 101));
    const std::vector<int64_t> starts = {0, 280, 280, 281, 301};
    Engine one(model.w, 1, isa);
    const Run expected = forward(one, tokens, starts);
    require(expected.outcome == Outcome::done, "not done", isa);
    for (int threads : {2, 3}) {
      Engine many(model.w, threads, isa);
      for (int again = 0; again < 2; ++again) {
        const Run got = forward(many, tokens, starts);
        require(got.logits == expected.logits, "logits depend on threads", isa);
        for (int i = 0; i < 2; ++i) require(got.x[i] == expected.x[i], "state depends on threads", isa);
        for (int i = 0; i < 3; ++i) require(got.a[i] == expected.a[i], "state depends on threads", isa);
      }
      const Run alone = forward(many, {tokens[280]}, {0, 1});
      require(std::memcmp(alone.logits.data(), expected.logits.data() + 280 * 101, 101 * 4) == 0,
              "logits depend on the batch", isa);
      int asked = 0;
      require(forward(many, tokens, starts, [&] { return ++asked > 1; }).outcome == Outcome::cancelled,
              "not cancelled", isa);
    }
  }
}

}  // namespace

int main() {
  const Kernels& reference = kernels("portable");
  for (const std::string& isa : instruction_sets()) {
    products(kernels(isa), reference);
    vectors(kernels(isa), reference);
    engines(isa);
    std::printf("%s: good\n", isa.c_str());
  }
  pools();
  std::printf("all good\n");
}
