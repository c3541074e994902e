// Sums of complex exponentials on the CPU. Lanes are successive steps. The powers of a mode come from each
// other: from vector to vector by one product in the dtype of the call, from block to block in float64, so
// that their phases stay exact over any length.
#pragma once

#include "common/simd.h"
#include "vandermonde_kernel/vandermonde_kernel.h"

namespace zoo::ZOO_CPU {

namespace {

struct Complex {
  double re, im;
};

ZOO_INLINE Complex product(Complex a, Complex b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// Modes whose powers are held in registers at the same time, which hides the latency of the products.
constexpr int kModes = 4;
// Vectors of steps until the powers are taken from float64 again.
constexpr int kVectors = 32;

template <class V>
struct Powers {
  using F = typename V::Scalar;
  static constexpr int W = V::kSize;
  static constexpr int64_t kBlock = int64_t{W} * kVectors;

  Complex block[kModes];      // exp(x kBlock)
  Complex base[kModes];       // exp(x l) at the start of the current block
  F lanes[kModes][2][W];      // exp(x j)
  V step_re[kModes], step_im[kModes];  // exp(x W)
  V re[kModes], im[kModes];   // exp(x (l + j))

  // The first `count` of these modes; the others are zero.
  Powers(const F* x, int count) {
    for (int k = 0; k < kModes; k++) {
      Complex power = {k < count ? 1.0 : 0.0, 0.0};
      Complex one = {0, 0};
      if (k < count) {
        const double size = ::exp(static_cast<double>(x[2 * k])), angle = x[2 * k + 1];
        one = {size * ::cos(angle), size * ::sin(angle)};
      }
      base[k] = power;
      for (int j = 0; j < W; j++) {
        lanes[k][0][j] = static_cast<F>(power.re);
        lanes[k][1][j] = static_cast<F>(power.im);
        power = product(power, one);
      }
      step_re[k] = V::set(static_cast<F>(power.re));
      step_im[k] = V::set(static_cast<F>(power.im));
      for (int i = 1; i < kVectors; i *= 2) power = product(power, power);
      block[k] = power;
    }
  }

  ZOO_INLINE void start_block() {
    for (int k = 0; k < kModes; k++) {
      const V a = V::set(static_cast<F>(base[k].re)), b = V::set(static_cast<F>(base[k].im));
      const V c = load(lanes[k][0]), d = load(lanes[k][1]);
      re[k] = a * c - b * d;
      im[k] = fma(a, d, b * c);
      base[k] = product(base[k], block[k]);
    }
  }

  ZOO_INLINE void advance() {
    for (int k = 0; k < kModes; k++) {
      const V next = re[k] * step_re[k] - im[k] * step_im[k];
      im[k] = fma(re[k], step_im[k], im[k] * step_re[k]);
      re[k] = next;
    }
  }

  // Whether nothing of these modes is left, nor will be: then the rest of the sequence may be left out.
  bool are_over() const {
    constexpr double kNothing = 1e-36;
    for (int k = 0; k < kModes; k++) {
      const double size = base[k].re * base[k].re + base[k].im * base[k].im;
      const double growth = block[k].re * block[k].re + block[k].im * block[k].im;
      if (!(size < kNothing * kNothing && growth <= 1)) return false;
    }
    return true;
  }
};

template <class V>
class VandermondeWork {
  using F = typename V::Scalar;
  static constexpr int W = V::kSize;
  static constexpr int64_t kBlock = Powers<V>::kBlock;

 public:
  explicit VandermondeWork(const Vandermonde& call) : p_(call), groups_((call.modes + kModes - 1) / kModes) {}

  int64_t kernel_tasks() const { return p_.features; }
  int64_t transpose_tasks() const { return p_.features * groups_; }

  // All rows of one feature.
  void kernel(int64_t h) const {
    F* const out = static_cast<F*>(p_.out) + h * p_.length;
    const int64_t row_size = p_.features * p_.length;
    for (int64_t r = 0; r < p_.rows; r++) memset(out + r * row_size, 0, p_.length * sizeof(F));
    for (int64_t n = 0; n < p_.modes; n += kModes) {
      const int count = modes_at(n);
      for (int64_t r = 0; r < p_.rows;) {
        const int64_t left = p_.rows - r;
        if (left >= 2) add_modes<2>(h, n, count, r, out + r * row_size, row_size), r += 2;
        else add_modes<1>(h, n, count, r, out + r * row_size, row_size), r += 1;
      }
    }
  }

  // All rows of a few modes of one feature.
  void transpose(int64_t task) const {
    const int64_t h = task / groups_, n = task % groups_ * kModes;
    for (int64_t r = 0; r < p_.rows; r++) {
      if (p_.moments == 2) sum_steps<2>(h, n, modes_at(n), r);
      else sum_steps<1>(h, n, modes_at(n), r);
    }
  }

 private:
  int modes_at(int64_t n) const {
    return static_cast<int>(p_.modes - n < kModes ? p_.modes - n : kModes);
  }

  Powers<V> powers(int64_t h, int64_t n, int count) const {
    return Powers<V>(static_cast<const F*>(p_.x) + (h * p_.modes + n) * 2, count);
  }

  template <int R>
  void add_modes(int64_t h, int64_t n, int count, int64_t row, F* out, int64_t row_size) const {
    Powers<V> p = powers(h, n, count);
    V v_re[R][kModes], v_im[R][kModes];  // 2 Re v, -2 Im v
    for (int r = 0; r < R; r++) {
      const F* const v = static_cast<const F*>(p_.v) + (((row + r) * p_.features + h) * p_.modes + n) * 2;
      for (int k = 0; k < kModes; k++) {
        v_re[r][k] = V::set(k < count ? 2 * v[2 * k] : F{0});
        v_im[r][k] = V::set(k < count ? -2 * v[2 * k + 1] : F{0});
      }
    }
    for (int64_t start = 0; start < p_.length; start += kBlock) {
      if (p.are_over()) return;
      p.start_block();
      const int64_t end = start + kBlock < p_.length ? start + kBlock : p_.length;
      int64_t l = start;
      for (; l + W <= end; l += W) {
        for (int r = 0; r < R; r++) {
          F* const at = out + r * row_size + l;
          store(at, add(load(at), p, v_re[r], v_im[r]));
        }
        p.advance();
      }
      if (l < end) {
        const int lanes = static_cast<int>(end - l);
        for (int r = 0; r < R; r++) {
          F* const at = out + r * row_size + l;
          store(at, add(load(at, lanes), p, v_re[r], v_im[r]), lanes);
        }
      }
    }
  }

  static ZOO_INLINE V add(V sum, const Powers<V>& p, const V (&v_re)[kModes], const V (&v_im)[kModes]) {
    for (int k = 0; k < kModes; k++) sum = fma(v_im[k], p.im[k], fma(v_re[k], p.re[k], sum));
    return sum;
  }

  template <int M>
  void sum_steps(int64_t h, int64_t n, int count, int64_t row) const {
    const F* const u = static_cast<const F*>(p_.u) + (row * p_.features + h) * p_.length;
    Powers<V> p = powers(h, n, count);
    double sums[M][kModes][2] = {};
    F ramp_values[W];
    for (int j = 0; j < W; j++) ramp_values[j] = static_cast<F>(j);
    const V ramp = load(ramp_values);
    for (int64_t start = 0; start < p_.length; start += kBlock) {
      if (p.are_over()) break;
      p.start_block();
      const int64_t end = start + kBlock < p_.length ? start + kBlock : p_.length;
      V re[M][kModes], im[M][kModes];  // over this block; the factor counts from its start
      for (int m = 0; m < M; m++)
        for (int k = 0; k < kModes; k++) re[m][k] = im[m][k] = V::set(0);
      for (int64_t l = start; l < end; l += W) {
        const V value = l + W <= end ? load(u + l) : load(u + l, static_cast<int>(end - l));
        const V weighted = M == 1 ? value : value * (ramp + V::set(static_cast<F>(l - start)));
        for (int k = 0; k < kModes; k++) {
          re[0][k] = fma(value, p.re[k], re[0][k]);
          im[0][k] = fma(value, p.im[k], im[0][k]);
          if (M == 2) {
            re[M - 1][k] = fma(weighted, p.re[k], re[M - 1][k]);
            im[M - 1][k] = fma(weighted, p.im[k], im[M - 1][k]);
          }
        }
        p.advance();
      }
      for (int k = 0; k < count; k++) {
        const double a = sum(re[0][k]), b = sum(im[0][k]);
        sums[0][k][0] += a;
        sums[0][k][1] += b;
        if (M == 2) {
          sums[M - 1][k][0] += sum(re[M - 1][k]) + a * static_cast<double>(start);
          sums[M - 1][k][1] += sum(im[M - 1][k]) + b * static_cast<double>(start);
        }
      }
    }
    for (int m = 0; m < M; m++) {
      F* const out = static_cast<F*>(p_.out) + (((m * p_.rows + row) * p_.features + h) * p_.modes + n) * 2;
      for (int k = 0; k < count; k++)
        for (int part = 0; part < 2; part++) out[2 * k + part] = static_cast<F>(sums[m][k][part]);
    }
  }

  const Vandermonde& p_;
  int64_t groups_;
};

// Products of modes and steps below which waking threads would take longer.
constexpr int64_t kTooFew = 1 << 15;

template <class V>
void vandermonde_kernel_typed(const Vandermonde& call, const Threads& threads) {
  const VandermondeWork<V> work(call);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; h++) work.kernel(h);
  };
  if (call.rows * call.features * call.modes * call.length < kTooFew) run(0, work.kernel_tasks());
  else threads(work.kernel_tasks(), run);
}

template <class V>
void vandermonde_transpose_typed(const Vandermonde& call, const Threads& threads) {
  const VandermondeWork<V> work(call);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; task++) work.transpose(task);
  };
  if (call.rows * call.features * call.modes * call.length < kTooFew) run(0, work.transpose_tasks());
  else threads(work.transpose_tasks(), run);
}

}  // namespace

void vandermonde_kernel(const Vandermonde& call, const Threads& threads) {
  call.dtype == DType::kFloat64 ? vandermonde_kernel_typed<VecD>(call, threads)
                                : vandermonde_kernel_typed<Vec>(call, threads);
}

void vandermonde_transpose(const Vandermonde& call, const Threads& threads) {
  call.dtype == DType::kFloat64 ? vandermonde_transpose_typed<VecD>(call, threads)
                                : vandermonde_transpose_typed<Vec>(call, threads);
}

}  // namespace zoo::ZOO_CPU
