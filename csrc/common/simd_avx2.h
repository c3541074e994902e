// simd.h for AVX2 with FMA and F16C.
#pragma once

namespace zoo::ZOO_CPU {

struct Vec {
  static constexpr int kSize = 8;
  using Scalar = float;
  __m256 v;

  static ZOO_INLINE Vec set(float x) { return {_mm256_set1_ps(x)}; }
};

ZOO_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// If one is NaN, the result is b.
ZOO_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
ZOO_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
ZOO_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }

ZOO_INLINE float sum(Vec a) {
  __m128 x = _mm256_castps256_ps128(a.v) + _mm256_extractf128_ps(a.v, 1);
  x = x + _mm_movehl_ps(x, x);
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

ZOO_INLINE Vec round(Vec a) {
  return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// p 2^n, where n = round(x): as 2 p 2^(n-1), so that n = 128 can be told from infinity. What would be
// a denormal number is 0.
ZOO_INLINE Vec scale(Vec p, Vec n, Vec x) {
  const __m256 in_range = _mm256_min_ps(_mm256_set1_ps(129.0f), n.v);
  const __m256i power = _mm256_slli_epi32(
      _mm256_add_epi32(_mm256_cvtps_epi32(in_range), _mm256_set1_epi32(126)), 23);
  const __m256 y = (p.v + p.v) * _mm256_castsi256_ps(power);
  const __m256 seen = _mm256_cmp_ps(x.v, _mm256_set1_ps(-125.5f), _CMP_NLT_UQ);
  return {_mm256_and_ps(y, seen)};
}

ZOO_INLINE Vec widen(__m128i x, BFloat16) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))};
}

ZOO_INLINE Vec widen(__m128i x, Float16) { return {_mm256_cvtph_ps(x)}; }

ZOO_INLINE __m128i narrow(Vec a, BFloat16) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
  rounded = _mm256_srli_epi32(rounded, 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
}

ZOO_INLINE __m128i narrow(Vec a, Float16) {
  return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

ZOO_INLINE __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

ZOO_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
ZOO_INLINE void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
ZOO_INLINE Vec load(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
ZOO_INLINE void store(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first(n), a.v); }

template <class Half>
ZOO_INLINE Vec load(const Half* p) {
  return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), Half{});
}

template <class Half>
ZOO_INLINE void store(Half* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(a, Half{}));
}

template <class Half>
ZOO_INLINE Vec load(const Half* p, int n) {
  Half all[8] = {};
  memcpy(all, p, n * sizeof(Half));
  return load(all);
}

template <class Half>
ZOO_INLINE void store(Half* p, Vec a, int n) {
  Half all[8];
  store(all, a);
  memcpy(p, all, n * sizeof(Half));
}

ZOO_INLINE Vec reversed(Vec a) {
  return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0))};
}

ZOO_INLINE Vec reduce4(Vec a, Vec b, Vec c, Vec d) {
  const __m256 ab = _mm256_unpacklo_ps(a.v, b.v) + _mm256_unpackhi_ps(a.v, b.v);  // a b a b
  const __m256 cd = _mm256_unpacklo_ps(c.v, d.v) + _mm256_unpackhi_ps(c.v, d.v);
  return {_mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee)};
}

ZOO_INLINE void add_fold4(float* p, Vec a) {
  const __m128 half = _mm256_castps256_ps128(a.v) + _mm256_extractf128_ps(a.v, 1);
  _mm_storeu_ps(p, _mm_loadu_ps(p) + half);
}

ZOO_INLINE void transpose(Vec (&rows)[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {  // four rows to columns inside each 128-bit lane
    b[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
    b[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
    b[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
    b[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
  }
  for (int i = 0; i < 4; i++) {  // then the 2 x 2 lanes
    rows[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    rows[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

}  // namespace zoo::ZOO_CPU
