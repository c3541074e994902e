// simd.h for any processor: vectors of four, which GCC and Clang map to what there is (SSE2, NEON).
#pragma once

namespace zoo::ZOO_CPU {

using Floats = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(16)));

struct Vec {
  static constexpr int kSize = 4;
  using Scalar = float;
  Floats v;

  static ZOO_INLINE Vec set(float x) { return {Floats{x, x, x, x}}; }
};

ZOO_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
// If one is NaN, the result is b.
ZOO_INLINE Vec max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
ZOO_INLINE Vec min(Vec a, Vec b) { return {a.v < b.v ? a.v : b.v}; }
ZOO_INLINE Vec abs(Vec a) { return {reinterpret_cast<Floats>(reinterpret_cast<Ints>(a.v) & 0x7fffffff)}; }
ZOO_INLINE float sum(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

// Adding 1.5 2^23 leaves no room for a fraction. Right for |a| < 2^22; beyond, scale() needs no digits.
ZOO_INLINE Vec round(Vec a) {
  const Vec limit = Vec::set(4194304.0f), magic = Vec::set(12582912.0f);
  const Vec in_range = min(limit, max(Vec{-limit.v}, a));
  return {(in_range.v + magic.v) - magic.v};
}

// p 2^n, where n = round(x): as 2 p 2^(n-1), so that n = 128 can be told from infinity. What would be
// a denormal number is 0.
ZOO_INLINE Vec scale(Vec p, Vec n, Vec x) {
  const Vec in_range = min(Vec::set(129.0f), max(Vec::set(-125.0f), n));
  const Ints power = (__builtin_convertvector(in_range.v, Ints) + 126) << 23;
  const Floats y = (p.v + p.v) * reinterpret_cast<Floats>(power);
  return {x.v < -125.5f ? Floats{} : y};
}

ZOO_INLINE float widen(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  memcpy(&y, &bits, sizeof y);
  return y;
}

ZOO_INLINE void narrow(float x, BFloat16& y) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  y.bits = x != x ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Half precision by way of a multiplication that moves the exponent, denormal numbers included.
ZOO_INLINE float widen(Float16 x) {
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fff) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  float y;
  memcpy(&y, &magnitude, sizeof y);
  y *= 0x1p112f;
  uint32_t bits;
  memcpy(&bits, &y, sizeof bits);
  if ((x.bits & 0x7c00) == 0x7c00) bits = magnitude | 0x7f800000;  // infinity, NaN
  bits |= sign;
  memcpy(&y, &bits, sizeof y);
  return y;
}

ZOO_INLINE void narrow(float x, Float16& y) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits >= 0x7f800000) {  // infinity, NaN
    y.bits = sign | (bits > 0x7f800000 ? 0x7e00 : 0x7c00);
  } else if (bits >= 0x477ff000) {  // rounds beyond 65504
    y.bits = sign | 0x7c00;
  } else if (bits < 0x38800000) {  // denormal: let the addition round
    float magnitude;
    memcpy(&magnitude, &bits, sizeof bits);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, sizeof bits);
    y.bits = sign | static_cast<uint16_t>(bits - 0x3f000000);
  } else {
    bits += 0xfff + ((bits >> 13) & 1);
    y.bits = sign | static_cast<uint16_t>((bits - 0x38000000) >> 13);
  }
}

ZOO_INLINE float widen(float x) { return x; }
ZOO_INLINE void narrow(float x, float& y) { y = x; }

template <class T>
ZOO_INLINE Vec load(const T* p) {
  return {Floats{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
}

template <class T>
ZOO_INLINE void store(T* p, Vec a) {
  for (int i = 0; i < 4; i++) narrow(a.v[i], p[i]);
}

template <class T>
ZOO_INLINE Vec load(const T* p, int n) {
  Vec a = Vec::set(0.0f);
  for (int i = 0; i < n; i++) a.v[i] = widen(p[i]);
  return a;
}

template <class T>
ZOO_INLINE void store(T* p, Vec a, int n) {
  for (int i = 0; i < n; i++) narrow(a.v[i], p[i]);
}

ZOO_INLINE Vec reversed(Vec a) { return {Floats{a.v[3], a.v[2], a.v[1], a.v[0]}}; }

ZOO_INLINE void transpose(Vec (&rows)[4]) {
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < i; j++) {
      const float x = rows[i].v[j];
      rows[i].v[j] = rows[j].v[i];
      rows[j].v[i] = x;
    }
  }
}

ZOO_INLINE Vec reduce4(Vec a, Vec b, Vec c, Vec d) {
  Vec rows[4] = {a, b, c, d};
  transpose(rows);
  return {(rows[0].v + rows[1].v) + (rows[2].v + rows[3].v)};
}

ZOO_INLINE void add_fold4(float* p, Vec a) { store(p, Vec{load(p).v + a.v}); }

}  // namespace zoo::ZOO_CPU
