// simd.h for AVX-512 (F, BW, DQ, VL).
#pragma once

namespace zoo::ZOO_CPU {

struct Vec {
  static constexpr int kSize = 16;
  using Scalar = float;
  __m512 v;

  static ZOO_INLINE Vec set(float x) { return {_mm512_set1_ps(x)}; }
};

ZOO_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// If one is NaN, the result is b.
ZOO_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
ZOO_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
ZOO_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
ZOO_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }

ZOO_INLINE Vec round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// p 2^n, where n = round(x).
ZOO_INLINE Vec scale(Vec p, Vec n, Vec) { return {_mm512_scalef_ps(p.v, n.v)}; }

ZOO_INLINE __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

ZOO_INLINE Vec widen(__m256i x, BFloat16) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))};
}

ZOO_INLINE Vec widen(__m256i x, Float16) { return {_mm512_cvtph_ps(x)}; }

ZOO_INLINE __m256i narrow(Vec a, BFloat16) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

ZOO_INLINE __m256i narrow(Vec a, Float16) {
  return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

ZOO_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
ZOO_INLINE void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
ZOO_INLINE Vec load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
ZOO_INLINE void store(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, first(n), a.v); }

template <class Half>
ZOO_INLINE Vec load(const Half* p) {
  return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), Half{});
}

template <class Half>
ZOO_INLINE void store(Half* p, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(a, Half{}));
}

template <class Half>
ZOO_INLINE Vec load(const Half* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(first(n), p), Half{});
}

template <class Half>
ZOO_INLINE void store(Half* p, Vec a, int n) {
  _mm256_mask_storeu_epi16(p, first(n), narrow(a, Half{}));
}

ZOO_INLINE Vec reversed(Vec a) {
  const __m512i order = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return {_mm512_permutexvar_ps(order, a.v)};
}

ZOO_INLINE Vec reduce4(Vec a, Vec b, Vec c, Vec d) {
  const __m512 ab = _mm512_unpacklo_ps(a.v, b.v) + _mm512_unpackhi_ps(a.v, b.v);  // a b a b
  const __m512 cd = _mm512_unpacklo_ps(c.v, d.v) + _mm512_unpackhi_ps(c.v, d.v);
  return {_mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee)};
}

ZOO_INLINE void add_fold4(float* p, Vec a) {
  const __m256 half = _mm512_castps512_ps256(a.v) + _mm512_extractf32x8_ps(a.v, 1);
  const __m128 quarter = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
  _mm_storeu_ps(p, _mm_loadu_ps(p) + quarter);
}

ZOO_INLINE void transpose(Vec (&rows)[16]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {  // four rows to columns inside each 128-bit lane
    b[i] = _mm512_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm512_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm512_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {  // then the 4 x 4 lanes
    const __m512 even_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x88);
    const __m512 odd_low = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xdd);
    rows[i].v = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    rows[i + 4].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    rows[i + 8].v = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    rows[i + 12].v = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
}

}  // namespace zoo::ZOO_CPU
