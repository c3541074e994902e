// What the CUDA kernels share: launches, number types, and loads and stores of several steps at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>
#include <utility>

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

constexpr double kLog2E = 1.4426950408889634;

template <class F>
__device__ __forceinline__ F exp_fast(F x) {
  return exp2_fast(x * static_cast<F>(kLog2E));
}

__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp_fast(-x)); }
__device__ __forceinline__ double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// log(1 + e^x), which is x itself to the last digit from 20 on (float32) or 40 on (float64).
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(exp_fast(x)); }
__device__ __forceinline__ double softplus(double x) { return x > 40.0 ? x : log1p(exp(x)); }

// `kSteps` values from `p` on, `stride` elements apart; what is at or behind `valid` reads as zero.
// `kBytes` is the widest access that the caller knows to be aligned and in one piece: sizeof(T), or
// 4 to 16, which needs stride 1.
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

}  // namespace zoo::cuda
