// Vectors of WKV_VECTOR_BYTES, in a namespace for each instruction set (WKV_ISA), so that no
// function compiled for one is linked into another. Include only from the per-set files.
// Standard templates are avoided here for the same reason.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __F16C__
#include <immintrin.h>
#endif

#define WKV_INLINE inline __attribute__((always_inline))
#define WKV_INLINE_LAMBDA __attribute__((always_inline))

namespace wkv::WKV_ISA {

template <class R> struct Simd;
template <> struct Simd<float> {
    static constexpr int width = WKV_VECTOR_BYTES / 4;
    typedef float vec __attribute__((vector_size(WKV_VECTOR_BYTES)));
    typedef int32_t ivec __attribute__((vector_size(WKV_VECTOR_BYTES)));
};
template <> struct Simd<double> {
    static constexpr int width = WKV_VECTOR_BYTES / 8;
    typedef double vec __attribute__((vector_size(WKV_VECTOR_BYTES)));
    typedef int64_t ivec __attribute__((vector_size(WKV_VECTOR_BYTES)));
};

using vf = Simd<float>::vec;
using vi = Simd<float>::ivec;
using vd = Simd<double>::vec;
typedef uint32_t vu __attribute__((vector_size(WKV_VECTOR_BYTES)));
typedef uint16_t vh __attribute__((vector_size(WKV_VECTOR_BYTES / 2)));

template <class To, class From> WKV_INLINE To bits(const From& x) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &x, sizeof to);
    return to;
}

WKV_INLINE vf absolute(vf x) { return bits<vf>(bits<vu>(x) & 0x7fffffffu); }
WKV_INLINE vd absolute(vd x) {
    return bits<vd>(bits<Simd<double>::ivec>(x) & int64_t(0x7fffffffffffffff));
}

// e^x for x ≤ 0, within 2 ulp; 0 where the result would be subnormal; NaN stays NaN.
// x = n·ln 2 + r with |r| ≤ ln(2)/2; the rounding constant leaves n + bias in the low bits.
WKV_INLINE vf exp_nonpositive(vf x) {
    x = x < -88.0f ? vf{} - 88.0f : x;
    const vf t = x * 1.44269504f + 12583039.0f;  // 1.5·2^23 + 127
    const vf n = t - 12583039.0f;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf y = r * 1.3814539e-3f + 8.3687454e-3f;  // minimax for (e^r − 1 − r)/r²: 3e-9 of e^r
    y = y * r + 4.1668389e-2f;
    y = y * r + 1.6666521e-1f;
    y = y * r + 4.9999994e-1f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    return y * bits<vf>(bits<vi>(t) << 23);
}

WKV_INLINE vd exp_nonpositive(vd x) {
    x = x < -709.0 ? vd{} - 709.0 : x;
    const vd t = x * 1.4426950408889634 + 6755399441056767.0;  // 1.5·2^52 + 1023
    const vd n = t - 6755399441056767.0;
    vd r = x - n * 6.93145751953125e-1;
    r = r - n * 1.42860682030941723212e-6;
    vd y = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;  // Taylor to r^13
    y = y * r + 1.0 / 39916800.0;
    y = y * r + 1.0 / 3628800.0;
    y = y * r + 1.0 / 362880.0;
    y = y * r + 1.0 / 40320.0;
    y = y * r + 1.0 / 5040.0;
    y = y * r + 1.0 / 720.0;
    y = y * r + 1.0 / 120.0;
    y = y * r + 1.0 / 24.0;
    y = y * r + 1.0 / 6.0;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;
    return y * bits<vd>(bits<Simd<double>::ivec>(t) << 52);
}

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

// The type that arithmetic on E runs in.
template <class E> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };

template <class E> struct Raw { using type = vh; };
template <> struct Raw<float> { using type = vf; };
template <> struct Raw<double> { using type = vd; };

WKV_INLINE vf widen(vf x, float) { return x; }
WKV_INLINE vd widen(vd x, double) { return x; }
WKV_INLINE vf widen(vh x, bf16) { return bits<vf>(__builtin_convertvector(x, vu) << 16); }

WKV_INLINE vf narrow(vf x, float) { return x; }
WKV_INLINE vd narrow(vd x, double) { return x; }
WKV_INLINE vh narrow(vf x, bf16) {
    const vu b = bits<vu>(x);
    vu rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;  // to nearest, ties to even
    rounded = (b & 0x7fffffffu) > 0x7f800000u ? vu{} + 0x7fc0u : rounded;
    return __builtin_convertvector(rounded, vh);
}

#if defined(__AVX512F__)
WKV_INLINE vf widen(vh x, f16) { return bits<vf>(_mm512_cvtph_ps(bits<__m256i>(x))); }
WKV_INLINE vh narrow(vf x, f16) {
    return bits<vh>(_mm512_cvtps_ph(bits<__m512>(x), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
WKV_INLINE vf widen(vh x, f16) { return bits<vf>(_mm256_cvtph_ps(bits<__m128i>(x))); }
WKV_INLINE vh narrow(vf x, f16) {
    return bits<vh>(_mm256_cvtps_ph(bits<__m256>(x), _MM_FROUND_TO_NEAREST_INT));
}
#else
WKV_INLINE vf widen(vh x, f16) {
    const vu h = __builtin_convertvector(x, vu);
    // Scaling by 2^112 moves the exponent's bias and normalises subnormals.
    vu b = bits<vu>(bits<vf>((h & 0x7fffu) << 13) * 0x1p112f);
    b |= (h & 0x7c00u) == 0x7c00u ? vu{} + 0x7f800000u : vu{};
    return bits<vf>(b | (h & 0x8000u) << 16);
}
WKV_INLINE vh narrow(vf x, f16) {
    const vu b = bits<vu>(x) & 0x7fffffffu, sign = (bits<vu>(x) >> 16) & 0x8000u;
    // Adding 0.5 leaves a subnormal's ten bits, rounded to even, at the bottom.
    const vu small = bits<vu>(bits<vf>(b) + 0.5f) - 0x3f000000u;
    const vu normal = (b + 0xc8000fffu + ((b >> 13) & 1u)) >> 13;
    const vu special = b > 0x7f800000u ? vu{} + 0x7e00u : vu{} + 0x7c00u;
    vu h = b < 0x38800000u ? small : normal;
    h = b >= 0x47800000u ? special : h;
    return __builtin_convertvector(h | sign, vh);
}
#endif

// n: how many elements there are when not full; lanes beyond are 0 and are never stored.
template <bool full, class E> WKV_INLINE auto load(const E* from, int n) {
    typename Raw<E>::type raw{};
    if constexpr (full) {
        memcpy(&raw, from, sizeof raw);
    } else {
        memcpy(&raw, from, n * sizeof(E));
    }
    return widen(raw, E{});
}

template <bool full, class E, class V> WKV_INLINE void store(E* to, V x, int n) {
    const auto raw = narrow(x, E{});
    if constexpr (full) {
        memcpy(to, &raw, sizeof raw);
    } else {
        memcpy(to, &raw, n * sizeof(E));
    }
}

}  // namespace wkv::WKV_ISA
