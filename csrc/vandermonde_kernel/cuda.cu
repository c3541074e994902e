// Sums of complex exponentials on a GPU. Powers are products of three, of the block of steps, of a sixteen
// in it and of a step in that; each is computed in float64, once for a block of threads.
#include "common/cuda.cuh"
#include "vandermonde_kernel/vandermonde_kernel.h"

namespace zoo::cuda {
namespace {

constexpr int kThreads = 256;  // 16 sixteens
constexpr int kModes = 8;      // of which powers are in shared memory at once
constexpr int kSpans = 4;      // steps of a thread, kThreads apart

template <class F>
struct Pair {
  F re, im;
};

template <class F>
__device__ __forceinline__ Pair<F> product(Pair<F> a, Pair<F> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// exp(x l)
template <class F>
__device__ __forceinline__ Pair<F> power(const F* x, int64_t l) {
  const double size = exp(static_cast<double>(x[0]) * static_cast<double>(l));
  double s, c;
  sincos(static_cast<double>(x[1]) * static_cast<double>(l), &s, &c);
  return {static_cast<F>(size * c), static_cast<F>(size * s)};
}

template <class F>
struct Powers {
  Pair<F> fine[kModes][16], coarse[kModes][16], base[kModes][kSpans];

  // Of `count` modes from step `start` on. All threads call it.
  __device__ __forceinline__ void fill(const F* x, int count, int64_t start) {
    constexpr int kEach = 32 + kSpans;
    for (int i = static_cast<int>(threadIdx.x); i < count * kEach; i += kThreads) {
      const int k = i / kEach, j = i % kEach;
      if (j < 16) fine[k][j] = power(x + 2 * k, j);
      else if (j < 32) coarse[k][j - 16] = power(x + 2 * k, (j - 16) * 16);
      else base[k][j - 32] = power(x + 2 * k, start + (j - 32) * kThreads);
    }
  }

  __device__ __forceinline__ Pair<F> inside(int k) const {
    const int t = static_cast<int>(threadIdx.x);
    return product(coarse[k][t / 16], fine[k][t % 16]);
  }
};

template <class F>
struct KernelShared {
  Powers<F> powers;
};

template <class F, int R>
__global__ void __launch_bounds__(kThreads) kernel_kernel(const Vandermonde call, int64_t spans) {
  Powers<F>& powers = shared_memory<KernelShared<F>>().powers;
  const int64_t h = static_cast<int64_t>(blockIdx.x) / spans;
  const int64_t start = static_cast<int64_t>(blockIdx.x) % spans * (kThreads * kSpans);
  const int64_t row = static_cast<int64_t>(blockIdx.y) * R;
  const F* const x = static_cast<const F*>(call.x) + h * call.modes * 2;
  F sums[R][kSpans] = {};
  for (int64_t n = 0; n < call.modes; n += kModes) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kModes), call.modes - n));
    __syncthreads();
    powers.fill(x + 2 * n, count, start);
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const Pair<F> inside = powers.inside(k);
#pragma unroll
      for (int s = 0; s < kSpans; ++s) {
        const Pair<F> p = product(powers.base[k][s], inside);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          if (row + r >= call.rows) break;
          const F* const v =
              static_cast<const F*>(call.v) + (((row + r) * call.features + h) * call.modes + n + k) * 2;
          sums[r][s] += v[0] * p.re - v[1] * p.im;
        }
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (row + r >= call.rows) break;
    F* const out = static_cast<F*>(call.out) + ((row + r) * call.features + h) * call.length;
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
      const int64_t l = start + s * kThreads + static_cast<int64_t>(threadIdx.x);
      if (l < call.length) out[l] = 2 * sums[r][s];
    }
  }
}

constexpr int kSummed = 4;  // modes of a block of the transpose
constexpr int kWarps = kThreads / 32;

template <class F>
struct TransposeShared {
  Powers<F> powers;
  F sums[kWarps][4 * kSummed];
};

// A block has a few modes of one row and feature, and goes through all steps.
template <class F, int M>
__global__ void __launch_bounds__(kThreads) transpose_kernel(const Vandermonde call, int64_t groups) {
  TransposeShared<F>& shared = shared_memory<TransposeShared<F>>();
  const int64_t h = static_cast<int64_t>(blockIdx.x) / groups;
  const int64_t n = static_cast<int64_t>(blockIdx.x) % groups * kSummed, row = blockIdx.y;
  const int count = static_cast<int>(min(static_cast<int64_t>(kSummed), call.modes - n));
  const F* const x = static_cast<const F*>(call.x) + (h * call.modes + n) * 2;
  const F* const u = static_cast<const F*>(call.u) + (row * call.features + h) * call.length;
  F sums[M * 2 * kSummed] = {};
  for (int64_t start = 0; start < call.length; start += kThreads * kSpans) {
    __syncthreads();
    shared.powers.fill(x, count, start);
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
      const int64_t l = start + s * kThreads + static_cast<int64_t>(threadIdx.x);
      const F value = l < call.length ? u[l] : F{0}, weighted = value * static_cast<F>(l);
#pragma unroll
      for (int k = 0; k < kSummed; ++k) {
        if (k >= count) break;
        const Pair<F> p = product(shared.powers.base[k][s], shared.powers.inside(k));
        sums[2 * k] += value * p.re;
        sums[2 * k + 1] += value * p.im;
        if constexpr (M == 2) {
          sums[2 * kSummed + 2 * k] += weighted * p.re;
          sums[2 * kSummed + 2 * k + 1] += weighted * p.im;
        }
      }
    }
  }
  const int t = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < M * 2 * kSummed; ++i) {
    for (int flip = 16; flip > 0; flip /= 2) sums[i] += __shfl_xor_sync(kFullWarp, sums[i], flip);
    if (t % 32 == 0) shared.sums[t / 32][i] = sums[i];
  }
  __syncthreads();
  if (t >= M * 2 * kSummed) return;
  const int m = t / (2 * kSummed), k = t / 2 % kSummed;
  if (k >= count) return;
  F sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += shared.sums[warp][t];
  static_cast<F*>(call.out)[(((m * call.rows + row) * call.features + h) * call.modes + n + k) * 2 + t % 2] =
      sum;
}

template <class F, int R>
cudaError_t run_kernel(const Vandermonde& call, void* stream) {
  const int64_t spans = (call.length + kThreads * kSpans - 1) / (kThreads * kSpans);
  return launch(kernel_kernel<F, R>, grid_of(call.features * spans, (call.rows + R - 1) / R), kThreads,
                sizeof(KernelShared<F>), stream, call, spans);
}

template <class F>
cudaError_t kernel_of(const Vandermonde& call, void* stream) {
  return call.rows == 1 ? run_kernel<F, 1>(call, stream) : run_kernel<F, 4>(call, stream);
}

template <class F>
cudaError_t transpose_of(const Vandermonde& call, void* stream) {
  const int64_t groups = (call.modes + kSummed - 1) / kSummed;
  const dim3 grid = grid_of(call.features * groups, call.rows);
  const auto kernel = call.moments == 2 ? transpose_kernel<F, 2> : transpose_kernel<F, 1>;
  return launch(kernel, grid, kThreads, sizeof(TransposeShared<F>), stream, call, groups);
}

}  // namespace

const char* vandermonde_kernel(const Vandermonde& call, void* stream) {
  return message(call.dtype == DType::kFloat64 ? kernel_of<double>(call, stream)
                                               : kernel_of<float>(call, stream));
}

const char* vandermonde_transpose(const Vandermonde& call, void* stream) {
  return message(call.dtype == DType::kFloat64 ? transpose_of<double>(call, stream)
                                               : transpose_of<float>(call, stream));
}

}  // namespace zoo::cuda
