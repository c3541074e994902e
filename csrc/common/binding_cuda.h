// What the bindings of CUDA kernels need beyond binding.h.
#pragma once

#include "common/binding.h"

#ifndef TORCH_TARGET_VERSION
#include <ATen/cuda/CUDAContext.h>
#include <c10/cuda/CUDAGuard.h>
#endif

namespace zoo {

inline bool is_on_kernels_device(const Tensor& t) { return t.is_cuda(); }

// While it lives, the device of `t` is the current one; `stream` is that device's current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& t) : guard_(index(t)) {
#ifdef TORCH_TARGET_VERSION
    ZOO_CHECK(aoti_torch_get_current_cuda_stream(index(t), &stream) == 0, "no current CUDA stream");
#else
    stream = at::cuda::getCurrentCUDAStream(index(t)).stream();
#endif
  }

  void* stream = nullptr;

 private:
#ifdef TORCH_TARGET_VERSION
  static int32_t index(const Tensor& t) { return t.get_device_index(); }
  torch::stable::accelerator::DeviceGuard guard_;
#else
  static c10::DeviceIndex index(const Tensor& t) { return t.get_device(); }
  c10::cuda::CUDAGuard guard_;
#endif
};

// `error`: what a launcher returned.
inline void check_cuda(const char* op, const char* error) {
  ZOO_CHECK(error == nullptr, op, ": CUDA says '", error ? error : "", "'");
}

inline Tensor on_cpu(const Tensor& t) {
#ifdef TORCH_TARGET_VERSION
  return torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
#else
  return t.cpu();
#endif
}

// Scratch memory, from PyTorch's allocator, for as long as the tensor lives (on its stream: longer).
inline Tensor scratch_memory(const Tensor& like, int64_t bytes) {
  return new_empty(like, {bytes}, ScalarType::Byte);
}

}  // namespace zoo
