// AVX-512 F/BW/DQ/VL with VNNI. F = 16 floats, I = 16 int32, W = one 64-byte line of
// weights, X = one 32-bit group of activations for every row.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kTile = 12;  // tokens of a register tile of two 16-row groups: 24 accumulators of 32
using F = __m512;
// Of the element type that the products have: with __m512i, of eight 64-bit lanes, GCC keeps every
// sum twice and stores one of the two at each step.
typedef int32_t I __attribute__((vector_size(64)));
using W = __m512i;
using X = __m512i;

inline F zero() { return _mm512_setzero_ps(); }
inline F set1(float x) { return _mm512_set1_ps(x); }
inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x); }
inline __mmask16 first(int n) { return __mmask16((1u << n) - 1); }
inline F load_n(const float* p, int n) { return n >= 16 ? load(p) : _mm512_maskz_loadu_ps(first(n), p); }
inline void store_n(float* p, F x, int n) {
  if (n >= 16) store(p, x);
  else _mm512_mask_storeu_ps(p, first(n), x);
}
inline F keep_n(F x, int n) { return n >= 16 ? x : _mm512_maskz_mov_ps(first(n), x); }
inline F add(F a, F b) { return _mm512_add_ps(a, b); }
inline F sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F mul(F a, F b) { return _mm512_mul_ps(a, b); }
// A prefetch that the compiler takes for arithmetic: the builtin counts as an access to any memory, and
// sums would be stored before each.
inline void prefetch(const uint8_t* p) { __asm__ volatile("prefetcht0 (%0)" : : "r"(p)); }
// In a register from here on: GCC would rather make a value again from memory for each use.
inline void keep(F& x) { __asm__("" : "+v"(x)); }
inline F div(F a, F b) { return _mm512_div_ps(a, b); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F abs(F a) { return _mm512_abs_ps(a); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F select_ge(F d, F yes, F no) {  // d ≥ 0 ? yes : no
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(d, _mm512_setzero_ps(), _CMP_GE_OQ), no, yes);
}
inline F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F pow2(F n) {  // 2^n for whole n in [-126, 127]
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}
inline float sum(F a) { return _mm512_reduce_add_ps(a); }
inline float highest(F a) { return _mm512_reduce_max_ps(a); }
inline I to_int(F a) { return I(_mm512_cvtps_epi32(a)); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(__m512i(a)); }
inline I izero() { return I{}; }
inline I iadd(I a, I b) { return a + b; }
inline int isum(I a) { return _mm512_reduce_add_epi32(__m512i(a)); }
inline void store_int8(int8_t* p, I a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(__m512i(a)));
}

inline W line(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline X group(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return _mm512_set1_epi32(x);
}
inline F as_float(W w) { return _mm512_castsi512_ps(w); }

// q8: bytes are value + 128; the accumulator starts at −128·Σx so that dot_q8 sums value·x.
inline I start_q8(int32_t minus_128_sum) { return I(_mm512_set1_epi32(minus_128_sum)); }
inline I dot_q8(I acc, W w, X x) { return I(_mm512_dpbusd_epi32(__m512i(acc), w, x)); }

inline W low(W w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
inline W high(W w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
inline I dot_u4(I acc, W nibbles, X x) { return dot_q8(acc, nibbles, x); }
// One token: masking the high nibbles without shifting them counts them 16 times, which is undone
// once a block.
struct Nibbles {
  I lo = izero(), hi = izero();
  void add(W w, X x0, X x1) {
    lo = dot_q8(lo, _mm512_and_si512(w, _mm512_set1_epi8(15)), x0);
    hi = dot_q8(hi, _mm512_and_si512(w, _mm512_set1_epi8(char(0xf0))), x1);
  }
  I total() const { return lo + (hi >> 4); }
};
// A lane's two bfloat16 halves as float32.
inline F low_half(W w) { return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)); }
inline F high_half(W w) {
  return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000))));
}

}  // namespace
