// What the bindings need of PyTorch. From 2.10 on that is its stable ABI (setup.py sets
// TORCH_TARGET_VERSION): a library built against one version serves the later ones too. 2.9 lacks parts
// of it, so there the same names stand for the ordinary C++ API.
#pragma once

#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "common/cpu_fork.h"
#include "common/dtype.h"
#include "common/threads.h"

// A RuntimeError in Python; PyTorch's own macros would add the place in this code, which is no user's affair.
#define ZOO_CHECK(condition, ...)                                \
  do {                                                          \
    if (!(condition)) [[unlikely]] ::zoo::refuse(__VA_ARGS__);  \
  } while (false)

namespace zoo {

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace zoo

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

inline int32_t device_type(const Tensor& t) {
  int32_t type = -1;
  aoti_torch_get_device_type(t.get(), &type);
  return type;
}

inline int64_t storage_bytes(const Tensor& t) {
  int64_t size = 0;
  aoti_torch_get_storage_size(t.get(), &size);
  return size;
}

// Not by way of a view: autograd would not let such an output be changed in place.
inline Tensor new_empty_strided(const Tensor& like, const std::vector<int64_t>& sizes,
                                const std::vector<int64_t>& strides) {
  int32_t dtype = 0;
  AtenTensorHandle handle = nullptr;
  const bool done = aoti_torch_get_dtype(like.get(), &dtype) == 0 &&
                    aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                             strides.data(), dtype, device_type(like),
                                             like.get_device(), &handle) == 0;
  ZOO_CHECK(done, "no memory for a result");
  return Tensor(handle);
}

inline bool grad_mode() { return aoti_torch_grad_mode_is_enabled(); }

// Tells autograd that `t` is about to change, with an in-place operation on none of its elements. False if
// it requires a gradient, which autograd could not give then.
inline bool tell_autograd(const Tensor& t) {
  Tensor whole = t;
  Tensor nothing = torch::stable::narrow(whole, 0, 0, 0);
  if (aoti_torch_grad_mode_is_enabled()) {
    // the stable ABI does not say whether a tensor requires a gradient, but then no view of it is a leaf
    StableIValue stack[] = {torch::stable::detail::from(nothing)};
    const bool asked = torch_call_dispatcher("aten::is_leaf", "", stack, TORCH_ABI_VERSION) == 0;
    if (asked && !torch::stable::detail::to<bool>(stack[0])) return false;
  }
  torch::stable::zero_(nothing);
  return true;
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
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#define ZOO_LIBRARY_FRAGMENT(m) TORCH_LIBRARY_FRAGMENT(zoo, m)
#define ZOO_LIBRARY_IMPL(device, m) TORCH_LIBRARY_IMPL(zoo, device, m)
#define ZOO_BOX(f) &f

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

inline Tensor new_empty_strided(const Tensor& like, const std::vector<int64_t>& sizes,
                                const std::vector<int64_t>& strides) {
  return at::empty_strided(sizes, strides, like.options());
}

inline int64_t device_type(const Tensor& t) { return static_cast<int64_t>(t.device().type()); }
inline int64_t storage_bytes(const Tensor& t) { return static_cast<int64_t>(t.storage().nbytes()); }

inline bool tell_autograd(const Tensor& t) {
  if (at::GradMode::is_enabled() && t.requires_grad()) return false;
  t.narrow(0, 0, 0).zero_();
  return true;
}

// f(begin, end) on PyTorch's own threads.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain_size, const F& f) {
  at::parallel_for(begin, end, grain_size, f);
}

inline int64_t num_threads() { return at::get_num_threads(); }

}  // namespace zoo

#endif

// ZOO_KERNELS(m) { m.impl(...); ... } registers an op's functions for the device of this library.
#ifdef ZOO_CUDA
#define ZOO_KERNELS(m) ZOO_LIBRARY_IMPL(CUDA, m)
#else
#define ZOO_KERNELS(m) ZOO_LIBRARY_IMPL(CPU, m)
#endif

namespace zoo {

// PyTorch's own threads, for kernels; after a fork only the calling one.
inline Threads threads() {
  if (are_threads_lost()) {
    return {1, [](int64_t tasks, Threads::Body body, const void* context) {
              if (tasks > 0) body(context, 0, tasks);
            }};
  }
  return {num_threads(), [](int64_t tasks, Threads::Body body, const void* context) {
            parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) { body(context, begin, end); });
          }};
}

inline DType dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::Double: return DType::kFloat64;
    default:
      ZOO_CHECK(false, op, ": ", name, " must be float32, bfloat16, float16 or float64");
      return DType{};
  }
}

}  // namespace zoo
