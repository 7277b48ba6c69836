// AVX2 and FMA; with WKV_AVX_VNNI also the VEX-encoded VNNI of recent client CPUs.
// F = 16 floats, I = 16 int32, W = one 64-byte line of weights, X = 32 bits of activations.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kTile = 3;  // 12 of the 16 registers accumulate
struct F { __m256 a, b; };
struct I { __m256i a, b; };
using W = I;
using X = __m256i;

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
inline F load_n(const float* p, int n) {
  if (n >= 16) return load(p);
  float t[16] = {};
  std::memcpy(t, p, sizeof(float) * unsigned(n));
  return load(t);
}
inline void store_n(float* p, F x, int n) {
  if (n >= 16) return store(p, x);
  float t[16];
  store(t, x);
  std::memcpy(p, t, sizeof(float) * unsigned(n));
}
// A prefetch that the compiler takes for arithmetic: the builtin counts as an access to any memory, and
// sums would be stored before each.
inline void prefetch(const uint8_t* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
inline void keep(F&) {}
inline F keep_n(F x, int n) {
  if (n >= 16) return x;
  float t[16];
  store(t, x);
  return load_n(t, n);
}
#define WKV_BOTH(name, op) \
  inline F name(F x, F y) { return {op(x.a, y.a), op(x.b, y.b)}; }
WKV_BOTH(add, _mm256_add_ps)
WKV_BOTH(sub, _mm256_sub_ps)
WKV_BOTH(mul, _mm256_mul_ps)
WKV_BOTH(div, _mm256_div_ps)
WKV_BOTH(max, _mm256_max_ps)
WKV_BOTH(min, _mm256_min_ps)
#undef WKV_BOTH
inline F abs(F x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F select_ge(F d, F yes, F no) {  // d ≥ 0 ? yes : no
  const __m256 z = _mm256_setzero_ps();
  return {_mm256_blendv_ps(no.a, yes.a, _mm256_cmp_ps(d.a, z, _CMP_GE_OQ)),
          _mm256_blendv_ps(no.b, yes.b, _mm256_cmp_ps(d.b, z, _CMP_GE_OQ))};
}
inline F round(F x) {
  constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, mode), _mm256_round_ps(x.b, mode)};
}
inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline F pow2(F n) {
  const I i = to_int(n);
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i.a, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i.b, bias), 23))};
}
inline float sum(F x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float highest(F x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  q = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}
inline I izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline I iadd(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
inline int isum(I x) {
  const __m256i s = _mm256_add_epi32(x.a, x.b);
  __m128i q = _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
  q = _mm_add_epi32(q, _mm_shuffle_epi32(q, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}
inline void store_int8(int8_t* p, I x) {
  const __m128i a = _mm_packs_epi32(_mm256_castsi256_si128(x.a), _mm256_extracti128_si256(x.a, 1));
  const __m128i b = _mm_packs_epi32(_mm256_castsi256_si128(x.b), _mm256_extracti128_si256(x.b, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(a, b));
}

inline W line(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
inline X group(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm256_set1_epi32(x);
}
inline F as_float(W w) { return {_mm256_castsi256_ps(w.a), _mm256_castsi256_ps(w.b)}; }

// A lane's two bfloat16 halves as float32.
inline F low_half(W w) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(w.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(w.b, 16))};
}
inline F high_half(W w) {
  const __m256i mask = _mm256_set1_epi32(int(0xffff0000));
  return {_mm256_castsi256_ps(_mm256_and_si256(w.a, mask)), _mm256_castsi256_ps(_mm256_and_si256(w.b, mask))};
}

#ifdef WKV_AVX_VNNI
inline __m256i dot_us(__m256i acc, __m256i u, __m256i s) { return _mm256_dpbusd_avx_epi32(acc, u, s); }
inline I start_q8(int32_t minus_128_sum) {
  return {_mm256_set1_epi32(minus_128_sum), _mm256_set1_epi32(minus_128_sum)};
}
inline I dot_q8(I acc, W w, X x) { return {dot_us(acc.a, w.a, x), dot_us(acc.b, w.b, x)}; }
#else
// Pairs of products are summed in 16 bits: 2·15·127 and 2·127·127 fit, 2·255·127 would not, so q8
// bytes are made signed and the activation's sign moves to the weight.
inline __m256i dot_us(__m256i acc, __m256i u, __m256i s) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
}
inline I start_q8(int32_t) { return izero(); }
inline I dot_q8(I acc, W w, X x) {
  const __m256i flip = _mm256_set1_epi8(char(0x80)), u = _mm256_abs_epi8(x);
  return {dot_us(acc.a, u, _mm256_sign_epi8(_mm256_xor_si256(w.a, flip), x)),
          dot_us(acc.b, u, _mm256_sign_epi8(_mm256_xor_si256(w.b, flip), x))};
}
#endif
inline W low(W w) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(w.a, mask), _mm256_and_si256(w.b, mask)};
}
inline W high(W w) { return low({_mm256_srli_epi16(w.a, 4), _mm256_srli_epi16(w.b, 4)}); }
inline I dot_u4(I acc, W nibbles, X x) { return {dot_us(acc.a, nibbles.a, x), dot_us(acc.b, nibbles.b, x)}; }
struct Nibbles {
  I acc = izero();
  void add(W w, X x0, X x1) { acc = dot_u4(dot_u4(acc, low(w), x0), high(w), x1); }
  I total() const { return acc; }
};

}  // namespace
