// Stands in front of csrc/common/binding_cuda.h: tensors on the CPU, whose kernels the emulation replaces.
#pragma once

#include "common/binding.h"

#undef ZOO_LIBRARY_IMPL
#ifdef TORCH_TARGET_VERSION
#define ZOO_LIBRARY_IMPL(device, m) STABLE_TORCH_LIBRARY_IMPL(zoo, CPU, m)
#else
#define ZOO_LIBRARY_IMPL(device, m) TORCH_LIBRARY_IMPL(zoo, CPU, m)
#endif

namespace zoo {

inline bool is_on_kernels_device(const Tensor& t) { return t.is_cpu(); }

inline Tensor on_cpu(const Tensor& t) { return t; }

struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  void* stream = nullptr;
};

inline void check_cuda(const char* op, const char* error) {
  ZOO_CHECK(error == nullptr, op, ": ", error ? error : "");
}

// Filled with NaN, so that nobody counts on finding zeros.
inline Tensor scratch_memory(const Tensor& like, int64_t bytes) {
  Tensor memory = new_empty(like, {bytes}, ScalarType::Byte);
  memset(memory.data_ptr(), 0xff, static_cast<size_t>(bytes));
  return memory;
}

}  // namespace zoo
