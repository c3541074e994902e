// Sums of complex exponentials over their modes, and over time. What they compute:
// zoo/ops/vandermonde_kernel.py. Everything is contiguous; complex numbers are pairs of float32 or float64.
#pragma once

#include <cstdint>

#include "common/cpu_capability.h"
#include "common/dtype.h"
#include "common/threads.h"

namespace zoo {

struct Vandermonde {
  DType dtype;  // float32 or float64
  int64_t rows, features, modes, length;
  int64_t moments;    // of the transpose: 1, or 2 for the sums with a factor l as well
  const void* v;      // [row, feature, mode, 2]; of the kernel
  const void* u;      // [row, feature, step]; of the transpose
  const void* x;      // [feature, mode, 2]
  void* out;          // kernel: [row, feature, step]; transpose: [moment, row, feature, mode, 2]
};

ZOO_CPU_DECLARE(
    // out = 2 Re sum over n of v_n exp(x_n l)
    void vandermonde_kernel(const Vandermonde& call, const Threads& threads);
    // out_m = sum over l of l^m u_l exp(x_n l)
    void vandermonde_transpose(const Vandermonde& call, const Threads& threads);)

#ifdef ZOO_CUDA
namespace cuda {

// Enqueue on a CUDA stream. The result is null, or what went wrong.
const char* vandermonde_kernel(const Vandermonde& call, void* stream);
const char* vandermonde_transpose(const Vandermonde& call, void* stream);

}  // namespace cuda
#endif

}  // namespace zoo
