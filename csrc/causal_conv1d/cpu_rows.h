// The causal convolution on the CPU where the steps of a channel are neighbours in memory: vectors go
// along the steps of one channel.
//
// A row falls into runs: successive steps of one packed sequence, or all of it. Behind the first
// width - 1 steps of a run all taps are inside, and nothing needs to be asked.
#pragma once

#include "causal_conv1d/causal_conv1d.h"
#include "common/arena.h"
#include "common/tile.h"

namespace zoo::ZOO_CPU::conv {

template <class T>
T* row_of(const ConvSignal& s, int64_t batch, int64_t channel) {
  return static_cast<T*>(s.data) + batch * s.batch + channel * s.channel;
}

// How many taps there are: a constant for the usual widths, so that their loops unroll; with kWidth = 0 any
// number, which is known only when the program runs.
template <int kWidth>
struct Width {
  static constexpr int kMost = kWidth;

  explicit Width(int) {}
  static constexpr int width() { return kWidth; }
  static constexpr int before() { return kWidth - 1; }
};

template <>
struct Width<0> {
  static constexpr int kMost = kConvMostTaps;

  explicit Width(int width) : width_(width) {}
  int width() const { return width_; }
  int before() const { return width_ - 1; }

 private:
  int width_;
};

// Derivative of silu.
template <class V>
ZOO_INLINE V silu_slope(V x) {
  const V s = sigmoid(x);
  return s * fma(x, V::set(1) - s, V::set(1));
}

template <class V, class T, int kWidth>
class Rows : Width<kWidth> {
  using S = typename V::Scalar;
  using Width<kWidth>::kMost, Width<kWidth>::width, Width<kWidth>::before;
  static constexpr int W = V::kSize;

 public:
  Rows(Arena& arena, const ConvProblem& p) : Width<kWidth>(p.width), p_(p) {
    runs_ = arena.take<int64_t>(p.seq_idx ? p.length + 1 : 2);
    g_ = arena.take<S>(p.length + W);
  }

  void forward(const ConvForward& call, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      const int64_t b = i / p_.dim, d = i % p_.dim;
      if (i == begin || d == 0) find_runs(b);
      load_row(b, d);
      T* const out = row_of<T>(call.out, b, d);
      for (int64_t r = 0; r < run_count_; r++) {
        p_.silu ? forward_run<true>(out, runs_[r], runs_[r + 1])
                : forward_run<false>(out, runs_[r], runs_[r + 1]);
      }
    }
  }

  // Channels begin to end of all batch entries; dweight and dbias of these channels are complete then.
  void backward(const ConvBackward& call, int64_t begin, int64_t end) {
    S* const dweight = static_cast<S*>(call.dweight);
    S* const dbias = static_cast<S*>(call.dbias);
    memset(dweight + begin * width(), 0, (end - begin) * width() * sizeof(S));
    if (dbias) memset(dbias + begin, 0, (end - begin) * sizeof(S));
    for (int64_t b = 0; b < p_.batch; b++) {
      find_runs(b);
      for (int64_t d = begin; d < end; d++) {
        load_row(b, d);
        Sums sums(width());
        const T* const dout = row_of<const T>(call.dout, b, d);
        T* const dx = row_of<T>(call.dx, b, d);
        for (int64_t r = 0; r < run_count_; r++) {
          p_.silu ? gradient_of_run<true>(dout, runs_[r], runs_[r + 1], sums)
                  : gradient_of_run<false>(dout, runs_[r], runs_[r + 1], sums);
        }
        for (int64_t r = 0; r < run_count_; r++) input_gradient_of_run(dx, runs_[r], runs_[r + 1]);
        for (int k = 0; k < width(); k++) dweight[d * width() + k] += sum(sums.weight[k]);
        if (dbias) dbias[d] += sum(sums.bias);
        if (call.dinitial_states.data) initial_gradient(call.dinitial_states, b, d);
      }
    }
  }

 private:
  struct Sums {
    V weight[kMost], bias = V::set(0);

    explicit Sums(int width) {
      for (int k = 0; k < width; k++) weight[k] = V::set(0);
    }
  };

  static ZOO_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

  // Borders of the runs of a batch entry.
  void find_runs(int64_t b) {
    ids_ = p_.seq_idx ? p_.seq_idx + b * p_.length : nullptr;
    run_count_ = 1;
    runs_[0] = 0;
    for (int64_t t = 1; ids_ && t < p_.length; t++)
      if (ids_[t] != ids_[t - 1]) runs_[run_count_++] = t;
    runs_[run_count_] = p_.length;
  }

  void load_row(int64_t b, int64_t d) {
    x_ = row_of<const T>(p_.x, b, d);
    initial_ = p_.initial_states.data ? row_of<const T>(p_.initial_states, b, d) : nullptr;
    for (int k = 0; k < width(); k++)
      weight_[k] = V::set(static_cast<const S*>(p_.weight)[d * width() + k]);
    bias_ = V::set(p_.bias ? static_cast<const S*>(p_.bias)[d] : S(0));
  }

  // f(t, n): n steps from t on, in whole vectors as far as they go.
  template <class F>
  static ZOO_INLINE void for_steps(int64_t begin, int64_t end, const F& f) {
    int64_t t = begin;
    for (; t + W <= end; t += W) f(t, W);
    if (t < end) f(t, static_cast<int>(end - t));
  }

  // The element at p in all elements of a vector, and the reverse.
  template <class P>
  static ZOO_INLINE V broadcast(const P* p) {
    S first[W];
    store(first, load(p, 1));
    return V::set(first[0]);
  }

  static ZOO_INLINE V first_only(V v) {
    S all[W];
    store(all, v);
    return load(all, 1);
  }

  bool connected(int64_t t, int64_t from) const {
    return !ids_ || (from >= 0 && ids_[t] >= 0 && ids_[from] == ids_[t]);
  }

  // What tap k of step t reads, in all elements.
  V tap(int64_t t, int k) const {
    const int64_t from = t - before() + k;
    if (!connected(t, from)) return V::set(0);
    if (from >= 0) return broadcast(x_ + from);
    return initial_ ? broadcast(initial_ + (from + before()) * p_.initial_states.step) : V::set(0);
  }

  template <bool kSilu>
  void forward_run(T* out, int64_t begin, int64_t end) const {
    if (ids_ && ids_[begin] < 0) {
      for_steps(begin, end, [&](int64_t t, int n) { store(out + t, V::set(0), n); });
      return;
    }
    const int64_t inner = smaller(begin + before(), end);
    for (int64_t t = begin; t < inner; t++) {
      V y = bias_;
      for (int k = 0; k < width(); k++) y = fma(weight_[k], tap(t, k), y);
      store(out + t, kSilu ? silu(y) : y, 1);
    }
    V weight[kMost];  // in registers: `out` might change the members
    for (int k = 0; k < width(); k++) weight[k] = weight_[k];
    const V bias = bias_;
    const T* const x = x_ - before();
    for_steps(inner, end, [&](int64_t t, int n) {
      V y = bias;
      for (int k = 0; k < width(); k++)
        y = fma(weight[k], n == W ? load(x + t + k) : load(x + t + k, n), y);
      if (kSilu) y = silu(y);
      n == W ? store(out + t, y) : store(out + t, y, n);
    });
  }

  // g_[t]: gradient of step t before the activation; what the weights and the bias get from it.
  template <bool kSilu>
  void gradient_of_run(const T* dout, int64_t begin, int64_t end, Sums& all) {
    S* const to = g_;
    if (ids_ && ids_[begin] < 0) {
      memset(to + begin, 0, (end - begin) * sizeof(S));
      return;
    }
    V weight[kMost];
    for (int k = 0; k < width(); k++) weight[k] = weight_[k];
    const V bias = bias_;
    Sums sums = all;
    const auto step = [&](V g, const V(&taps)[kMost]) {
      if (kSilu) {
        V y = bias;
        for (int k = 0; k < width(); k++) y = fma(weight[k], taps[k], y);
        g = g * silu_slope(y);
      }
      for (int k = 0; k < width(); k++) sums.weight[k] = fma(g, taps[k], sums.weight[k]);
      sums.bias += g;
      return g;
    };
    const int64_t inner = smaller(begin + before(), end);
    for (int64_t t = begin; t < inner; t++) {
      V taps[kMost];
      for (int k = 0; k < width(); k++) taps[k] = first_only(tap(t, k));
      store(to + t, step(load(dout + t, 1), taps), 1);
    }
    const T* const x = x_ - before();
    for_steps(inner, end, [&](int64_t t, int n) {
      V taps[kMost];  // 0 behind the end, as is the gradient
      for (int k = 0; k < width(); k++) taps[k] = n == W ? load(x + t + k) : load(x + t + k, n);
      const V g = step(n == W ? load(dout + t) : load(dout + t, n), taps);
      n == W ? store(to + t, g) : store(to + t, g, n);
    });
    all = sums;
  }

  void input_gradient_of_run(T* dx, int64_t begin, int64_t end) const {
    const int64_t inner = end - before() > begin ? end - before() : begin;
    V weight[kMost];
    for (int k = 0; k < width(); k++) weight[k] = weight_[k];
    const S* const g = g_ + before();
    for_steps(begin, inner, [&](int64_t t, int n) {
      V v = V::set(0);
      for (int k = 0; k < width(); k++)
        v = fma(weight[k], n == W ? load(g + t - k) : load(g + t - k, n), v);
      n == W ? store(dx + t, v) : store(dx + t, v, n);
    });
    for (int64_t t = inner; t < end; t++) store(dx + t, input_gradient(t), 1);
  }

  // Of the input of step `from`, negative: an initial state.
  V input_gradient(int64_t from) const {
    V v = V::set(0);
    for (int k = 0; k < width(); k++) {
      const int64_t t = from + before() - k;
      if (t >= 0 && t < p_.length && connected(t, from)) v = fma(weight_[k], broadcast(g_ + t), v);
    }
    return v;
  }

  void initial_gradient(const ConvSignal& to, int64_t b, int64_t d) const {
    T* const row = row_of<T>(to, b, d);
    for (int j = 0; j < before(); j++) store(row + j * to.step, input_gradient(j - before()), 1);
  }

  const ConvProblem& p_;
  int64_t* runs_;
  S* g_;
  int64_t run_count_ = 0;
  const int32_t* ids_ = nullptr;
  const T *x_ = nullptr, *initial_ = nullptr;
  V weight_[kMost], bias_;
};

}  // namespace zoo::ZOO_CPU::conv
