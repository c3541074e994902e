// Tiles: the steps of one vector of channels, [step][lane] in accumulator type, read from and written to
// tensors of any strides and number type.
#pragma once

#include "common/simd.h"

namespace zoo::ZOO_CPU {

// One square of load_tile: W steps and W channels.
template <class V, class T>
ZOO_INLINE void load_square(typename V::Scalar* tile, const T* from, int64_t stride_c,
                            bool forward) {
  constexpr int W = V::kSize;
  V rows[W];
  for (int c = 0; c < W; c++) rows[c] = load(from + c * stride_c);
  transpose(rows);
  if (forward) {
    for (int i = 0; i < W; i++) store(tile + i * W, rows[i]);
  } else {
    for (int i = 0; i < W; i++) store(tile + i * W, rows[W - 1 - i]);
  }
}

// tile[s][c] = p[c stride_c + s stride_s] for c < lanes; 0 for the other lanes of the vector.
template <class V, class T>
inline void load_tile(typename V::Scalar* tile, const T* p, int64_t stride_c, int64_t stride_s,
                      int lanes, int steps) {
  constexpr int W = V::kSize;
  if (stride_s == 1 || stride_s == -1) {
    const bool forward = stride_s == 1;
    int s = 0;
    if (lanes == W) {
      for (; s + W <= steps; s += W)
        load_square<V>(tile + s * W, forward ? p + s : p - s - (W - 1), stride_c, forward);
    }
    V rows[W];
    for (; s < steps; s += W) {
      const int n = steps - s < W ? steps - s : W;
      const T* const from = forward ? p + s : p - s - (n - 1);
      for (int c = 0; c < W; c++)
        rows[c] = c < lanes ? load(from + c * stride_c, n) : V::set(0);
      transpose(rows);
      for (int i = 0; i < n; i++) store(tile + (s + i) * W, rows[forward ? i : n - 1 - i]);
    }
  } else if (stride_c == 1 && lanes == W) {
    for (int s = 0; s < steps; s++) store(tile + s * W, load(p + s * stride_s));
  } else if (stride_c == 1) {
    for (int s = 0; s < steps; s++) store(tile + s * W, load(p + s * stride_s, lanes));
  } else {
    T row[W];
    for (int s = 0; s < steps; s++) {
      for (int c = 0; c < lanes; c++) row[c] = p[c * stride_c + s * stride_s];
      store(tile + s * W, load(row, lanes));
    }
  }
}

// One square of store_tile.
template <class V, class T>
ZOO_INLINE void store_square(const typename V::Scalar* tile, T* to, int64_t stride_c,
                             bool forward) {
  constexpr int W = V::kSize;
  V rows[W];
  if (forward) {
    for (int i = 0; i < W; i++) rows[i] = load(tile + i * W);
  } else {
    for (int i = 0; i < W; i++) rows[i] = load(tile + (W - 1 - i) * W);
  }
  transpose(rows);
  for (int c = 0; c < W; c++) store(to + c * stride_c, rows[c]);
}

// The reverse of load_tile. p is not written for lanes beyond `lanes`.
template <class V, class T>
inline void store_tile(const typename V::Scalar* tile, T* p, int64_t stride_c, int64_t stride_s,
                       int lanes, int steps) {
  constexpr int W = V::kSize;
  if (stride_s == 1 || stride_s == -1) {
    const bool forward = stride_s == 1;
    int s = 0;
    if (lanes == W) {
      for (; s + W <= steps; s += W)
        store_square<V>(tile + s * W, forward ? p + s : p - s - (W - 1), stride_c, forward);
    }
    V rows[W];
    for (; s < steps; s += W) {
      const int n = steps - s < W ? steps - s : W;
      for (int i = 0; i < W; i++)
        rows[i] = i < n ? load(tile + (s + (forward ? i : n - 1 - i)) * W) : V::set(0);
      transpose(rows);
      T* const to = forward ? p + s : p - s - (n - 1);
      for (int c = 0; c < lanes; c++) store(to + c * stride_c, rows[c], n);
    }
  } else if (stride_c == 1 && lanes == W) {
    for (int s = 0; s < steps; s++) store(p + s * stride_s, load(tile + s * W));
  } else if (stride_c == 1) {
    for (int s = 0; s < steps; s++) store(p + s * stride_s, load(tile + s * W), lanes);
  } else {
    T row[W];
    for (int s = 0; s < steps; s++) {
      store(row, load(tile + s * W));
      for (int c = 0; c < lanes; c++) p[c * stride_c + s * stride_s] = row[c];
    }
  }
}

}  // namespace zoo::ZOO_CPU
