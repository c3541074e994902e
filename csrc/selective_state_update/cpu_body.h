// One step of the selective scan on the CPU. A task is a vector of channels of one head; each of them goes
// along its states, W at a time, and the sums over the states are turned into one vector at the end.
#pragma once

#include "common/tile.h"
#include "selective_state_update/selective_state_update.h"

namespace zoo::ZOO_CPU {

namespace {

constexpr double kStepLog2E = 1.4426950408889634;

// T: signals, S: states.
template <class V, class T, class S>
class Step {
  using F = typename V::Scalar;
  static constexpr int W = V::kSize;

 public:
  explicit Step(const StateUpdate& call) : call_(call), blocks_((call.head_dim + W - 1) / W) {}

  int64_t tasks() const { return call_.batch * call_.heads * blocks_; }

  void run(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; i++) {
      const int64_t channel = i % blocks_ * W, left = call_.head_dim - channel;
      block(i / blocks_ / call_.heads, i / blocks_ % call_.heads, channel,
            static_cast<int>(left < W ? left : W));
    }
  }

 private:
  // n numbers, `stride` elements apart.
  template <class P>
  static ZOO_INLINE V gather(const P* p, int64_t stride, int n) {
    if (stride == 1) return n == W ? load(p) : load(p, n);
    P line[W];
    for (int i = 0; i < n; i++) line[i] = p[i * stride];
    return load(line, n);
  }

  template <class P>
  static ZOO_INLINE void scatter(P* p, int64_t stride, V v, int n) {
    if (stride == 1) return n == W ? store(p, v) : store(p, v, n);
    P line[W];
    store(line, v);
    for (int i = 0; i < n; i++) p[i * stride] = line[i];
  }

  static V signal(const StateUpdate::Signal& s, int64_t batch, int64_t head, int64_t channel, int n) {
    const T* const p = static_cast<const T*>(s.data);
    return gather(p + batch * s.batch + head * s.head + channel * s.channel, s.channel, n);
  }

  static const F* parameter(const StateUpdate::Parameter& p, int64_t head, int64_t channel) {
    return static_cast<const F*>(p.data) + head * p.head + channel * p.channel;
  }

  static const T* projection(const StateUpdate::Projection& m, int64_t batch, int64_t group) {
    return static_cast<const T*>(m.data) + batch * m.batch + group * m.group;
  }

  void block(int64_t batch, int64_t head, int64_t channel, int lanes) const {
    const V x = signal(call_.x, batch, head, channel, lanes);
    V dt = signal(call_.dt, batch, head, channel, lanes);
    if (call_.dt_bias.data)
      dt += gather(parameter(call_.dt_bias, head, channel), call_.dt_bias.channel, lanes);
    if (call_.softplus) dt = softplus(dt);
    F exponents[W], gains[W];  // log2(e) dt; dt x
    store(exponents, dt * V::set(static_cast<F>(kStepLog2E)));
    store(gains, dt * x);
    V sums[W];
    for (int c = 0; c < W; c++)
      sums[c] = c < lanes ? states(batch, head, channel + c, exponents[c], gains[c]) : V::set(0);
    transpose(sums);
    V y = sums[0];
    for (int c = 1; c < W; c++) y += sums[c];
    if (call_.D.data) y = fma(gather(parameter(call_.D, head, channel), call_.D.channel, lanes), x, y);
    if (call_.z.data) y = y * silu(signal(call_.z, batch, head, channel, lanes));
    const StateUpdate::Signal& out = call_.out;
    scatter(static_cast<T*>(out.data) + batch * out.batch + head * out.head + channel * out.channel,
            out.channel, y, lanes);
  }

  // Partial sums of C h, after the step.
  V states(int64_t batch, int64_t head, int64_t channel, F exponent, F gain) const {
    const int64_t group = head / (call_.heads / call_.groups), N = call_.state;
    S* const h = static_cast<S*>(call_.states) + batch * call_.states_batch +
                 head * call_.states_head + channel * call_.states_channel;
    const F* const A = parameter(call_.A, head, channel);
    const T *const B = projection(call_.B, batch, group), *const C = projection(call_.C, batch, group);
    const bool one_decay = call_.A.state == 0;
    const V e = V::set(exponent), g = V::set(gain), shared = exp2(e * V::set(*A));
    const V scale = V::set(call_.negative ? 2 : 1), shift = V::set(call_.negative ? -1 : 0);
    V sum = V::set(0);
    for (int64_t n = 0; n < N; n += W) {
      const int count = static_cast<int>(N - n < W ? N - n : W);
      const V b = gather(B + n * call_.B.state, call_.B.state, count);
      const V c = gather(C + n * call_.C.state, call_.C.state, count);
      const V exponential =
          one_decay ? shared : exp2(e * gather(A + n * call_.A.state, call_.A.state, count));
      S* const at = h + n * call_.states_state;
      const V decay = fma(exponential, scale, shift);
      const V next = fma(decay, gather(at, call_.states_state, count), g * b);
      scatter(at, call_.states_state, next, count);
      sum = fma(c, next, sum);
    }
    return sum;
  }

  const StateUpdate& call_;
  int64_t blocks_;
};

template <class V, class T, class S>
void step(const StateUpdate& call, const Threads& threads) {
  constexpr int64_t kTooFew = 1 << 14;  // states: waking threads would take longer
  const Step<V, T, S> work(call);
  if (call.batch * call.heads * call.head_dim * call.state < kTooFew) {
    work.run(0, work.tasks());
  } else {
    threads(work.tasks(), [&](int64_t begin, int64_t end) { work.run(begin, end); });
  }
}

template <class T>
void step_of_half(const StateUpdate& call, const Threads& threads) {
  call.state_dtype == DType::kFloat32 ? step<Vec, T, float>(call, threads)
                                      : step<Vec, T, T>(call, threads);
}

}  // namespace

void selective_state_update(const StateUpdate& call, const Threads& threads) {
  switch (call.dtype) {
    case DType::kFloat64: return step<VecD, double, double>(call, threads);
    case DType::kBFloat16: return step_of_half<BFloat16>(call, threads);
    case DType::kFloat16: return step_of_half<Float16>(call, threads);
    default: break;
  }
  switch (call.state_dtype) {
    case DType::kBFloat16: return step<Vec, float, BFloat16>(call, threads);
    case DType::kFloat16: return step<Vec, float, Float16>(call, threads);
    default: return step<Vec, float, float>(call, threads);
  }
}

}  // namespace zoo::ZOO_CPU
