// The reference: plain loops over 16 lanes, whatever the compiler makes of them.
// F = 16 floats, I = 16 int32, W = one 64-byte line of weights, X = 32 bits of activations.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kTile = 1;
struct F { float v[16]; };
struct I { int32_t v[16]; };
struct W { uint8_t v[64]; };
struct X { int8_t v[4]; };

#define WKV_EACH(type, expression)                    \
  {                                                   \
    type r;                                           \
    for (int i = 0; i < 16; ++i) r.v[i] = expression; \
    return r;                                         \
  }
inline F set1(float x) WKV_EACH(F, x)
inline F zero() { return set1(0); }
inline F load(const float* p) WKV_EACH(F, p[i])
inline void store(float* p, const F& x) { std::memcpy(p, x.v, sizeof x.v); }
inline F load_n(const float* p, int n) WKV_EACH(F, i < n ? p[i] : 0.0f)
inline void store_n(float* p, const F& x, int n) {
  for (int i = 0; i < n && i < 16; ++i) p[i] = x.v[i];
}
inline F keep_n(const F& x, int n) WKV_EACH(F, i < n ? x.v[i] : 0.0f)
inline F add(const F& a, const F& b) WKV_EACH(F, a.v[i] + b.v[i])
inline F sub(const F& a, const F& b) WKV_EACH(F, a.v[i] - b.v[i])
inline void prefetch(const uint8_t* p) { __builtin_prefetch(p); }
inline void keep(F&) {}
inline F mul(const F& a, const F& b) WKV_EACH(F, a.v[i] * b.v[i])
inline F div(const F& a, const F& b) WKV_EACH(F, a.v[i] / b.v[i])
inline F max(const F& a, const F& b) WKV_EACH(F, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
inline F min(const F& a, const F& b) WKV_EACH(F, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
inline F abs(const F& a) WKV_EACH(F, std::fabs(a.v[i]))
inline F fma(const F& a, const F& b, const F& c) WKV_EACH(F, a.v[i] * b.v[i] + c.v[i])
inline F select_ge(const F& d, const F& yes, const F& no) WKV_EACH(F, d.v[i] >= 0 ? yes.v[i] : no.v[i])
// Adding and taking away 1.5·2²³ rounds to the nearest even for |a| < 2²².
inline F round(const F& a) WKV_EACH(F, (a.v[i] + 12582912.0f) - 12582912.0f)
inline I to_int(const F& a) {
  const F n = round(a);
  WKV_EACH(I, int32_t(n.v[i]))
}
inline F to_float(const I& a) WKV_EACH(F, float(a.v[i]))
inline F pow2(const F& n) {
  const I e = to_int(n);
  F r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = uint32_t(e.v[i] + 127) << 23;
    std::memcpy(&r.v[i], &bits, 4);
  }
  return r;
}
inline float sum(const F& a) {
  float t = 0;
  for (float x : a.v) t += x;
  return t;
}
inline float highest(const F& a) {
  float t = a.v[0];
  for (float x : a.v) t = x > t ? x : t;
  return t;
}
inline I izero() WKV_EACH(I, 0)
inline I iadd(const I& a, const I& b) WKV_EACH(I, a.v[i] + b.v[i])
inline int isum(const I& a) {
  int t = 0;
  for (int x : a.v) t += x;
  return t;
}
inline void store_int8(int8_t* p, const I& a) {
  for (int i = 0; i < 16; ++i) p[i] = int8_t(a.v[i]);
}

inline W line(const uint8_t* p) {
  W r;
  std::memcpy(r.v, p, 64);
  return r;
}
inline X group(const void* p) {
  X r;
  std::memcpy(r.v, p, 4);
  return r;
}
inline float float_of(uint32_t bits) {
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
inline uint32_t lane(const W& w, int i) {
  uint32_t u;
  std::memcpy(&u, w.v + 4 * i, 4);
  return u;
}
inline F as_float(const W& w) WKV_EACH(F, float_of(lane(w, i)))
inline F low_half(const W& w) WKV_EACH(F, float_of(lane(w, i) << 16))
inline F high_half(const W& w) WKV_EACH(F, float_of(lane(w, i) & 0xffff0000u))
inline I start_q8(int32_t minus_128_sum) WKV_EACH(I, minus_128_sum)
inline I dot_u4(const I& acc, const W& w, X x)
    WKV_EACH(I, acc.v[i] + w.v[4 * i] * x.v[0] + w.v[4 * i + 1] * x.v[1] + w.v[4 * i + 2] * x.v[2] +
                    w.v[4 * i + 3] * x.v[3])
inline I dot_q8(const I& acc, const W& w, X x) { return dot_u4(acc, w, x); }
inline W low(W w) {
  for (auto& b : w.v) b &= 15;
  return w;
}
inline W high(W w) {
  for (auto& b : w.v) b >>= 4;
  return w;
}
struct Nibbles {
  I acc = izero();
  void add(const W& w, X x0, X x1) { acc = dot_u4(dot_u4(acc, low(w), x0), high(w), x1); }
  I total() const { return acc; }
};
#undef WKV_EACH

}  // namespace
