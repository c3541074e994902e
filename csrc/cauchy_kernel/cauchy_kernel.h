// Sums of conjugate pairs of poles. What they compute: zoo/ops/cauchy_kernel.py. Everything is contiguous;
// complex numbers are pairs of float32 or float64.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

// A pair is v/(z - w) + v*/(z - w*) = (c1 z - c0) q with q = 1 / ((z - w)(z - w*)), c1 = 2 Re v,
// c0 = 2 (Re v Re w + Im v Im w): one division for both, and q is the same for all rows.
struct Cauchy {
  DType dtype;  // float32 or float64
  int64_t rows, features, poles, points;
  const void* v;     // [row, feature, pole, 2]
  const void* z;     // [point, 2]
  const void* w;     // [feature, pole, 2]
  void* out;         // [row, feature, point, 2]
  const void* dout;  // like out; of the backward pass
  void *dv, *dw;     // like v and w; of the backward pass
};

ZOO_CPU_DECLARE(void cauchy_kernel(const Cauchy& call, const Threads& threads);
                bool cauchy_kernel_backward(const Cauchy& call, const Threads& threads);)

#ifdef ZOO_CUDA
namespace cuda {

// Enqueue on a CUDA stream. The result is null, or what went wrong.
const char* cauchy_kernel(const Cauchy& call, void* stream);
const char* cauchy_kernel_backward(const Cauchy& call, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
