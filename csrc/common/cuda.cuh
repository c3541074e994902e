// What the CUDA kernels share: launches, number types, and loads and stores of several steps at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "common/dtype.h"

namespace zoo::cuda {

constexpr unsigned kFullWarp = 0xffffffffu;

// The only way in which kernels are launched; it needs no syntax of nvcc's own.
template <class... P, class... A>
cudaError_t launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared_bytes, void* stream,
                   A&&... args) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (shared_bytes > kWithoutAsking) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3{static_cast<unsigned>(threads), 1, 1};
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, std::forward<A>(args)...);
}

// More blocks than CUDA can count become none at all, which the launch refuses.
inline dim3 grid_of(int64_t x, int64_t y = 1) {
  constexpr int64_t kMostX = 0x7fffffff, kMostY = 65535;
  const bool fits = x <= kMostX && y <= kMostY;
  return dim3{fits ? static_cast<unsigned>(x) : 0, fits ? static_cast<unsigned>(y) : 0, 1};
}

inline int multiprocessors() {
  int device = 0, count = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count;
}

// All shared memory of a block, as a struct that the kernel defines and whose size the launch names.
template <class S>
__device__ __forceinline__ S& shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  return *reinterpret_cast<S*>(shared_bytes);
}

// float32 for all storage types but float64, which is for checking.
template <class T>
using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T narrow(Accumulator<T> x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

// 2^x. In float32 the hardware's own instruction (2 units in the last place), without the detour that
// exp2f takes for results below 2^-126: those are zero here.
__device__ __forceinline__ float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}
__device__ __forceinline__ double exp2_fast(double x) { return exp2(x); }

constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

template <class F>
__device__ __forceinline__ F exp_fast(F x) {
  return exp2_fast(x * static_cast<F>(kLog2E));
}

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp_fast(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// log(1 + e^x), which is x itself to the last digit from 20 on (float32) or 40 on (float64).
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(exp_fast(x)); }
__device__ __forceinline__ double softplus(double x) { return x > 40.0 ? x : log1p(exp(x)); }

// Values that stand together in memory, read and written kBytes at a time, to which `p` must be aligned.
template <int kBytes, int kSteps, class T>
__device__ __forceinline__ void load_aligned(Accumulator<T> (&out)[kSteps], const T* p) {
  constexpr int kWide = kBytes / static_cast<int>(sizeof(T));
  static_assert(kWide >= 1 && kSteps % kWide == 0);
  struct __align__(kBytes) Pack {
    T v[kWide];
  };
#pragma unroll
  for (int i = 0; i < kSteps; i += kWide) {
    const Pack pack = *reinterpret_cast<const Pack*>(p + i);
#pragma unroll
    for (int j = 0; j < kWide; ++j) out[i + j] = widen(pack.v[j]);
  }
}

template <int kBytes, int kSteps, class T>
__device__ __forceinline__ void store_aligned(const Accumulator<T> (&in)[kSteps], T* p) {
  constexpr int kWide = kBytes / static_cast<int>(sizeof(T));
  static_assert(kWide >= 1 && kSteps % kWide == 0);
  struct __align__(kBytes) Pack {
    T v[kWide];
  };
#pragma unroll
  for (int i = 0; i < kSteps; i += kWide) {
    Pack pack;
#pragma unroll
    for (int j = 0; j < kWide; ++j) pack.v[j] = narrow<T>(in[i + j]);
    *reinterpret_cast<Pack*>(p + i) = pack;
  }
}

// The widest access, in bytes, that successive elements from each row of [batch, channel] on permit.
template <class T>
int access_bytes(const T* data, int64_t batch, int64_t channel, int64_t step) {
  if (step != 1) return static_cast<int>(sizeof(T));
  const int64_t bits = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data)) |
                       (batch | channel) * static_cast<int64_t>(sizeof(T));
  return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : static_cast<int>(sizeof(T));
}

// kSteps values, `stride` elements apart; what is at or behind `valid` reads as zero. `bytes` as above, with
// `p` a multiple of kSteps elements behind the start of the row.
template <int kSteps, class T>
__device__ __forceinline__ void load_steps(Accumulator<T> (&out)[kSteps], const T* p, int64_t stride,
                                           int64_t valid, int bytes) {
  if (valid >= kSteps) {
    constexpr int kAll = kSteps * static_cast<int>(sizeof(T));
    if constexpr (kAll % 16 == 0) {
      if (bytes == 16) return load_aligned<16>(out, p);
    }
    if constexpr (kAll % 8 == 0 && sizeof(T) < 8) {
      if (bytes >= 8) return load_aligned<8>(out, p);
    }
  }
#pragma unroll
  for (int i = 0; i < kSteps; ++i) out[i] = i < valid ? widen(p[i * stride]) : 0;
}

template <int kSteps, class T>
__device__ __forceinline__ void store_steps(const Accumulator<T> (&in)[kSteps], T* p, int64_t stride,
                                            int64_t valid, int bytes) {
  if (valid >= kSteps) {
    constexpr int kAll = kSteps * static_cast<int>(sizeof(T));
    if constexpr (kAll % 16 == 0) {
      if (bytes == 16) return store_aligned<16>(in, p);
    }
    if constexpr (kAll % 8 == 0 && sizeof(T) < 8) {
      if (bytes >= 8) return store_aligned<8>(in, p);
    }
  }
#pragma unroll
  for (int i = 0; i < kSteps; ++i)
    if (i < valid) p[i * stride] = narrow<T>(in[i]);
}

// Sums over the first of two dimensions, always in the same order. A thread has one column.
template <class In, class Out>
__global__ void sum_rows_kernel(const In* in, Out* out, int64_t rows, int64_t columns) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (column >= columns) return;
  In sum = 0;
#pragma unroll 4
  for (int64_t row = 0; row < rows; ++row) sum += in[row * columns + column];
  out[column] = narrow<Out>(sum);
}

constexpr int kSumThreads = 128;

inline dim3 blocks_for(int64_t items, int threads) {
  return grid_of((items + threads - 1) / threads);
}

template <class In, class Out>
cudaError_t sum_rows(const In* in, Out* out, int64_t rows, int64_t columns, void* stream) {
  return launch(sum_rows_kernel<In, Out>, blocks_for(columns, kSumThreads), kSumThreads, 0, stream,
                in, out, rows, columns);
}

// f(T{}) with the type of the elements.
template <class F>
auto with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
    case DType::kFloat16:
      return f(__half{});
    case DType::kFloat64:
      return f(double{});
    default:
      return f(float{});
  }
}

inline const char* message(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Of several calls, what the first that goes wrong says.
class FirstError {
 public:
  void operator()(cudaError_t error) {
    if (first_ == cudaSuccess) first_ = error;
  }
  cudaError_t first() const { return first_; }

 private:
  cudaError_t first_ = cudaSuccess;
};

// Pieces of one allocation of scratch memory, one after the other; without an allocation, only their size.
class Scratch {
 public:
  explicit Scratch(void* data) : data_(static_cast<char*>(data)) {}

  template <class T>
  T* take(int64_t count) {
    T* const piece = data_ ? reinterpret_cast<T*>(data_ + size_) : nullptr;
    size_ += (count * static_cast<int64_t>(sizeof(T)) + 255) / 256 * 256;
    return piece;
  }
  int64_t size() const { return size_; }

 private:
  char* data_;
  int64_t size_ = 0;
};

}  // namespace zoo::cuda
