// One step of the selective scan on a GPU. Nearly all memory traffic is the states, read and written once;
// neighbouring threads have neighbouring states of a channel, 16 bytes each, and add up y with shuffles.
#include "common/cuda.cuh"
#include "selective_state_update/selective_state_update.h"

namespace zoo::cuda {
namespace {

constexpr int kThreads = 128;

template <class F>
__device__ __forceinline__ F parameter(const StateUpdate::Parameter& p, int64_t head,
                                       int64_t channel) {
  return static_cast<const F*>(p.data)[head * p.head + channel * p.channel];
}

template <class T>
__device__ __forceinline__ T* at(const StateUpdate::Signal& s, int64_t batch, int64_t head,
                                 int64_t channel) {
  return static_cast<T*>(s.data) + batch * s.batch + head * s.head + channel * s.channel;
}

// Aligned accesses of each operand, in bytes, along the states.
struct Access {
  int states, a, b, c;
};

// T: signals, S: states. `lanes` threads, a power of two, have one channel of one sequence.
template <class T, class S>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const StateUpdate call, const Access bytes, int lanes) {
  using F = Accumulator<T>;
  constexpr int K = 16 / static_cast<int>(sizeof(S));
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  const int64_t rows = call.batch * call.heads * call.head_dim;
  const int64_t wanted = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes;
  const bool active = wanted < rows;  // a thread without a channel goes along with the last one
  const int64_t row = active ? wanted : rows - 1;
  const int64_t channel = row % call.head_dim, head = row / call.head_dim % call.heads;
  const int64_t batch = row / call.head_dim / call.heads;
  const int64_t group = head / (call.heads / call.groups);

  const F x = widen(*at<const T>(call.x, batch, head, channel));
  F dt = widen(*at<const T>(call.dt, batch, head, channel));
  if (call.dt_bias.data) dt += parameter<F>(call.dt_bias, head, channel);
  if (call.softplus) dt = softplus(dt);
  S* const states = static_cast<S*>(call.states) + batch * call.states_batch +
                    head * call.states_head + channel * call.states_channel;
  const F* const a = static_cast<const F*>(call.A.data) + head * call.A.head + channel * call.A.channel;
  const T* const b = static_cast<const T*>(call.B.data) + batch * call.B.batch + group * call.B.group;
  const T* const c = static_cast<const T*>(call.C.data) + batch * call.C.batch + group * call.C.group;

  F y = 0;
  for (int64_t n = lane * K; n < call.state; n += lanes * K) {
    const int64_t valid = call.state - n;
    Accumulator<S> h[K];
    F an[K], bn[K], cn[K];
    load_steps(h, states + n * call.states_state, call.states_state, valid, bytes.states);
    load_steps(an, a + n * call.A.state, call.A.state, valid, bytes.a);
    load_steps(bn, b + n * call.B.state, call.B.state, valid, bytes.b);
    load_steps(cn, c + n * call.C.state, call.C.state, valid, bytes.c);
#pragma unroll
    for (int i = 0; i < K; ++i) {
      const F decay = exp_fast(dt * an[i]);
      const F next = (call.negative ? 2 * decay - 1 : decay) * h[i] + dt * x * bn[i];
      y += cn[i] * next;
      h[i] = next;
    }
    if (active)
      store_steps(h, states + n * call.states_state, call.states_state, valid, bytes.states);
  }
  for (int flip = 1; flip < lanes; flip *= 2) y += __shfl_xor_sync(kFullWarp, y, flip);
  if (!active || lane != 0) return;
  if (call.D.data) y += parameter<F>(call.D, head, channel) * x;
  if (call.z.data) {
    const F z = widen(*at<const T>(call.z, batch, head, channel));
    y *= z * sigmoid(z);
  }
  *at<T>(call.out, batch, head, channel) = narrow<T>(y);
}

template <class T, class S>
cudaError_t update(const StateUpdate& call, void* stream) {
  using F = Accumulator<T>;
  constexpr int64_t K = 16 / sizeof(S);
  int lanes = 1;
  while (lanes < 32 && lanes * K < call.state) lanes *= 2;
  const Access bytes{
      access_bytes(static_cast<const S*>(call.states),
                   call.states_batch | call.states_head, call.states_channel, call.states_state),
      access_bytes(static_cast<const F*>(call.A.data), call.A.head, call.A.channel, call.A.state),
      access_bytes(static_cast<const T*>(call.B.data), call.B.batch, call.B.group, call.B.state),
      access_bytes(static_cast<const T*>(call.C.data), call.C.batch, call.C.group, call.C.state)};
  const int64_t rows = call.batch * call.heads * call.head_dim;
  return launch(update_kernel<T, S>, blocks_for(rows * lanes, kThreads), kThreads, 0, stream, call,
                bytes, lanes);
}

}  // namespace

const char* selective_state_update(const StateUpdate& call, void* stream) {
  if (call.batch == 0) return nullptr;
  return message(with_type(call.dtype, [&](auto t) {
    using T = decltype(t);
    if (call.state_dtype == call.dtype) return update<T, T>(call, stream);
    if constexpr (std::is_same_v<T, float>) {
      if (call.state_dtype == DType::kBFloat16) return update<T, __nv_bfloat16>(call, stream);
      if (call.state_dtype == DType::kFloat16) return update<T, __half>(call, stream);
    } else if constexpr (!std::is_same_v<T, double>) {
      if (call.state_dtype == DType::kFloat32) return update<T, float>(call, stream);
    }
    return cudaErrorInvalidValue;
  }));
}

}  // namespace zoo::cuda
