// Tiles: the steps of one vector of channels, [step][lane] in accumulator type, read from and written to
// tensors of any strides and number type.
#pragma once

#include "common/simd.h"

namespace zoo::ZOO_CPU {

// tile[s][c] = p[c stride_c + s stride_s] for c < lanes; 0 for the other lanes of the vector.
template <class V, class T>
inline void load_tile(typename V::Scalar* tile, const T* p, int64_t stride_c, int64_t stride_s,
                      int lanes, int steps) {
  constexpr int W = V::kSize;
  if (stride_s == 1 || stride_s == -1) {
    const bool forward = stride_s == 1;
    V rows[W];
    for (int s = 0; s < steps; s += W) {
      const int n = steps - s < W ? steps - s : W;
      const T* const from = forward ? p + s : p - s - (n - 1);
      for (int c = 0; c < W; c++) {
        if (c >= lanes) {
          rows[c] = V::set(0);
        } else {
          rows[c] = n == W ? load(from + c * stride_c) : load(from + c * stride_c, n);
        }
      }
      transpose(rows);
      for (int i = 0; i < n; i++) store(tile + (s + i) * W, rows[forward ? i : n - 1 - i]);
    }
  } else if (stride_c == 1) {
    for (int s = 0; s < steps; s++) {
      const T* const from = p + s * stride_s;
      store(tile + s * W, lanes == W ? load(from) : load(from, lanes));
    }
  } else {
    T row[W];
    for (int s = 0; s < steps; s++) {
      for (int c = 0; c < lanes; c++) row[c] = p[c * stride_c + s * stride_s];
      store(tile + s * W, load(row, lanes));
    }
  }
}

// The reverse of load_tile. p is not written for lanes beyond `lanes`.
template <class V, class T>
inline void store_tile(const typename V::Scalar* tile, T* p, int64_t stride_c, int64_t stride_s,
                       int lanes, int steps) {
  constexpr int W = V::kSize;
  if (stride_s == 1 || stride_s == -1) {
    const bool forward = stride_s == 1;
    V rows[W];
    for (int s = 0; s < steps; s += W) {
      const int n = steps - s < W ? steps - s : W;
      for (int i = 0; i < W; i++)
        rows[i] = i < n ? load(tile + (s + (forward ? i : n - 1 - i)) * W) : V::set(0);
      transpose(rows);
      T* const to = forward ? p + s : p - s - (n - 1);
      for (int c = 0; c < lanes; c++) {
        if (n == W) {
          store(to + c * stride_c, rows[c]);
        } else {
          store(to + c * stride_c, rows[c], n);
        }
      }
    }
  } else if (stride_c == 1) {
    for (int s = 0; s < steps; s++) {
      T* const to = p + s * stride_s;
      if (lanes == W) {
        store(to, load(tile + s * W));
      } else {
        store(to, load(tile + s * W), lanes);
      }
    }
  } else {
    T row[W];
    for (int s = 0; s < steps; s++) {
      store(row, load(tile + s * W));
      for (int c = 0; c < lanes; c++) p[c * stride_c + s * stride_s] = row[c];
    }
  }
}

}  // namespace zoo::ZOO_CPU
