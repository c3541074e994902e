// The scan of a diagonal recurrence on a GPU. Neighbouring threads have neighbouring channels; the steps are cut
// into parts. First each part finds the product of its factors and the state that it leaves when it starts from
// zero, then one thread for each channel goes over the parts, then each part runs again from its true state.
#include "common/cuda.cuh"
#include "diagonal_scan/diagonal_scan.h"

namespace zoo::cuda {
namespace {

constexpr int kThreads = 128;

template <class F>
struct Real {
  static constexpr int kParts = 1;
  F re;

  static __device__ __forceinline__ Real read(const F* p) { return {*p}; }
  __device__ __forceinline__ void write(F* p) const { *p = re; }
  __device__ __forceinline__ Real conjugate() const { return *this; }
};

template <class F>
__device__ __forceinline__ Real<F> operator+(Real<F> a, Real<F> b) {
  return {a.re + b.re};
}
template <class F>
__device__ __forceinline__ Real<F> operator*(Real<F> a, Real<F> b) {
  return {a.re * b.re};
}

template <class F>
struct Pair {
  static constexpr int kParts = 2;
  F re, im;

  static __device__ __forceinline__ Pair read(const F* p) { return {p[0], p[1]}; }
  __device__ __forceinline__ void write(F* p) const {
    p[0] = re;
    p[1] = im;
  }
  __device__ __forceinline__ Pair conjugate() const { return {re, -im}; }
};

template <class F>
__device__ __forceinline__ Pair<F> operator+(Pair<F> a, Pair<F> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class F>
__device__ __forceinline__ Pair<F> operator*(Pair<F> a, Pair<F> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// A place of a thread: a channel of a sequence, and a part of its steps.
struct Place {
  bool active;
  int64_t batch, part, channel;  // channel: of the first real number

  __device__ Place(const DiagonalScan& call, int64_t parts, int numbers) {
    const int64_t channels = call.width / numbers;
    const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    active = i < call.batch * parts * channels;
    channel = i % channels * numbers;
    part = i / channels % parts;
    batch = i / channels / parts;
  }
  __device__ int64_t state(const DiagonalScan& call, int64_t parts) const {
    return (batch * parts + part) * call.width + channel;
  }
};

template <class F>
__device__ __forceinline__ F* row(const DiagonalScan::Rows& rows, int64_t batch, int64_t t) {
  return static_cast<F*>(rows.data) + batch * rows.batch + t * rows.step;
}

// What the i-th step of a pass does to the state that is handed on, forward s = a s + b, backward
// s = conj(a) (s + dx).
template <class F, class N>
struct Steps {
  const DiagonalScan& call;
  const DiagonalScan::Rows& inputs;  // b or dx
  bool backward;
  int64_t batch, channel;

  __device__ int64_t at(int64_t i) const {
    return call.reverse != backward ? call.length - 1 - i : i;
  }
  __device__ bool is_reset(int64_t t) const {
    return call.reset && call.reset[batch * call.length + t];
  }
  __device__ N factor(int64_t t) const {
    if (is_reset(t)) return N{};
    const N a = N::read(row<F>(call.a, batch, t) + channel);
    return backward ? a.conjugate() : a;
  }
  __device__ N input(int64_t t) const { return N::read(row<F>(inputs, batch, t) + channel); }
};

template <class F, class N>
__device__ __forceinline__ N one() {
  N n{};
  n.re = F{1};
  return n;
}

template <class F, class N>
__global__ void __launch_bounds__(kThreads)
    parts_kernel(DiagonalScan call, DiagonalScan::Rows inputs, bool backward, int64_t parts,
                 F* products, F* states) {
  const Place place(call, parts, N::kParts);
  if (!place.active) return;
  const Steps<F, N> steps{call, inputs, backward, place.batch, place.channel};
  N product = one<F, N>(), state{};
  const int64_t first = place.part * kDiagonalScanPart;
  const int64_t end = first + kDiagonalScanPart < call.length ? first + kDiagonalScanPart : call.length;
  for (int64_t i = first; i < end; ++i) {
    const int64_t t = steps.at(i);
    const N a = steps.factor(t), b = steps.input(t);
    product = a * product;
    state = backward ? a * (state + b) : a * state + b;
  }
  product.write(products + place.state(call, parts));
  state.write(states + place.state(call, parts));
}

// states: of each part, what it leaves when started from zero; then what it is started from.
template <class F, class N>
__global__ void __launch_bounds__(kThreads)
    carry_kernel(DiagonalScan call, bool backward, int64_t parts, const F* products, F* states) {
  Place place(call, 1, N::kParts);
  if (!place.active) return;
  N state{};
  if (!backward && call.initial_state)
    state = N::read(static_cast<const F*>(call.initial_state) + place.batch * call.width + place.channel);
  for (place.part = 0; place.part < parts; ++place.part) {
    const int64_t at = place.state(call, parts);
    const N next = N::read(products + at) * state + N::read(states + at);
    state.write(states + at);
    state = next;
  }
}

template <class F, class N>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(DiagonalScan call, int64_t parts, const F* states) {
  const Place place(call, parts, N::kParts);
  if (!place.active) return;
  const Steps<F, N> steps{call, call.b, false, place.batch, place.channel};
  N state{};
  if (parts > 1) {
    state = N::read(states + place.state(call, parts));
  } else if (call.initial_state) {
    state = N::read(static_cast<const F*>(call.initial_state) + place.batch * call.width + place.channel);
  }
  const int64_t first = place.part * kDiagonalScanPart;
  const int64_t end = first + kDiagonalScanPart < call.length ? first + kDiagonalScanPart : call.length;
  for (int64_t i = first; i < end; ++i) {
    const int64_t t = steps.at(i);
    state = steps.factor(t) * state + steps.input(t);
    state.write(row<F>(call.x, place.batch, t) + place.channel);
  }
}

// Writes db and the last part's dinitial_state, and da where it changes with time; sums of the other da go to
// `sums` [batch, part, width].
template <class F, class N>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(DiagonalScanBackward g, int64_t parts, const F* states, F* sums) {
  const DiagonalScan& call = g.scan;
  const Place place(call, parts, N::kParts);
  if (!place.active) return;
  const Steps<F, N> steps{call, g.dx, true, place.batch, place.channel};
  N grad{}, sum{};
  if (parts > 1) grad = N::read(states + place.state(call, parts));
  const int64_t first = place.part * kDiagonalScanPart;
  const int64_t end = first + kDiagonalScanPart < call.length ? first + kDiagonalScanPart : call.length;
  for (int64_t i = first; i < end; ++i) {
    const int64_t t = steps.at(i), at = (place.batch * call.length + t) * call.width + place.channel;
    const N db = grad + steps.input(t);
    db.write(static_cast<F*>(g.db) + at);
    N before{};
    if (i + 1 < call.length) {
      before = N::read(row<F>(call.x, place.batch, steps.at(i + 1)) + place.channel);
    } else if (call.initial_state) {
      before =
          N::read(static_cast<const F*>(call.initial_state) + place.batch * call.width + place.channel);
    }
    const N da = steps.is_reset(t) ? N{} : db * before.conjugate();
    if (g.a_is_constant) {
      sum = sum + da;
    } else {
      da.write(static_cast<F*>(g.da) + at);
    }
    grad = steps.factor(t) * db;
  }
  if (g.a_is_constant) sum.write(sums + place.state(call, parts));
  if (g.dinitial_state && place.part == parts - 1)
    grad.write(static_cast<F*>(g.dinitial_state) + place.batch * call.width + place.channel);
}

// Sums over the parts of [batch, part, width].
template <class F, class N>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(DiagonalScan call, int64_t parts, const F* sums, F* da) {
  Place place(call, 1, N::kParts);
  if (!place.active) return;
  N sum{};
  for (place.part = 0; place.part < parts; ++place.part)
    sum = sum + N::read(sums + place.state(call, parts));
  sum.write(da + place.batch * call.width + place.channel);
}

template <class F, class N>
cudaError_t scan(const DiagonalScan& call, const DiagonalScanBackward* g, void* scratch,
                 void* stream) {
  const int64_t parts = (call.length + kDiagonalScanPart - 1) / kDiagonalScanPart;
  const int64_t channels = call.batch * call.width / N::kParts;
  const dim3 all = blocks_for(channels * parts, kThreads), few = blocks_for(channels, kThreads);
  F* const products = static_cast<F*>(scratch);
  F* const states = products + call.batch * parts * call.width;
  const DiagonalScan::Rows inputs = g ? g->dx : call.b;
  FirstError failed;
  if (parts > 1) {
    failed(launch(parts_kernel<F, N>, all, kThreads, 0, stream, call, inputs, g != nullptr, parts,
                  products, states));
    failed(launch(carry_kernel<F, N>, few, kThreads, 0, stream, call, g != nullptr, parts,
                  static_cast<const F*>(products), states));
  }
  if (!g) {
    failed(launch(forward_kernel<F, N>, all, kThreads, 0, stream, call, parts,
                  static_cast<const F*>(states)));
    return failed.first();
  }
  // The products have served, their memory takes the sums; a single part writes da itself.
  F* const sums = parts > 1 ? products : static_cast<F*>(g->da);
  failed(launch(backward_kernel<F, N>, all, kThreads, 0, stream, *g, parts,
                static_cast<const F*>(states), sums));
  if (g->a_is_constant && parts > 1)
    failed(launch(sum_kernel<F, N>, few, kThreads, 0, stream, call, parts,
                  static_cast<const F*>(sums), static_cast<F*>(g->da)));
  return failed.first();
}

cudaError_t scan_any(const DiagonalScan& call, const DiagonalScanBackward* g, void* scratch,
                     void* stream) {
  if (call.is_double)
    return call.is_complex ? scan<double, Pair<double>>(call, g, scratch, stream)
                           : scan<double, Real<double>>(call, g, scratch, stream);
  return call.is_complex ? scan<float, Pair<float>>(call, g, scratch, stream)
                         : scan<float, Real<float>>(call, g, scratch, stream);
}

}  // namespace

const char* diagonal_scan(const DiagonalScan& call, void* scratch, void* stream) {
  if (call.batch == 0) return nullptr;
  return message(scan_any(call, nullptr, scratch, stream));
}

const char* diagonal_scan_backward(const DiagonalScanBackward& call, void* scratch, void* stream) {
  if (call.scan.batch == 0) return nullptr;
  return message(scan_any(call.scan, &call, scratch, stream));
}

}  // namespace zoo::cuda
