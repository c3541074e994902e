// Matrix products on register tiles, for operands that stand in the cache.
#pragma once

#include "common/simd.h"

namespace zoo::ZOO_CPU {

// The left operand of a product: element (m, k) is data[m row + k step].
template <class S>
struct Left {
  const S* data;
  int64_t row, step;

  ZOO_INLINE Left from(int64_t m, int64_t k) const { return {data + m * row + k * step, row, step}; }
};

// What the result is multiplied with before the product is added: nothing stands for 0.
template <class S>
struct Factor {
  const S* data = nullptr;  // of row m: data[m step]
  int64_t step = 0;

  ZOO_INLINE Factor from(int64_t m) const { return {data + m * step, step}; }
};

// Rows of a register tile, and vectors in each of them.
template <class V>
struct TileShape {
  static constexpr int kM = 6, kN = V::kSize >= 16 ? 4 : 2;
};

// c[m][:] = factor[m] c[m][:] + sum over `steps` of a(m, k) b[k][:] for M rows and N vectors.
template <class V, int M, int N>
inline void product_tile(Left<typename V::Scalar> a, const typename V::Scalar* b, int64_t ldb,
                         int64_t steps, typename V::Scalar* c, int64_t ldc,
                         Factor<typename V::Scalar> factor) {
  using S = typename V::Scalar;
  constexpr int W = V::kSize;
  V sum[M][N];
  const S* rows[M];
  for (int m = 0; m < M; m++) {
    rows[m] = a.data + m * a.row;
    for (int n = 0; n < N; n++) {
      sum[m][n] =
          factor.data ? load(c + m * ldc + n * W) * V::set(factor.data[m * factor.step]) : V::set(0);
    }
  }
  for (int64_t k = 0, at = 0; k < steps; k++, at += a.step, b += ldb) {
    V right[N];
    for (int n = 0; n < N; n++) right[n] = load(b + n * W);
    for (int m = 0; m < M; m++) {
      const V left = V::set(rows[m][at]);
      for (int n = 0; n < N; n++) sum[m][n] = fma(left, right[n], sum[m][n]);
    }
  }
  for (int m = 0; m < M; m++) {
    for (int n = 0; n < N; n++) store(c + m * ldc + n * W, sum[m][n]);
  }
}

// Part of the product that a block of rows needs: steps [begin, end), columns from `column` (a multiple of
// the vector) on.
struct Need {
  int64_t begin, end, column;
};

template <class V, int M, class F>
ZOO_INLINE void product_of_rows(int64_t m, int64_t columns, Left<typename V::Scalar> a,
                                const typename V::Scalar* b, int64_t ldb, typename V::Scalar* c,
                                int64_t ldc, Factor<typename V::Scalar> factor, const F& need) {
  constexpr int W = V::kSize, kN = TileShape<V>::kN;
  const Need part = need(m, M);
  const int64_t steps = part.end - part.begin;
  a = a.from(m, part.begin);
  b += part.begin * ldb;
  c += m * ldc;
  if (factor.data) factor = factor.from(m);
  int64_t n = part.column;
  for (; n + kN * W <= columns; n += kN * W)
    product_tile<V, M, kN>(a, b + n, ldb, steps, c + n, ldc, factor);
  for (; n + 2 * W <= columns; n += 2 * W)
    product_tile<V, M, 2>(a, b + n, ldb, steps, c + n, ldc, factor);
  for (; n < columns; n += W) product_tile<V, M, 1>(a, b + n, ldb, steps, c + n, ldc, factor);
}

// c = factor c + a b for any number of rows, and of columns that is a multiple of the vector.
// need(m, M): what rows m ... m + M of the result need.
template <class V, class F>
inline void product(int64_t rows, int64_t columns, Left<typename V::Scalar> a,
                    const typename V::Scalar* b, int64_t ldb, typename V::Scalar* c, int64_t ldc,
                    Factor<typename V::Scalar> factor, const F& need) {
  constexpr int M = TileShape<V>::kM;
  int64_t m = 0;
  for (; m + M <= rows; m += M) product_of_rows<V, M>(m, columns, a, b, ldb, c, ldc, factor, need);
  for (; m + 2 <= rows; m += 2) product_of_rows<V, 2>(m, columns, a, b, ldb, c, ldc, factor, need);
  if (m < rows) product_of_rows<V, 1>(m, columns, a, b, ldb, c, ldc, factor, need);
}

// The same with all `steps` for all rows and columns.
template <class V>
inline void product(int64_t rows, int64_t columns, int64_t steps, Left<typename V::Scalar> a,
                    const typename V::Scalar* b, int64_t ldb, typename V::Scalar* c, int64_t ldc,
                    Factor<typename V::Scalar> factor) {
  product<V>(rows, columns, a, b, ldb, c, ldc, factor,
             [steps](int64_t, int64_t) { return Need{0, steps, 0}; });
}

}  // namespace zoo::ZOO_CPU
