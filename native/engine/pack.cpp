// float32 rows -> panels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/format.hpp"

// Wider vectors where there are any; without fused multiply-adds (see CMakeLists.txt) every clone
// gives the same bits. Sanitizers start too late for the loader's choice between clones.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define WKV_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define WKV_CLONES
#endif

namespace wkv::engine {

namespace {

// The best (scale, offset) for 64 values and the nibbles that go with it: for a number of trial
// ranges inside min..max, round, solve the weighted least squares for scale and offset in closed
// form, round those to bfloat16, round again, and keep the least squared error.
struct FourBits {
  uint16_t scale = 0, offset = 0;
  uint8_t nibble[64] = {};
};

// Sums of 64 terms by sixteen partial sums: a fixed order that vectors of any width keep.
inline float fold(const float* terms) {
  float part[16];
  for (int j = 0; j < 16; ++j) part[j] = (terms[j] + terms[16 + j]) + (terms[32 + j] + terms[48 + j]);
  for (int j = 0; j < 8; ++j) part[j] += part[8 + j];
  for (int j = 0; j < 4; ++j) part[j] += part[4 + j];
  return (part[0] + part[2]) + (part[1] + part[3]);
}

// The nearest steps q of scale·q + offset, and the weighted squared error.
WKV_CLONES float assign(const float* __restrict x, const float* __restrict w, float scale, float offset,
                        float* __restrict q) {
  const float inverse = scale != 0 ? 1 / scale : 0;
  float error[64];
  for (int i = 0; i < 64; ++i) {
    float n = (x[i] - offset) * inverse;
    n = n > 0.0f ? n : 0.0f;
    n = n < 15.0f ? n : 15.0f;
    q[i] = float(int(n + 0.5f));
    const float d = x[i] - (scale * q[i] + offset);
    error[i] = w[i] * d * d;
  }
  return fold(error);
}

// Weighted least squares of x ≈ scale·q + offset for the given q, around the means.
WKV_CLONES bool solve(const float* __restrict x, const float* __restrict w, const float* __restrict q,
                      float& scale, float& offset) {
  float wq[64], wx[64];
  for (int i = 0; i < 64; ++i) {
    wq[i] = w[i] * q[i];
    wx[i] = w[i] * x[i];
  }
  const float total = fold(w), mean_q = fold(wq) / total, mean_x = fold(wx) / total;
  for (int i = 0; i < 64; ++i) {
    const float d = q[i] - mean_q;
    wx[i] = w[i] * d * (x[i] - mean_x);
    wq[i] = w[i] * d * d;
  }
  const float spread = fold(wq);
  if (!(total > 0 && spread > 1e-9f * total)) return false;
  scale = fold(wx) / spread;
  offset = mean_x - scale * mean_q;
  return std::isfinite(scale) && std::isfinite(offset);
}

FourBits four_bits(const float* x, const float* w) {
  FourBits best;
  float low = x[0], high = x[0];
  for (int i = 1; i < 64; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  float q[64], best_q[64], least = std::numeric_limits<float>::infinity();
  const auto consider = [&](float scale, float offset) {
    const uint16_t s = float_to_bf16(scale), o = float_to_bf16(offset);
    const float error = assign(x, w, bf16_to_float(s), bf16_to_float(o), q);
    if (error < least) {
      least = error;
      best.scale = s;
      best.offset = o;
      std::memcpy(best_q, q, sizeof q);
      return true;
    }
    return false;
  };
  consider((high - low) / 15, low);
  const float middle = (low + high) / 2, half = (high - low) / 2;
  for (int shrink = 0; shrink <= 7; ++shrink) {
    const float span = half * (1.05f - 0.07f * float(shrink));
    float scale = 2 * span / 15, offset = middle - span;
    assign(x, w, scale, offset, q);
    for (int round = 0; round < 3; ++round) {
      if (!solve(x, w, q, scale, offset)) break;
      if (!consider(scale, offset) && round > 0) break;
    }
  }
  for (int i = 0; i < 64; ++i) best.nibble[i] = uint8_t(best_q[i]);
  return best;
}

// One row's block: `x` has block_columns values, zero past the end of the row.
void pack_block(const Matrix& m, const float* x, const float* w, int valid, uint8_t* base) {
  const size_t step = m.step_bytes();
  uint8_t* steps = base + size_t(block_header(m.format)) * step;
  switch (m.format) {
    case Format::f32:
      for (int i = 0; i < 64; ++i) std::memcpy(steps + size_t(i) * step, x + i, 4);
      break;
    case Format::bf16:
      for (int i = 0; i < 64; ++i) {
        const uint16_t h = float_to_bf16(x[i]);
        std::memcpy(steps + size_t(i / 2) * step + 2 * size_t(i % 2), &h, 2);
      }
      break;
    case Format::q8: {
      float most = 0;
      for (int i = 0; i < 128; ++i) most = std::max(most, std::fabs(x[i]));
      // A subnormal scale would have an infinite inverse; such weights are zero to any product.
      const float scale = most < 1e-30f ? 0.0f : most / 127;
      const float inverse = scale > 0 ? 1 / scale : 0;
      std::memcpy(base, &scale, 4);
      for (int i = 0; i < 128; ++i) {
        const float n = std::nearbyint(std::clamp(x[i] * inverse, -127.0f, 127.0f));
        steps[size_t(i / 4) * step + size_t(i % 4)] = uint8_t(int(n) + 128);
      }
      break;
    }
    case Format::q4: {
      // Padding must not widen the range: give it a value that is there anyway.
      float filled[64];
      for (int i = 0; i < 64; ++i) filled[i] = i < valid ? x[i] : x[0];
      const FourBits best = four_bits(filled, w);
      std::memcpy(base, &best.scale, 2);
      std::memcpy(base + 2, &best.offset, 2);
      for (int i = 0; i < 64; i += 8)
        for (int j = 0; j < 4; ++j)
          steps[size_t(i / 8) * step + size_t(j)] =
              uint8_t(best.nibble[i + j] | best.nibble[i + 4 + j] << 4);
      break;
    }
  }
}

}  // namespace

void pack_panels(const Matrix& m, int first, int last, const float* source, const float* importance,
                 uint8_t* out) {
  const int columns = block_columns(m.format);
  std::vector<float> x(columns), w(columns, 1.0f);
  for (int p = first; p < last; ++p) {
    uint8_t* panel = out + size_t(p - first) * m.panel_bytes();
    for (int r = 0; r < m.panel_rows(); ++r) {
      const int row = p * m.panel_rows() + r;
      const size_t at = size_t(r / kRows) * kLine + size_t(r % kRows) * 4;
      for (int b = 0; b < m.blocks(); ++b) {
        const int c0 = b * columns, valid = std::min(columns, m.cols - c0);
        std::fill(x.begin(), x.end(), 0.0f);
        if (row < m.rows) std::memcpy(x.data(), source + size_t(row) * m.cols + c0, sizeof(float) * valid);
        if (importance) {
          std::fill(w.begin(), w.end(), 0.0f);
          std::memcpy(w.data(), importance + c0, sizeof(float) * valid);
        }
        pack_block(m, x.data(), w.data(), valid, panel + size_t(b) * m.block_bytes() + at);
      }
    }
  }
}

}  // namespace wkv::engine
