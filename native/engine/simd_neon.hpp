// AArch64 NEON with the dot-product extension (Armv8.2 and later).
// F = 16 floats, I = 16 int32, W = one 64-byte line of weights, X = 32 bits of activations.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

namespace {

constexpr int kTile = 2;  // 16 of the 32 registers accumulate
struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct W { uint8x16_t v[4]; };
using X = int8x16_t;

#define WKV_EACH(expression)                \
  {                                         \
    F r;                                    \
    for (int i = 0; i < 4; ++i) r.v[i] = expression; \
    return r;                               \
  }
inline F set1(float x) WKV_EACH(vdupq_n_f32(x))
inline F zero() { return set1(0); }
inline F load(const float* p) WKV_EACH(vld1q_f32(p + 4 * i))
inline void store(float* p, F x) {
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
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
inline F keep_n(F x, int n) {
  if (n >= 16) return x;
  float t[16];
  store(t, x);
  return load_n(t, n);
}
inline F add(F a, F b) WKV_EACH(vaddq_f32(a.v[i], b.v[i]))
inline F sub(F a, F b) WKV_EACH(vsubq_f32(a.v[i], b.v[i]))
// A prefetch that the compiler takes for arithmetic: the builtin counts as an access to any memory, and
// sums would be stored before each.
inline void prefetch(const uint8_t* p) { __asm__ volatile("prfm pldl1keep, [%0]" : : "r"(p)); }
inline void keep(F&) {}
inline F mul(F a, F b) WKV_EACH(vmulq_f32(a.v[i], b.v[i]))
inline F div(F a, F b) WKV_EACH(vdivq_f32(a.v[i], b.v[i]))
inline F max(F a, F b) WKV_EACH(vmaxq_f32(a.v[i], b.v[i]))
inline F min(F a, F b) WKV_EACH(vminq_f32(a.v[i], b.v[i]))
inline F abs(F a) WKV_EACH(vabsq_f32(a.v[i]))
inline F fma(F a, F b, F c) WKV_EACH(vfmaq_f32(c.v[i], a.v[i], b.v[i]))
inline F select_ge(F d, F yes, F no)  // d ≥ 0 ? yes : no
    WKV_EACH(vbslq_f32(vcgeq_f32(d.v[i], vdupq_n_f32(0)), yes.v[i], no.v[i]))
inline F round(F a) WKV_EACH(vrndnq_f32(a.v[i]))
inline F pow2(F n)
    WKV_EACH(vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23)))
inline float sum(F a) { return vaddvq_f32(vaddq_f32(vaddq_f32(a.v[0], a.v[1]), vaddq_f32(a.v[2], a.v[3]))); }
inline float highest(F a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.v[0], a.v[1]), vmaxq_f32(a.v[2], a.v[3]))); }
inline I to_int(F a) {
  I r;
  for (int i = 0; i < 4; ++i) r.v[i] = vcvtnq_s32_f32(a.v[i]);
  return r;
}
inline F to_float(I a) WKV_EACH(vcvtq_f32_s32(a.v[i]))
inline I izero() { return {{vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)}}; }
inline I iadd(I a, I b) {
  for (int i = 0; i < 4; ++i) a.v[i] = vaddq_s32(a.v[i], b.v[i]);
  return a;
}
inline int isum(I a) { return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3]))); }
inline void store_int8(int8_t* p, I a) {
  const int16x8_t lo = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t hi = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
}

inline W line(const uint8_t* p) {
  W r;
  for (int i = 0; i < 4; ++i) r.v[i] = vld1q_u8(p + 16 * i);
  return r;
}
inline X group(const void* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(x));
}
inline F as_float(W w) WKV_EACH(vreinterpretq_f32_u8(w.v[i]))
inline F low_half(W w) WKV_EACH(vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_u8(w.v[i]), 16)))
inline F high_half(W w)
    WKV_EACH(vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_u8(w.v[i]), vdupq_n_u32(0xffff0000))))
inline I start_q8(int32_t) { return izero(); }
inline I dot_q8(I acc, W w, X x) {
  for (int i = 0; i < 4; ++i)
    acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(veorq_u8(w.v[i], vdupq_n_u8(0x80))), x);
  return acc;
}
inline W low(W w) {
  for (int i = 0; i < 4; ++i) w.v[i] = vandq_u8(w.v[i], vdupq_n_u8(15));
  return w;
}
inline W high(W w) {
  for (int i = 0; i < 4; ++i) w.v[i] = vshrq_n_u8(w.v[i], 4);
  return w;
}
inline I dot_u4(I acc, W nibbles, X x) {
  for (int i = 0; i < 4; ++i) acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(nibbles.v[i]), x);
  return acc;
}
struct Nibbles {
  I acc = izero();
  void add(W w, X x0, X x1) { acc = dot_u4(dot_u4(acc, low(w), x0), high(w), x1); }
  I total() const { return acc; }
};
#undef WKV_EACH

}  // namespace
