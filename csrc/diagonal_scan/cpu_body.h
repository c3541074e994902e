// The scan of a diagonal recurrence on the CPU. A task is a block of channels of one sequence, whose states stand
// in the nearest cache; the compiler makes vectors of the loops over them.
#pragma once

#include "common/simd.h"
#include "diagonal_scan/diagonal_scan.h"

namespace zoo::ZOO_CPU {

namespace {

constexpr int64_t kScanBlock = 64;  // real numbers, an even count

// F: real numbers; kComplex: they stand in pairs.
template <class F, bool kComplex>
class DiagonalScanTasks {
 public:
  explicit DiagonalScanTasks(const DiagonalScan& call)
      : p_(call), blocks_((call.width + kScanBlock - 1) / kScanBlock) {}

  int64_t tasks() const { return p_.batch * blocks_; }

  void forward(int64_t task) const {
    const int64_t batch = task / blocks_, first = task % blocks_ * kScanBlock;
    const int64_t n = count(first);
    F state[kScanBlock];
    start(state, batch, first, n);
    for (int64_t i = 0; i < p_.length; i++) {
      const int64_t t = p_.reverse ? p_.length - 1 - i : i;
      if (is_reset(batch, t)) memset(state, 0, sizeof state);
      const F* __restrict const a = row(p_.a, batch, t) + first;
      const F* __restrict const b = row(p_.b, batch, t) + first;
      F* __restrict const x = row(p_.x, batch, t) + first;
      if constexpr (kComplex) {
        for (int64_t c = 0; c < n; c += 2) {
          const F re = a[c] * state[c] - a[c + 1] * state[c + 1] + b[c];
          const F im = a[c] * state[c + 1] + a[c + 1] * state[c] + b[c + 1];
          x[c] = state[c] = re;
          x[c + 1] = state[c + 1] = im;
        }
      } else {
        for (int64_t c = 0; c < n; c++) x[c] = state[c] = a[c] * state[c] + b[c];
      }
    }
  }

  void backward(const DiagonalScanBackward& g, int64_t task) const {
    const int64_t batch = task / blocks_, first = task % blocks_ * kScanBlock;
    const int64_t n = count(first);
    F grad[kScanBlock] = {};  // of the state that the step after this one has found
    F sum[kScanBlock] = {};   // of a, where it is constant
    F initial[kScanBlock];
    start(initial, batch, first, n);
    for (int64_t i = p_.length - 1; i >= 0; i--) {
      const int64_t t = p_.reverse ? p_.length - 1 - i : i, before = p_.reverse ? t + 1 : t - 1;
      const bool is_cut = is_reset(batch, t);
      const F* __restrict const a = row(p_.a, batch, t) + first;
      const F* __restrict const dx = row(g.dx, batch, t) + first;
      const F* __restrict const x = i == 0 ? initial : row(p_.x, batch, before) + first;
      const int64_t at = (batch * p_.length + t) * p_.width + first;
      F* __restrict const db = static_cast<F*>(g.db) + at;
      for (int64_t c = 0; c < n; c++) db[c] = grad[c] + dx[c];
      F* __restrict const da = g.a_is_constant ? sum : static_cast<F*>(g.da) + at;
      if (is_cut) {
        memset(grad, 0, sizeof grad);
        if (!g.a_is_constant) memset(da, 0, n * sizeof(F));
        continue;
      }
      const F keep = g.a_is_constant ? F{1} : F{0};
      if (!g.a_is_constant) memset(da, 0, n * sizeof(F));
      if constexpr (kComplex) {
        for (int64_t c = 0; c < n; c += 2) {
          const F re = db[c], im = db[c + 1];
          da[c] = keep * da[c] + re * x[c] + im * x[c + 1];
          da[c + 1] = keep * da[c + 1] + im * x[c] - re * x[c + 1];
          grad[c] = re * a[c] + im * a[c + 1];
          grad[c + 1] = im * a[c] - re * a[c + 1];
        }
      } else {
        for (int64_t c = 0; c < n; c++) {
          da[c] = keep * da[c] + db[c] * x[c];
          grad[c] = db[c] * a[c];
        }
      }
    }
    if (g.a_is_constant)
      memcpy(static_cast<F*>(g.da) + batch * p_.width + first, sum, n * sizeof(F));
    if (g.dinitial_state)
      memcpy(static_cast<F*>(g.dinitial_state) + batch * p_.width + first, grad, n * sizeof(F));
  }

 private:
  int64_t count(int64_t first) const {
    return p_.width - first < kScanBlock ? p_.width - first : kScanBlock;
  }

  bool is_reset(int64_t batch, int64_t t) const {
    return p_.reset && p_.reset[batch * p_.length + t];
  }

  static F* row(const DiagonalScan::Rows& rows, int64_t batch, int64_t t) {
    return static_cast<F*>(rows.data) + batch * rows.batch + t * rows.step;
  }

  void start(F* state, int64_t batch, int64_t first, int64_t n) const {
    memset(state, 0, kScanBlock * sizeof(F));
    if (p_.initial_state)
      memcpy(state, static_cast<const F*>(p_.initial_state) + batch * p_.width + first,
             n * sizeof(F));
  }

  const DiagonalScan& p_;
  int64_t blocks_;
};

template <class F, bool kComplex>
void scan_of(const DiagonalScan& call, const Threads& threads) {
  const DiagonalScanTasks<F, kComplex> work(call);
  threads(work.tasks(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) work.forward(i);
  });
}

template <class F, bool kComplex>
void scan_backward_of(const DiagonalScanBackward& call, const Threads& threads) {
  const DiagonalScanTasks<F, kComplex> work(call.scan);
  threads(work.tasks(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) work.backward(call, i);
  });
}

}  // namespace

void diagonal_scan(const DiagonalScan& call, const Threads& threads) {
  if (call.is_double) {
    call.is_complex ? scan_of<double, true>(call, threads) : scan_of<double, false>(call, threads);
  } else {
    call.is_complex ? scan_of<float, true>(call, threads) : scan_of<float, false>(call, threads);
  }
}

void diagonal_scan_backward(const DiagonalScanBackward& call, const Threads& threads) {
  if (call.scan.is_double) {
    call.scan.is_complex ? scan_backward_of<double, true>(call, threads)
                         : scan_backward_of<double, false>(call, threads);
  } else {
    call.scan.is_complex ? scan_backward_of<float, true>(call, threads)
                         : scan_backward_of<float, false>(call, threads);
  }
}

}  // namespace zoo::ZOO_CPU
