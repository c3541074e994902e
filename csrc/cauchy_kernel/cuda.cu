// Sums of conjugate pairs of poles on a GPU. Forward, a thread has a point; backward, a block has one pole
// and its threads the points. All rows share a quotient.
#include "cauchy_kernel/cauchy_kernel.h"
#include "common/cuda.cuh"

namespace zoo::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kPoles = 32;  // in shared memory at once
constexpr int kRows = 4;    // of a thread

template <class F>
struct Pair {
  F re, im;
};

template <class F>
__device__ __forceinline__ Pair<F> product(Pair<F> a, Pair<F> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <class F>
__device__ __forceinline__ const Pair<F>* pairs(const void* p) {
  return static_cast<const Pair<F>*>(p);
}

// 1 / ((z - w)(z - w*))
template <class F>
__device__ __forceinline__ Pair<F> quotient(Pair<F> z, Pair<F> w) {
  const F a = z.re - w.re, re = a * a + (w.im - z.im) * (w.im + z.im), im = 2 * a * z.im;
  const F scale = 1 / (re * re + im * im);
  return {re * scale, -im * scale};
}

template <class F>
__device__ __forceinline__ F c0_of(Pair<F> v, Pair<F> w) {
  return 2 * (v.re * w.re + v.im * w.im);
}

template <class F>
struct ForwardShared {
  Pair<F> w[kPoles];
  Pair<F> c[kPoles][kRows];  // c1, c0
};

template <class F>
__global__ void __launch_bounds__(kThreads) forward_kernel(const Cauchy call, int64_t blocks) {
  ForwardShared<F>& shared = shared_memory<ForwardShared<F>>();
  const int64_t h = static_cast<int64_t>(blockIdx.x) / blocks;
  const int64_t l = static_cast<int64_t>(blockIdx.x) % blocks * kThreads + threadIdx.x;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kRows;
  const int rows = static_cast<int>(min(static_cast<int64_t>(kRows), call.rows - row));
  const Pair<F> z = l < call.points ? pairs<F>(call.z)[l] : Pair<F>{1, 1};
  Pair<F> s1[kRows] = {}, s0[kRows] = {};
  for (int64_t n = 0; n < call.poles; n += kPoles) {
    const int count = static_cast<int>(min(static_cast<int64_t>(kPoles), call.poles - n));
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < count * kRows; i += kThreads) {
      const int k = i / kRows, r = i % kRows;
      const Pair<F> w = pairs<F>(call.w)[h * call.poles + n + k];
      Pair<F> c = {0, 0};
      if (r < rows) {
        const Pair<F> v = pairs<F>(call.v)[((row + r) * call.features + h) * call.poles + n + k];
        c = {2 * v.re, c0_of(v, w)};
      }
      shared.c[k][r] = c;
      if (r == 0) shared.w[k] = w;
    }
    __syncthreads();
    for (int k = 0; k < count; ++k) {
      const Pair<F> q = quotient(z, shared.w[k]);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Pair<F> c = shared.c[k][r];
        s1[r].re += c.re * q.re;
        s1[r].im += c.re * q.im;
        s0[r].re += c.im * q.re;
        s0[r].im += c.im * q.im;
      }
    }
  }
  if (l >= call.points) return;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    const Pair<F> zs = product(z, s1[r]);
    static_cast<Pair<F>*>(call.out)[((row + r) * call.features + h) * call.points + l] = {
        zs.re - s0[r].re, zs.im - s0[r].im};
  }
}

template <class F>
struct BackwardShared {
  F warps[kThreads / 32];
};

// The sum over a block, for its first thread.
template <class F>
__device__ __forceinline__ F block_sum(F value, BackwardShared<F>& shared) {
  const int t = static_cast<int>(threadIdx.x);
  for (int flip = 16; flip > 0; flip /= 2) value += __shfl_xor_sync(kFullWarp, value, flip);
  __syncthreads();
  if (t % 32 == 0) shared.warps[t / 32] = value;
  __syncthreads();
  F sum = 0;
  for (int warp = 0; warp < kThreads / 32; ++warp) sum += shared.warps[warp];
  return sum;
}

template <class F>
__global__ void __launch_bounds__(kThreads) backward_kernel(const Cauchy call) {
  BackwardShared<F>& shared = shared_memory<BackwardShared<F>>();
  const int64_t h = static_cast<int64_t>(blockIdx.x) / call.poles, n = blockIdx.x % call.poles;
  const Pair<F> w = pairs<F>(call.w)[h * call.poles + n];
  Pair<F> dw = {0, 0};
  for (int64_t row = 0; row < call.rows; row += kRows) {
    const int rows = static_cast<int>(min(static_cast<int64_t>(kRows), call.rows - row));
    Pair<F> v[kRows];
    F dc1[kRows] = {}, dc0[kRows] = {}, with_z = 0, without = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      v[r] = r < rows ? pairs<F>(call.v)[((row + r) * call.features + h) * call.poles + n] : Pair<F>{0, 0};
    for (int64_t l = threadIdx.x; l < call.points; l += kThreads) {
      const Pair<F> z = pairs<F>(call.z)[l], q = quotient(z, w), zq = product(z, q);
      Pair<F> m = {0, 0};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        const Pair<F> dout = pairs<F>(call.dout)[((row + r) * call.features + h) * call.points + l];
        const Pair<F> g = {dout.re, -dout.im}, p = product(g, q), pz = product(g, zq);
        const F c1 = 2 * v[r].re, c0 = c0_of(v[r], w);
        dc1[r] += pz.re;
        dc0[r] -= p.re;
        m.re += c1 * pz.re - c0 * p.re;
        m.im += c1 * pz.im - c0 * p.im;
      }
      const Pair<F> t = product(m, q);
      without += t.re;
      with_z += t.re * z.re - t.im * z.im;
    }
    with_z = block_sum(with_z, shared);
    without = block_sum(without, shared);
    dw.re += 2 * (with_z - w.re * without);
    dw.im -= 2 * w.im * without;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      const F a = block_sum(dc1[r], shared), b = block_sum(dc0[r], shared);
      dw.re += 2 * v[r].re * b;
      dw.im += 2 * v[r].im * b;
      if (threadIdx.x == 0)
        static_cast<Pair<F>*>(call.dv)[((row + r) * call.features + h) * call.poles + n] = {
            2 * (a + w.re * b), 2 * w.im * b};
    }
  }
  if (threadIdx.x == 0) static_cast<Pair<F>*>(call.dw)[h * call.poles + n] = dw;
}

template <class F>
cudaError_t forward(const Cauchy& call, void* stream) {
  const int64_t blocks = (call.points + kThreads - 1) / kThreads;
  const dim3 grid = grid_of(call.features * blocks, (call.rows + kRows - 1) / kRows);
  return launch(forward_kernel<F>, grid, kThreads, sizeof(ForwardShared<F>), stream, call, blocks);
}

template <class F>
cudaError_t backward(const Cauchy& call, void* stream) {
  return launch(backward_kernel<F>, grid_of(call.features * call.poles), kThreads,
                sizeof(BackwardShared<F>), stream, call);
}

}  // namespace

const char* cauchy_kernel(const Cauchy& call, void* stream) {
  return message(call.dtype == DType::kFloat64 ? forward<double>(call, stream)
                                               : forward<float>(call, stream));
}

const char* cauchy_kernel_backward(const Cauchy& call, void* stream) {
  return message(call.dtype == DType::kFloat64 ? backward<double>(call, stream)
                                               : backward<float>(call, stream));
}

}  // namespace zoo::cuda
