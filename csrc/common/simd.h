// Vectors of floats for the CPU kernels: one interface over AVX-512, AVX2 with FMA and F16C, and plain
// C++ (GCC and Clang vectors of four).
//
// A file that defines ZOO_SIMD_AVX512 or ZOO_SIMD_AVX2 before including this gets that variant, and is
// compiled for such processors from here on. Everything stands in namespace zoo::ZOO_CPU, which is
// different for each variant, because the linker keeps only one of several equal inline functions, and
// it could keep the one this processor cannot run. For the same reason kernel bodies use no templates
// and no inline functions of the standard library.
//
//   Vec                        kSize floats;  Vec::set(x), + - * /, fma(a, b, c) = a b + c, max, min
//   VecD                       one double with the same interface, for checking in float64
//   load(p), store(p, v)       p may be float, BFloat16, Float16 (VecD: double); no alignment needed
//   load(p, n), store(p, v, n) the first n elements only; the rest reads as 0 and is not written
//   exp2, exp                  2 units in the last place, 0 below and infinity above the range
//   softplus, sigmoid, silu    log(1 + e^x), 1 / (1 + e^-x), x sigmoid(x)
//   sum(v)                     over the elements
//   reversed(v)                the elements in the opposite order
//   transpose(rows)            a square of kSize vectors, in place
//   reduce4(a, b, c, d)        element i holds a partial sum of the (i mod 4)-th argument: adding up
//                              the elements with equal i mod 4 completes it, as add_fold4(p, v) does,
//                              which adds the four sums to p[0..3]
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#if defined(ZOO_SIMD_AVX512)
#define ZOO_CPU cpu_avx512
#define ZOO_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#elif defined(ZOO_SIMD_AVX2)
#define ZOO_CPU cpu_avx2
#define ZOO_TARGET "avx2,fma,f16c"
#else
#define ZOO_CPU cpu_default
#endif

#if defined(ZOO_TARGET)
// GCC's own intrinsics leave registers undefined on purpose, and its -Wall finds that.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#define ZOO_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define ZOO_PRAGMA_TARGET(t) \
  ZOO_PRAGMA(clang attribute push(__attribute__((target(t))), apply_to = function))
#else
#define ZOO_PRAGMA_TARGET(t) ZOO_PRAGMA(GCC target(t))
#endif
ZOO_PRAGMA_TARGET(ZOO_TARGET)
#endif

#define ZOO_INLINE inline __attribute__((always_inline))

namespace zoo::ZOO_CPU {

struct BFloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

}  // namespace zoo::ZOO_CPU

#if defined(ZOO_SIMD_AVX512)
#include "common/simd_avx512.h"
#elif defined(ZOO_SIMD_AVX2)
#include "common/simd_avx2.h"
#else
#include "common/simd_portable.h"
#endif

namespace zoo::ZOO_CPU {

ZOO_INLINE Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
ZOO_INLINE Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
ZOO_INLINE Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
ZOO_INLINE Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
ZOO_INLINE Vec operator-(Vec a) { return {-a.v}; }
ZOO_INLINE Vec& operator+=(Vec& a, Vec b) { return a = a + b; }

// 2^x for finite x. x = n + f with |f| <= 1/2, 2^f = 1 + f q(f); error of the polynomial 0.9e-7, none at
// f = 0, so that long products of factors near 1 do not drift.
ZOO_INLINE Vec exp2(Vec x) {
  const Vec n = round(x), f = x - n;
  Vec q = Vec::set(0.001326472731307149f);
  q = fma(q, f, Vec::set(0.009671512991189957f));
  q = fma(q, f, Vec::set(0.05550733581185341f));
  q = fma(q, f, Vec::set(0.24022242426872253f));
  q = fma(q, f, Vec::set(0.6931470036506653f));
  return scale(fma(q, f, Vec::set(1.0f)), n, x);
}

// e^x. x = n log 2 + f, the product in two parts; e^f = 1 + f + f^2 q(f), error 3e-9.
ZOO_INLINE Vec exp(Vec x) {
  x = min(Vec::set(89.0f), max(Vec::set(-104.0f), x));  // infinity, too, has its limit
  const Vec y = x * Vec::set(1.44269504f), n = round(y);
  const Vec f = fma(n, Vec::set(2.12194440e-4f), fma(n, Vec::set(-0.693359375f), x));
  Vec q = Vec::set(0.001381459878757596f);
  q = fma(q, f, Vec::set(0.008368716575205326f));
  q = fma(q, f, Vec::set(0.04166838899254799f));
  q = fma(q, f, Vec::set(0.1666652113199234f));
  q = fma(q, f, Vec::set(0.4999999403953552f));
  return scale(fma(q, f * f, f) + Vec::set(1.0f), n, y);
}

ZOO_INLINE Vec softplus(Vec x) {
  const Vec zero = Vec::set(0.0f);
  const Vec e = exp(zero - abs(x));
  // log(1 + e) = 2 artanh(s), s = e / (2 + e) <= 1/3; error of the polynomial 5e-9.
  const Vec s = e / (e + Vec::set(2.0f)), s2 = s * s;
  Vec q = Vec::set(0.14006005227565765f);
  q = fma(q, s2, Vec::set(0.14000900089740753f));
  q = fma(q, s2, Vec::set(0.2001076340675354f));
  q = fma(q, s2, Vec::set(0.3333320915699005f));
  return max(zero, x) + fma(s2 * q, s + s, s + s);
}

ZOO_INLINE Vec sigmoid(Vec x) {
  const Vec one = Vec::set(1.0f);
  return one / (one + exp(-x));
}

ZOO_INLINE Vec silu(Vec x) { return x * sigmoid(x); }

struct VecD {
  static constexpr int kSize = 1;
  using Scalar = double;
  double v;

  static ZOO_INLINE VecD set(double x) { return {x}; }
};

ZOO_INLINE VecD operator+(VecD a, VecD b) { return {a.v + b.v}; }
ZOO_INLINE VecD operator-(VecD a, VecD b) { return {a.v - b.v}; }
ZOO_INLINE VecD operator*(VecD a, VecD b) { return {a.v * b.v}; }
ZOO_INLINE VecD operator/(VecD a, VecD b) { return {a.v / b.v}; }
ZOO_INLINE VecD operator-(VecD a) { return {-a.v}; }
ZOO_INLINE VecD& operator+=(VecD& a, VecD b) { return a = a + b; }
ZOO_INLINE VecD fma(VecD a, VecD b, VecD c) { return {a.v * b.v + c.v}; }
ZOO_INLINE VecD max(VecD a, VecD b) { return {a.v > b.v ? a.v : b.v}; }
ZOO_INLINE VecD min(VecD a, VecD b) { return {a.v < b.v ? a.v : b.v}; }
ZOO_INLINE VecD load(const double* p) { return {*p}; }
ZOO_INLINE void store(double* p, VecD a) { *p = a.v; }
ZOO_INLINE VecD load(const double* p, int n) { return {n > 0 ? *p : 0.0}; }
ZOO_INLINE void store(double* p, VecD a, int n) {
  if (n > 0) *p = a.v;
}
ZOO_INLINE VecD exp2(VecD x) { return {::exp2(x.v)}; }
ZOO_INLINE VecD exp(VecD x) { return {::exp(x.v)}; }
ZOO_INLINE VecD softplus(VecD x) { return {(x.v > 0 ? x.v : 0.0) + ::log1p(::exp(-::fabs(x.v)))}; }
ZOO_INLINE VecD sigmoid(VecD x) { return {1.0 / (1.0 + ::exp(-x.v))}; }
ZOO_INLINE VecD silu(VecD x) { return x * sigmoid(x); }
ZOO_INLINE double sum(VecD x) { return x.v; }
ZOO_INLINE VecD reversed(VecD x) { return x; }
ZOO_INLINE void transpose(VecD (&)[1]) {}

}  // namespace zoo::ZOO_CPU
