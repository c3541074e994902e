// One step of each cell, forward and backward, written once for vectors on a CPU and numbers on a GPU.
//
// Who includes this defines ZOO_CELL, what its functions are to be marked with, and gives Math: a type of
// its own with
//
//   Number                                 what is computed with; + - * / are defined
//   set(x), max, min, exp, sigmoid, softplus
//   kHuge, kMostExponent                   so large that any difference becomes it; e^x is finite still
//
// A cell has kStates and kGates and, elementwise over channels,
//
//   forward(raw, s)                   s: the states before the step, then those after it
//   backward(raw, before, after, d)   d: gradients of the states after; then of those before, without what
//                                     goes through R; raw: gates before activation, then their gradients
//
// kInput[j]: the gate of Wx that kept gate j takes, -1 for none. The first gates of R are the first kept ones.
#pragma once

namespace zoo::cells {

template <class M>
struct Functions {
  using X = typename M::Number;

  static ZOO_CELL X one() { return M::set(1); }
  static ZOO_CELL X tanh(X x) { return M::set(2) * M::sigmoid(x + x) - one(); }
  static ZOO_CELL X slope(X sigmoid) { return sigmoid * (one() - sigmoid); }
  static ZOO_CELL X slope_of_tanh(X tanh) { return one() - tanh * tanh; }
  // 1 where x >= 0, else 0.
  static ZOO_CELL X at_least_zero(X x) {
    return one() - M::min(one(), M::max(M::set(0), M::set(-M::kHuge) * x));
  }
  // 1 where x is 0, else 0.
  static ZOO_CELL X is_zero(X x) {
    return one() - M::min(one(), M::set(M::kHuge) * M::max(x, M::set(0) - x));
  }
};

template <class M>
struct Elman : Functions<M> {
  using F = Functions<M>;
  using X = typename M::Number;
  static constexpr int kStates = 1, kGates = 1, kRecurrent = 1, kInputs = 1;
  static ZOO_CELL int input(int gate) { return gate; }

  static ZOO_CELL void forward(X (&raw)[1], X (&s)[1]) { s[0] = F::tanh(raw[0]); }
  static ZOO_CELL void backward(X (&raw)[1], const X (&)[1], const X (&after)[1], X (&d)[1]) {
    raw[0] = d[0] * F::slope_of_tanh(after[0]);
    d[0] = M::set(0);
  }
};

template <class M>
struct Lstm : Functions<M> {
  using F = Functions<M>;
  using X = typename M::Number;
  static constexpr int kStates = 2, kGates = 4, kRecurrent = 4, kInputs = 4;
  static ZOO_CELL int input(int gate) { return gate; }

  static ZOO_CELL void forward(X (&raw)[4], X (&s)[2]) {
    s[1] = M::sigmoid(raw[1]) * s[1] + M::sigmoid(raw[0]) * F::tanh(raw[2]);
    s[0] = M::sigmoid(raw[3]) * F::tanh(s[1]);
  }
  static ZOO_CELL void backward(X (&raw)[4], const X (&before)[2], const X (&after)[2], X (&d)[2]) {
    const X i = M::sigmoid(raw[0]), f = M::sigmoid(raw[1]), z = F::tanh(raw[2]);
    const X o = M::sigmoid(raw[3]), c = F::tanh(after[1]);
    const X dc = d[1] + d[0] * o * F::slope_of_tanh(c);
    raw[0] = dc * z * F::slope(i);
    raw[1] = dc * before[1] * F::slope(f);
    raw[2] = dc * i * F::slope_of_tanh(z);
    raw[3] = d[0] * c * F::slope(o);
    d[0] = M::set(0);
    d[1] = dc * f;
  }
};

// Gates g (of R alone), r, z, n (of Wx alone).
template <class M>
struct Gru : Functions<M> {
  using F = Functions<M>;
  using X = typename M::Number;
  static constexpr int kStates = 1, kGates = 4, kRecurrent = 3, kInputs = 3;
  static ZOO_CELL int input(int gate) { return gate - 1; }

  static ZOO_CELL void forward(X (&raw)[4], X (&s)[1]) {
    const X z = M::sigmoid(raw[2]), fresh = F::tanh(raw[3] + M::sigmoid(raw[1]) * raw[0]);
    s[0] = z * s[0] + (F::one() - z) * fresh;
  }
  static ZOO_CELL void backward(X (&raw)[4], const X (&before)[1], const X (&)[1], X (&d)[1]) {
    const X g = raw[0], r = M::sigmoid(raw[1]), z = M::sigmoid(raw[2]);
    const X fresh = F::tanh(raw[3] + r * g);
    const X dfresh = d[0] * (F::one() - z) * F::slope_of_tanh(fresh);
    raw[0] = dfresh * r;
    raw[1] = dfresh * g * F::slope(r);
    raw[2] = d[0] * (before[0] - fresh) * F::slope(z);
    raw[3] = dfresh;
    d[0] = d[0] * z;
  }
};

// States h, c, n, m: what stands for c and n is c e^m and n e^m.
template <class M>
struct Slstm : Functions<M> {
  using F = Functions<M>;
  using X = typename M::Number;
  static constexpr int kStates = 4, kGates = 4, kRecurrent = 4, kInputs = 4;
  static ZOO_CELL int input(int gate) { return gate; }

  struct Stabilised {
    X kept, offered;  // exponents of what is kept; the same, out of reach where there is nothing yet
    ZOO_CELL Stabilised(X f, X n, X m)
        : kept(m - M::softplus(M::set(0) - f)), offered(kept - F::is_zero(n) * M::set(M::kHuge)) {}
    ZOO_CELL X forget(X m) const { return M::exp(M::min(kept - m, M::set(M::kMostExponent))); }
  };

  static ZOO_CELL void forward(X (&raw)[4], X (&s)[4]) {
    const Stabilised before(raw[1], s[2], s[3]);
    const X m = M::max(raw[0], before.offered);
    const X i = M::exp(raw[0] - m), f = before.forget(m);
    s[1] = f * s[1] + i * F::tanh(raw[2]);
    s[2] = M::max(f * s[2] + i, F::one());
    s[3] = m;
    s[0] = M::sigmoid(raw[3]) * s[1] / s[2];
  }
  static ZOO_CELL void backward(X (&raw)[4], const X (&before)[4], const X (&after)[4], X (&d)[4]) {
    const Stabilised old(raw[1], before[2], before[3]);
    const X m = after[3], i = M::exp(raw[0] - m), f = old.forget(m);
    const X z = F::tanh(raw[2]), o = M::sigmoid(raw[3]), mean = after[1] / after[2];
    const X share = d[0] * o / after[2];
    const X dc = d[1] + share;
    const X dn = (d[2] - share * mean) * F::at_least_zero(f * before[2] + i - F::one());
    const X di = i * (dc * z + dn), df = f * (dc * before[1] + dn * before[2]);
    const X dm = d[3] - di - df, entered = F::at_least_zero(raw[0] - old.offered);
    const X dkept = df + (F::one() - entered) * dm;
    raw[0] = di + entered * dm;
    raw[2] = dc * i * F::slope_of_tanh(z);
    raw[3] = d[0] * mean * F::slope(o);
    raw[1] = dkept * M::sigmoid(M::set(0) - raw[1]);
    d[0] = M::set(0);
    d[1] = dc * f;
    d[2] = dn * f;
    d[3] = dkept;
  }
};

}  // namespace zoo::cells
