// The body of every kernels_*.cpp, over the sixteen-lane types of one simd_*.hpp. Included exactly
// once a translation unit, after that header; nothing here may pull in templates of the standard
// library, whose copies the linker would merge across instruction sets.

namespace {

using wkv::engine::Format;
using wkv::engine::Layout;
using wkv::engine::Matrix;
using wkv::engine::WkvRow;

#define WKV_UNROLL _Pragma("GCC unroll 16")

struct Strides {
  size_t next;   // from a 16-row group to the next one of the tile
  size_t step, block;
  int blocks;
};

const int32_t* ints(const uint8_t* x, size_t at) { return reinterpret_cast<const int32_t*>(x + at); }
const float* floats(const uint8_t* x, size_t at) { return reinterpret_cast<const float*>(x + at); }

// --- tiles: P groups of 16 rows × T tokens -> y [P][T] ------------------------------------------

template <int P, int T>
inline void tile_f32(const uint8_t* w, const Strides& s, const uint8_t* x, const Layout& l, F (&y)[P][T]) {
  WKV_UNROLL for (int p = 0; p < P; ++p)
    WKV_UNROLL for (int t = 0; t < T; ++t) y[p][t] = zero();
  const int steps = s.blocks * 64;
  for (int j = 0; j < steps; ++j, w += s.step, x += 4) {
    F v[P];
    WKV_UNROLL for (int p = 0; p < P; ++p) v[p] = as_float(line(w + size_t(p) * s.next));
    WKV_UNROLL for (int t = 0; t < T; ++t) {
      const F a = set1(*floats(x, size_t(t) * l.bytes));
      WKV_UNROLL for (int p = 0; p < P; ++p) y[p][t] = fma(v[p], a, y[p][t]);
    }
  }
}

template <int P, int T>
inline void tile_bf16(const uint8_t* w, const Strides& s, const uint8_t* x, const Layout& l, F (&y)[P][T]) {
  WKV_UNROLL for (int p = 0; p < P; ++p)
    WKV_UNROLL for (int t = 0; t < T; ++t) y[p][t] = zero();
  const int steps = s.blocks * 32;
  for (int j = 0; j < steps; ++j, w += s.step, x += 4) {
    W v[P];
    WKV_UNROLL for (int p = 0; p < P; ++p) v[p] = line(w + size_t(p) * s.next);
    WKV_UNROLL for (int t = 0; t < T; ++t) {
      const X a = group(x + size_t(t) * l.bytes);
      WKV_UNROLL for (int p = 0; p < P; ++p) y[p][t] = dot_bf16(y[p][t], v[p], a);
    }
  }
}

// y += scale_w · (scale_x · Σ (w − 128)·x), block by block.
inline void finish_q8(F& y, I sum, const uint8_t* header, float scale) {
  y = fma(load(reinterpret_cast<const float*>(header)), mul(to_float(sum), set1(scale)), y);
}

template <int P, int T>
inline void tile_q8(const uint8_t* w, const Strides& s, const uint8_t* x, const Layout& l, F (&y)[P][T]) {
  WKV_UNROLL for (int p = 0; p < P; ++p)
    WKV_UNROLL for (int t = 0; t < T; ++t) y[p][t] = zero();
  for (int b = 0; b < s.blocks; ++b, w += s.block) {
    I sum[P][T];
    WKV_UNROLL for (int t = 0; t < T; ++t)
      WKV_UNROLL for (int p = 0; p < P; ++p) sum[p][t] = start_q8(ints(x + size_t(t) * l.bytes, l.start) + b);
    const uint8_t* q = x + size_t(b) * 128;
    const uint8_t* v = w + s.step;
    _Pragma("GCC unroll 2") for (int j = 0; j < 32; ++j, v += s.step, q += 4) {
      W u[P];
      WKV_UNROLL for (int p = 0; p < P; ++p) u[p] = line(v + size_t(p) * s.next);
      WKV_UNROLL for (int t = 0; t < T; ++t) {
        const X a = group(q + size_t(t) * l.bytes);
        WKV_UNROLL for (int p = 0; p < P; ++p) sum[p][t] = dot_q8(sum[p][t], u[p], a);
      }
    }
    WKV_UNROLL for (int t = 0; t < T; ++t)
      WKV_UNROLL for (int p = 0; p < P; ++p)
        finish_q8(y[p][t], sum[p][t], w + size_t(p) * s.next, floats(x + size_t(t) * l.bytes, l.scale)[b]);
  }
}

// y += scale_w · (scale_x · Σ q·x) + offset_w · (scale_x · Σx), block by block.
inline void finish_q4(F& y, I sum, const uint8_t* header, float scale, float off) {
  const W pair = line(header);
  y = fma(pair_scale(pair), mul(to_float(sum), set1(scale)), y);
  y = fma(pair_offset(pair), set1(off), y);
}

template <int P, int T>
inline void tile_q4(const uint8_t* w, const Strides& s, const uint8_t* x, const Layout& l, F (&y)[P][T]) {
  WKV_UNROLL for (int p = 0; p < P; ++p)
    WKV_UNROLL for (int t = 0; t < T; ++t) y[p][t] = zero();
  for (int b = 0; b < s.blocks; ++b, w += s.block) {
    const uint8_t* q = x + size_t(b) * 64;
    const uint8_t* v = w + s.step;
    I sum[P][T];
    if constexpr (T == 1) {
      Nibbles n[P];
      WKV_UNROLL for (int j = 0; j < 8; ++j, v += s.step, q += 8) {
        const X x0 = group(q), x1 = group(q + 4);
        WKV_UNROLL for (int p = 0; p < P; ++p) n[p].add(line(v + size_t(p) * s.next), x0, x1);
      }
      WKV_UNROLL for (int p = 0; p < P; ++p) sum[p][0] = n[p].total();
    } else {
      WKV_UNROLL for (int t = 0; t < T; ++t)
        WKV_UNROLL for (int p = 0; p < P; ++p) sum[p][t] = izero();
      for (int j = 0; j < 8; ++j, v += s.step, q += 8) {
        W u[P];
        WKV_UNROLL for (int p = 0; p < P; ++p) u[p] = line(v + size_t(p) * s.next);
        W part[P];
        WKV_UNROLL for (int p = 0; p < P; ++p) part[p] = low(u[p]);
        WKV_UNROLL for (int t = 0; t < T; ++t) {
          const X a = group(q + size_t(t) * l.bytes);
          WKV_UNROLL for (int p = 0; p < P; ++p) sum[p][t] = dot_u4(sum[p][t], part[p], a);
        }
        WKV_UNROLL for (int p = 0; p < P; ++p) part[p] = high(u[p]);
        WKV_UNROLL for (int t = 0; t < T; ++t) {
          const X a = group(q + 4 + size_t(t) * l.bytes);
          WKV_UNROLL for (int p = 0; p < P; ++p) sum[p][t] = dot_u4(sum[p][t], part[p], a);
        }
      }
    }
    WKV_UNROLL for (int t = 0; t < T; ++t)
      WKV_UNROLL for (int p = 0; p < P; ++p)
        finish_q4(y[p][t], sum[p][t], w + size_t(p) * s.next,
                  floats(x + size_t(t) * l.bytes, l.scale)[b], floats(x + size_t(t) * l.bytes, l.off)[b]);
  }
}

template <Format Fm, int P, int T>
__attribute__((noinline)) void tile(const uint8_t* w, const Strides& s, const uint8_t* x, const Layout& l,
                                    int rows, float* out, size_t out_stride) {
  F y[P][T];
  if constexpr (Fm == Format::f32) tile_f32<P, T>(w, s, x, l, y);
  else if constexpr (Fm == Format::bf16) tile_bf16<P, T>(w, s, x, l, y);
  else if constexpr (Fm == Format::q8) tile_q8<P, T>(w, s, x, l, y);
  else tile_q4<P, T>(w, s, x, l, y);
  for (int p = 0; p < P; ++p)
    if (rows > p * 16)
      for (int t = 0; t < T; ++t) store_n(out + size_t(t) * out_stride + p * 16, y[p][t], rows - p * 16);
}

template <Format Fm, int P>
void tiles(const uint8_t* w, const Strides& s, const uint8_t* x, const Layout& l, int tokens, int rows,
           float* out, size_t out_stride) {
  const auto run = [&]<int T>() {
    tile<Fm, P, T>(w, s, x, l, rows, out, out_stride);
    x += T * l.bytes;
    out += T * out_stride;
    tokens -= T;
  };
  if constexpr (kTile >= 12) {
    while (tokens >= 12 && tokens != 16 && tokens != 13) run.template operator()<12>();
    while (tokens >= 8) run.template operator()<8>();
    if (tokens >= 6) run.template operator()<6>();
    if (tokens >= 4) run.template operator()<4>();
  }
  if constexpr (kTile >= 3)
    while (tokens >= 3) run.template operator()<3>();
  if constexpr (kTile >= 2)
    while (tokens >= 2) run.template operator()<2>();
  while (tokens >= 1) run.template operator()<1>();
}

template <Format Fm>
void matmul_as(const Matrix& m, int first, int last, const uint8_t* x, const Layout& l, int tokens,
               float* out, size_t out_stride) {
  const size_t panel = m.panel_bytes();
  Strides s{size_t(wkv::engine::kLine), m.step_bytes(), m.block_bytes(), m.blocks()};
  for (int p = first; p < last;) {
    const uint8_t* w = m.data + size_t(p) * panel;
    const int row = p * m.panel_rows(), rows = m.rows - row;
    if (m.lanes == 4) {
      if (tokens == 1) {
        tile<Fm, 4, 1>(w, s, x, l, rows, out + row, out_stride);
      } else {
        tiles<Fm, 2>(w, s, x, l, tokens, rows, out + row, out_stride);
        if (rows > 32) tiles<Fm, 2>(w + 128, s, x, l, tokens, rows - 32, out + row + 32, out_stride);
      }
      p += 1;
    } else if (tokens > 1 && p + 1 < last) {
      s.next = panel;
      tiles<Fm, 2>(w, s, x, l, tokens, rows, out + row, out_stride);
      p += 2;
    } else {
      tiles<Fm, 1>(w, s, x, l, tokens, rows, out + row, out_stride);
      p += 1;
    }
  }
}

void matmul(const Matrix& m, int first, int last, const uint8_t* x, const Layout& l, int tokens,
            float* out, size_t out_stride) {
  switch (m.format) {
    case Format::f32: return matmul_as<Format::f32>(m, first, last, x, l, tokens, out, out_stride);
    case Format::bf16: return matmul_as<Format::bf16>(m, first, last, x, l, tokens, out, out_stride);
    case Format::q8: return matmul_as<Format::q8>(m, first, last, x, l, tokens, out, out_stride);
    case Format::q4: return matmul_as<Format::q4>(m, first, last, x, l, tokens, out, out_stride);
  }
}

// --- one token, zeros skipped -------------------------------------------------------------------

template <Format Fm, int P>
void sparse_panel(const uint8_t* w, const Matrix& m, const uint8_t* x, const Layout& l, int rows, float* out) {
  constexpr int steps = wkv::engine::block_steps(Fm), header = wkv::engine::block_header(Fm);
  constexpr int bytes = Fm == Format::q4 ? 8 : 4;  // of the inputs of one step
  const size_t step = m.step_bytes(), block = m.block_bytes();
  F y[P];
  WKV_UNROLL for (int p = 0; p < P; ++p) y[p] = zero();
  for (int b = 0; b < l.blocks; ++b, w += block) {
    const int count = (x + l.counts)[b];
    if (count == 0) continue;
    const uint8_t* list = x + l.steps + size_t(b) * steps;
    const uint8_t* q = x + size_t(b) * steps * bytes;
    const uint8_t* v = w + header * step;
    I sum[P];
    Nibbles n[P];
    if constexpr (Fm == Format::q8)
      WKV_UNROLL for (int p = 0; p < P; ++p) sum[p] = start_q8(ints(x, l.start) + b);
    for (int i = 0; i < count; ++i) {
      const uint8_t* at = v + list[i] * step;
      const uint8_t* a = q + list[i] * bytes;
      WKV_UNROLL for (int p = 0; p < P; ++p) {
        const W u = line(at + p * 64);
        if constexpr (Fm == Format::f32) y[p] = fma(as_float(u), set1(*floats(a, 0)), y[p]);
        else if constexpr (Fm == Format::bf16) y[p] = dot_bf16(y[p], u, group(a));
        else if constexpr (Fm == Format::q8) sum[p] = dot_q8(sum[p], u, group(a));
        else n[p].add(u, group(a), group(a + 4));
      }
    }
    WKV_UNROLL for (int p = 0; p < P; ++p) {
      if constexpr (Fm == Format::q8) finish_q8(y[p], sum[p], w + p * 64, floats(x, l.scale)[b]);
      if constexpr (Fm == Format::q4)
        finish_q4(y[p], n[p].total(), w + p * 64, floats(x, l.scale)[b], floats(x, l.off)[b]);
    }
  }
  for (int p = 0; p < P; ++p)
    if (rows > p * 16) store_n(out + p * 16, y[p], rows - p * 16);
}

template <Format Fm>
void sparse_as(const Matrix& m, int first, int last, const uint8_t* x, const Layout& l, float* out) {
  for (int p = first; p < last; ++p) {
    const uint8_t* w = m.data + size_t(p) * m.panel_bytes();
    const int row = p * m.panel_rows();
    if (m.lanes == 4) sparse_panel<Fm, 4>(w, m, x, l, m.rows - row, out + row);
    else sparse_panel<Fm, 1>(w, m, x, l, m.rows - row, out + row);
  }
}

void matvec_sparse(const Matrix& m, int first, int last, const uint8_t* x, const Layout& l, float* out) {
  switch (m.format) {
    case Format::f32: return sparse_as<Format::f32>(m, first, last, x, l, out);
    case Format::bf16: return sparse_as<Format::bf16>(m, first, last, x, l, out);
    case Format::q8: return sparse_as<Format::q8>(m, first, last, x, l, out);
    case Format::q4: return sparse_as<Format::q4>(m, first, last, x, l, out);
  }
}

// --- inputs of products -------------------------------------------------------------------------

void quantize(const float* x, const Layout& l, uint8_t* out) {
  const int per = wkv::engine::block_columns(l.format), n = l.cols;
  for (int b = 0; b < l.blocks; ++b) {
    const int c0 = b * per;
    F v[8];
    for (int i = 0; i < per; i += 16) {
      const int left = n - c0 - i;
      v[i / 16] = left > 0 ? load_n(x + c0 + i, left) : zero();
    }
    if (l.format == Format::f32) {
      for (int i = 0; i < per; i += 16) store(reinterpret_cast<float*>(out) + c0 + i, v[i / 16]);
    } else if (l.format == Format::bf16) {
      for (int i = 0; i < per; i += 16) store_bf16(reinterpret_cast<uint16_t*>(out) + c0 + i, v[i / 16]);
    } else {
      F most = abs(v[0]), wrong = mul(v[0], zero());
      for (int i = 1; i < per / 16; ++i) {
        most = max(most, abs(v[i]));
        wrong = fma(v[i], zero(), wrong);  // NaN if anything is not finite
      }
      const float top = highest(most), bad = sum(wrong);
      // Below this the inverse would overflow; such inputs are zero to any product.
      const bool some = top > 1e-30f;
      const F inverse = set1(some ? 127.0f / top : 0.0f), edge = set1(127.0f), floor = set1(-127.0f);
      const float scale = (some ? top / 127.0f : 0.0f) + bad;
      I total = izero();
      for (int i = 0; i < per / 16; ++i) {
        const I q = to_int(max(min(mul(v[i], inverse), edge), floor));
        total = iadd(total, q);
        store_int8(reinterpret_cast<int8_t*>(out) + c0 + 16 * i, q);
      }
      const int s = isum(total);
      const_cast<int32_t*>(ints(out, l.start))[b] = -128 * s;
      const_cast<float*>(floats(out, l.scale))[b] = scale;
      const_cast<float*>(floats(out, l.off))[b] = scale * float(s);
    }
  }
}

void relu_squared(const float* x, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const F v = load_n(x + i, n - i), p = max(v, zero());
    store_n(out + i, mul(p, p), n - i);
  }
}

// --- vectors ------------------------------------------------------------------------------------

// e^x to about one unit in the last place (Cephes' polynomial); x is clamped to the finite range.
inline F exp(F x) {
  x = max(min(x, set1(88.0f)), set1(-87.0f));
  const F n = round(mul(x, set1(1.44269504088896341f)));
  F r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  F p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return mul(p, pow2(n));
}

inline F sigmoid(F x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int n, float* out) {
  F total = zero();
  for (int i = 0; i < n; i += 16) total = add(total, load_n(x + i, n - i));
  const F mean = set1(sum(total) / float(n));
  F squares = zero();
  for (int i = 0; i < n; i += 16) {
    const F d = keep_n(sub(load_n(x + i, n - i), mean), n - i);
    squares = fma(d, d, squares);
  }
  const F scale = set1(1.0f / __builtin_sqrtf(sum(squares) / float(n) + eps));
  for (int i = 0; i < n; i += 16) {
    const F d = mul(sub(load_n(x + i, n - i), mean), scale);
    store_n(out + i, fma(d, load_n(weight + i, n - i), load_n(bias + i, n - i)), n - i);
  }
}

void mix(const float* x, const float* previous, const float* mu, int n, float* out) {
  for (int i = 0; i < n; i += 16) {
    const F p = load_n(previous + i, n - i);
    store_n(out + i, fma(load_n(mu + i, n - i), sub(load_n(x + i, n - i), p), p), n - i);
  }
}

void add_to(float* x, const float* y, int n) {
  for (int i = 0; i < n; i += 16) store_n(x + i, add(load_n(x + i, n - i), load_n(y + i, n - i)), n - i);
}

void add_gated(float* x, const float* gate, const float* y, int n) {
  for (int i = 0; i < n; i += 16)
    store_n(x + i, fma(sigmoid(load_n(gate + i, n - i)), load_n(y + i, n - i), load_n(x + i, n - i)), n - i);
}

bool finite(const float* x, int n) {
  F wrong = zero();
  for (int i = 0; i < n; i += 16) wrong = fma(load_n(x + i, n - i), zero(), wrong);
  return sum(wrong) == 0.0f;
}

void wkv_rows(const float* k, const float* v, float* r, size_t stride, int tokens, int channels,
              const float* decay, const float* first, const WkvRow& state) {
  for (int c = 0; c < channels; c += 16) {
    const int n = channels - c;
    F a = load_n(state.num_in + c, n), b = load_n(state.den_in + c, n), p = load_n(state.max_in + c, n);
    const F w = load_n(decay + c, n), u = load_n(first + c, n), one = set1(1.0f);
    for (int t = 0; t < tokens; ++t) {
      const size_t at = size_t(t) * stride + size_t(c);
      const F kt = load_n(k + at, n), vt = load_n(v + at, n);
      // One of the two exponentials of a maximum is always 1: e^(−|difference|) is the other.
      const F bonus = add(u, kt), d0 = sub(p, bonus), e0 = exp(min(d0, sub(zero(), d0)));
      const F old0 = select_ge(d0, one, e0), new0 = select_ge(d0, e0, one);
      const F y = div(fma(old0, a, mul(new0, vt)), fma(old0, b, new0));
      store_n(r + at, mul(sigmoid(load_n(r + at, n)), y), n);
      const F faded = add(p, w), d1 = sub(faded, kt), e1 = exp(min(d1, sub(zero(), d1)));
      const F old1 = select_ge(d1, one, e1), new1 = select_ge(d1, e1, one);
      a = fma(old1, a, mul(new1, vt));
      b = fma(old1, b, new1);
      p = max(faded, kt);
    }
    store_n(state.num + c, a, n);
    store_n(state.den + c, b, n);
    store_n(state.max + c, p, n);
  }
}

// --- measuring ----------------------------------------------------------------------------------

uint64_t read_all(const uint8_t* data, size_t bytes) {
  I total[8];
  for (auto& t : total) t = izero();
  for (size_t i = 0; i + 512 <= bytes; i += 512)
    WKV_UNROLL for (int j = 0; j < 8; ++j) {
      I v;
      const W w = line(data + i + size_t(j) * 64);
      __builtin_memcpy(&v, &w, sizeof v);
      total[j] = iadd(total[j], v);
    }
  for (int j = 1; j < 8; ++j) total[0] = iadd(total[0], total[j]);
  return uint64_t(uint32_t(isum(total[0])));
}

template <class T>
inline void opaque(T& x) {
  __asm__ volatile("" : "+m"(x));
}

double peak(Format f, long rounds) {
  alignas(64) uint8_t bytes[64];
  for (auto& b : bytes) b = 1;
  W w = line(bytes);
  X x = group(bytes);
  opaque(w);
  opaque(x);
  constexpr int n = kTile >= 12 ? 16 : kTile >= 2 ? 6 : 1;
  F y[n];
  I s[n];
  for (int i = 0; i < n; ++i) {
    y[i] = zero();
    s[i] = izero();
  }
  const F wf = as_float(w), one = set1(1.0f);
  for (long r = 0; r < rounds; ++r) {
    if (f == Format::f32) {
      WKV_UNROLL for (int i = 0; i < n; ++i) y[i] = fma(wf, one, y[i]);
    } else if (f == Format::bf16) {
      WKV_UNROLL for (int i = 0; i < n; ++i) y[i] = dot_bf16(y[i], w, x);
    } else {
      WKV_UNROLL for (int i = 0; i < n; ++i) s[i] = dot_u4(s[i], w, x);
    }
    __asm__ volatile("" ::: "memory");
  }
  for (int i = 0; i < n; ++i) {
    opaque(y[i]);
    opaque(s[i]);
  }
  const double each = f == Format::f32 ? 32 : f == Format::bf16 ? 64 : 128;
  return double(rounds) * n * each;
}

#undef WKV_UNROLL

}  // namespace

#define WKV_KERNELS(symbol, name)                                                                  \
  namespace wkv::engine {                                                                          \
  extern const Kernels symbol;                                                                     \
  const Kernels symbol = {name,     matmul, matvec_sparse, quantize, relu_squared, layer_norm, mix, \
                          add_to,   add_gated, finite,     wkv_rows, read_all,     peak};          \
  }
