// What the bindings need of PyTorch. From 2.10 on that is its stable ABI (setup.py sets
// TORCH_TARGET_VERSION): a library built against one version serves the later ones too. 2.9 lacks parts
// of it, so there the same names stand for the ordinary C++ API.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "common/dtype.h"
#include "common/threads.h"

#ifdef TORCH_TARGET_VERSION

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#define ZOO_LIBRARY_FRAGMENT(m) STABLE_TORCH_LIBRARY_FRAGMENT(zoo, m)
#define ZOO_LIBRARY_IMPL(device, m) STABLE_TORCH_LIBRARY_IMPL(zoo, device, m)
#define ZOO_BOX(f) TORCH_BOX(&f)
#define ZOO_CHECK(...) STD_TORCH_CHECK(__VA_ARGS__)

namespace zoo {

using torch::headeronly::ScalarType;
using torch::stable::empty_like;
using torch::stable::Tensor;

inline Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

inline Tensor new_zeros(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_zeros(like, sizes, dtype);
}

inline Tensor transposed(const Tensor& t, int64_t a, int64_t b) {
  return torch::stable::transpose(t, a, b);
}

// f(begin, end) on PyTorch's own threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  torch::stable::parallel_for(begin, end, grain_size, f);
}

inline int64_t num_threads() { return torch::stable::get_num_threads(); }

}  // namespace zoo

#else  // PyTorch 2.9

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#define ZOO_LIBRARY_FRAGMENT(m) TORCH_LIBRARY_FRAGMENT(zoo, m)
#define ZOO_LIBRARY_IMPL(device, m) TORCH_LIBRARY_IMPL(zoo, device, m)
#define ZOO_BOX(f) &f
#define ZOO_CHECK(...) TORCH_CHECK(__VA_ARGS__)

namespace zoo {

using at::empty_like;
using at::ScalarType;
using at::Tensor;

inline Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return at::empty(sizes, like.options().dtype(dtype));
}

inline Tensor new_zeros(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return at::zeros(sizes, like.options().dtype(dtype));
}

inline Tensor transposed(const Tensor& t, int64_t a, int64_t b) { return t.transpose(a, b); }

// f(begin, end) on PyTorch's own threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  at::parallel_for(begin, end, grain_size, f);
}

inline int64_t num_threads() { return at::get_num_threads(); }

}  // namespace zoo

#endif

namespace zoo {

// PyTorch's own threads, for kernels.
inline Threads threads() {
  return {num_threads(), [](int64_t tasks, Threads::Body body, const void* context) {
            parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
          }};
}

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::Double: return DType::kFloat64;
    default: ZOO_CHECK(false, "expected float32, bfloat16, float16 or float64"); return DType{};
  }
}

}  // namespace zoo
