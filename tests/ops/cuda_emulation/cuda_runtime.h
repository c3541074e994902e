// A CUDA device made of one CPU thread. With this folder first on the include path, g++ compiles the
// kernels of csrc/*/cuda.cu as they stand, and their launches run at once, block after block. The threads
// of a block are fibers that change over at barriers and shuffles alone.
//
// It is stricter than a GPU where that finds mistakes: a barrier or shuffle that not every thread reaches
// ends the program with a message, shared memory starts as NaN, writes behind its end are found, and
// ZOO_EMULATION_ORDER=reverse runs the threads of a block in the other order, so that results which a
// missing barrier leaves to chance come out different.
#pragma once

#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace zoo::cuda {
// What `extern __shared__` in csrc/common/cuda.cuh names: the largest block of a GPU of today, and a
// margin that must stay untouched.
inline constexpr size_t kSharedLimit = 227 * 1024, kSharedMargin = 4096;
__align__(1024) inline unsigned char shared_bytes[kSharedLimit + kSharedMargin];
}  // namespace zoo::cuda

namespace emulation {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "CUDA emulation: %s (block %u,%u,%u thread %u)\n", what, blockIdx.x, blockIdx.y,
          blockIdx.z, threadIdx.x);
  abort();
}

struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
};

struct Warp {
  Barrier barrier;
  unsigned char slot[2][kWarp][16];  // two, so that one barrier for each shuffle is enough
};

struct Fiber {
  ucontext_t context;
  jmp_buf state;
  std::unique_ptr<unsigned char[]> stack;
  bool started, finished;
  int parity;
};

struct Device {
  std::vector<Fiber> fibers;  // grows, and keeps the stacks
  std::vector<Warp> warps;
  Barrier block_barrier;
  std::function<void()> body;
  jmp_buf host;
  ucontext_t entry_return;
  int n_threads = 0, live = 0, current = 0, idle = 0;
  long launches = 0;
};

inline Device device;

inline void enter(int i) {
  Device& d = device;
  d.current = i;
  threadIdx.x = static_cast<unsigned>(i);
  Fiber& f = d.fibers[i];
  if (f.started) _longjmp(f.state, 1);
  f.started = true;
  setcontext(&f.context);
}

// The next thread that has not come to its end, of the block or, first, of the warp.
inline int next_fiber(bool of_warp) {
  Device& d = device;
  static const bool reverse = [] {
    const char* order = getenv("ZOO_EMULATION_ORDER");
    return order && !strcmp(order, "reverse");
  }();
  const int first = of_warp ? d.current / kWarp * kWarp : 0;
  const int end = of_warp ? std::min(first + kWarp, d.n_threads) : d.n_threads;
  int i = d.current;
  do {
    i = reverse ? (i == first ? end - 1 : i - 1) : (i + 1 == end ? first : i + 1);
  } while (d.fibers[i].finished);
  return i;
}

__attribute__((noinline)) inline void yield(bool to_warp) {
  Device& d = device;
  if (++d.idle > 2 * d.n_threads) fail("a barrier or shuffle that not every thread reaches");
  const int next = next_fiber(to_warp);
  if (next == d.current) return;
  if (_setjmp(d.fibers[d.current].state) == 0) enter(next);
}

// A warp goes on until all of it waits for the others, so that warps get as far apart as barriers allow.
inline void wait(Barrier& b, bool of_warp) {
  device.idle = 0;
  const unsigned generation = b.generation;
  if (++b.arrived == b.expected) {
    b.arrived = 0;
    ++b.generation;
    return;
  }
  while (b.generation == generation) yield(of_warp);
}

inline void run_thread() {
  Device& d = device;
  d.body();
  d.fibers[d.current].finished = true;
  d.idle = 0;
  if (--d.live == 0) _longjmp(d.host, 1);
  enter(next_fiber(false));
}

inline void run_block(int n_threads, size_t shared_bytes) {
  Device& d = device;
  unsigned char* const shared = zoo::cuda::shared_bytes;
  unsigned char* const margin = shared + shared_bytes;
  memset(shared, 0xff, shared_bytes);
  memset(margin, 0x5a, zoo::cuda::kSharedMargin);
  d.n_threads = d.live = n_threads;
  if (static_cast<int>(d.fibers.size()) < n_threads) d.fibers.resize(n_threads);
  d.warps.resize((n_threads + kWarp - 1) / kWarp);
  for (Warp& w : d.warps) w.barrier = {.expected = kWarp};
  d.block_barrier = {.expected = n_threads};
  for (int i = 0; i < n_threads; ++i) {
    Fiber& f = d.fibers[i];
    if (!f.stack) f.stack = std::make_unique<unsigned char[]>(kStack);
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStack;
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_thread, 0);
    f.started = f.finished = false;
    f.parity = 0;
  }
  d.idle = 0;
  d.current = 0;
  if (_setjmp(d.host) == 0) enter(next_fiber(false));
  for (size_t i = 0; i < zoo::cuda::kSharedMargin; ++i)
    if (margin[i] != 0x5a) fail("a write behind the end of shared memory");
}

template <class T>
T exchange(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 16);
  if (mask != 0xffffffffu || device.n_threads % kWarp) fail("a shuffle in part of a warp");
  Fiber& f = device.fibers[device.current];
  Warp& w = device.warps[device.current / kWarp];
  const int parity = f.parity ^= 1;
  memcpy(w.slot[parity][device.current % kWarp], &value, sizeof(T));
  wait(w.barrier, true);
  memcpy(&value, w.slot[parity][source], sizeof(T));
  return value;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::device.block_barrier, false); }
inline int __syncthreads_count(int predicate) {
  // Everybody has counted the last call's when a thread comes to the second barrier of this one.
  static int counted, turn;
  __syncthreads();
  if (turn == 0) counted = 0;
  counted += predicate != 0;
  turn = (turn + 1) % emulation::device.n_threads;
  __syncthreads();
  return counted;
}
inline int __syncthreads_or(int predicate) { return __syncthreads_count(predicate) > 0; }
inline int __syncthreads_and(int predicate) { return __syncthreads_count(!predicate) == 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::exchange(mask, 0, 0); }

template <class T>
T __shfl_sync(unsigned mask, T v, int lane, int width = 32) {
  const int self = threadIdx.x % 32;
  return emulation::exchange(mask, v, self / width * width + (lane % width + width) % width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const int self = threadIdx.x % 32, d = static_cast<int>(delta);
  return emulation::exchange(mask, v, self % width < d ? self : self - d);
}
template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32) {
  const int self = threadIdx.x % 32, d = static_cast<int>(delta);
  return emulation::exchange(mask, v, self % width + d >= width ? self : self + d);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int flip, int width = 32) {
  const int self = threadIdx.x % 32, other = self ^ flip;
  return emulation::exchange(mask, v, other / width == self / width ? other : self);
}

template <class T>
T __ldg(const T* p) {
  return *p;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<uint64_t>(a) * b >> 32; }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
using std::max;
using std::min;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline const char* cudaGetErrorString(cudaError_t) { return "error of the CUDA emulation"; }
inline cudaError_t cudaGetDevice(int* index) { return *index = 0, cudaSuccess; }
template <class F>
cudaError_t cudaFuncSetAttribute(F*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? 2 : zoo::cuda::kSharedLimit;
  return cudaSuccess;
}

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(P...), A&&... args) {
  const dim3 g = c->gridDim, b = c->blockDim;
  if (!g.x || !g.y || !g.z || g.y > 65535 || g.z > 65535 || !b.x || b.x > 1024 || b.y != 1 ||
      b.z != 1 || c->dynamicSmemBytes > zoo::cuda::kSharedLimit)
    return cudaErrorInvalidConfiguration;
  emulation::device.body = [&] { kernel(static_cast<P>(args)...); };
  ++emulation::device.launches;
  gridDim = g;
  blockDim = b;
  for (blockIdx.z = 0; blockIdx.z < g.z; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < g.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < g.x; ++blockIdx.x)
        emulation::run_block(static_cast<int>(b.x), c->dynamicSmemBytes);
  return cudaSuccess;
}

// How many kernels have been launched: a test that meant to run them can ask whether it did.
extern "C" __attribute__((weak, used)) long cuda_emulation_launches() {
  return emulation::device.launches;
}
