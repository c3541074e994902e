// Checks the tensors of the causal convolution and hands them to the kernels. The messages for users come from
// zoo/ops/causal_conv1d.py.
#include "causal_conv1d/causal_conv1d.h"

#include "common/checks.h"

namespace zoo {
namespace {

ConvSignal signal_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

bool by_rows(const Tensor& t) { return t.stride(2) == 1; }

// Laid out as x: one of the last two dimensions has stride 1.
Tensor empty_like_signal(const Tensor& x) {
  const int64_t b = x.size(0), d = x.size(1), l = x.size(2);
  if (by_rows(x)) return new_empty(x, {b, d, l}, x.scalar_type());
  return new_empty_strided(x, {b, d, l}, {d * l, 1, d});
}

void check_signal(const char* op, const Tensor& x) {
  dtype_of(op, "x", x);
  ZOO_CHECK(x.dim() == 3, op, ": x is ", text_of(x), ", expected [batch, dim, length]");
}

// Weights and bias; x has been checked.
void check_parameters(const Checks& checks, const char* op, const Tensor& x, const Tensor& weight,
                      const Optional& bias) {
  const ScalarType compute = accumulator_of(x);
  checks.not_empty(x, "x", {1, 2});
  checks.counts("a length", x.size(2));
  checks.counts("batch * dim", x.size(0) * x.size(1));
  checks.plain(weight, "weight", {x.size(1), kAnySize}, compute);
  ZOO_CHECK(weight.size(1) >= 1 && weight.size(1) <= kConvMostTaps, op, ": weight is ",
            text_of(weight), ", but the filter must have 1 to ", kConvMostTaps, " taps");
  checks.plain(bias, "bias", {x.size(1)}, compute);
}

ConvProblem problem_of(const char* op, const Tensor& x, const Tensor& weight, const Optional& bias,
                       const Optional& seq_idx, const Optional& initial_states, bool silu) {
  check_signal(op, x);
  const Checks checks(op, "x", x);
  check_parameters(checks, op, x, weight, bias);
  ZOO_CHECK(x.stride(1) == 1 || x.stride(2) == 1, op,
            ": x must have stride 1 along dim or along length");
  const int64_t b = x.size(0), d = x.size(1), l = x.size(2), before = weight.size(1) - 1;
  if (initial_states)
    checks.fits(*initial_states, "initial_states", {b, d, before}, x.scalar_type());
  ZOO_CHECK(!seq_idx || !initial_states, op, ": seq_idx and initial_states exclude each other");
  return {
      .dtype = dtype_of(op, "x", x),
      .batch = b,
      .dim = d,
      .length = l,
      .width = static_cast<int>(weight.size(1)),
      .silu = silu,
      .x = signal_of(x),
      .weight = weight.data_ptr(),
      .bias = bias ? bias->data_ptr() : nullptr,
      .seq_idx = static_cast<const int32_t*>(
          checks.plain(seq_idx, "seq_idx", {b, l}, ScalarType::Int)),
      .initial_states = initial_states ? signal_of(*initial_states) : ConvSignal{},
  };
}

#ifndef ZOO_CUDA
void check(bool done) { ZOO_CHECK(done, "no memory for causal_conv1d"); }
#endif

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const Optional& bias,
                     const Optional& seq_idx, const Optional& initial_states, bool silu) {
  const ConvProblem problem = problem_of("causal_conv1d", x, weight, bias, seq_idx, initial_states, silu);
  Tensor out = empty_like_signal(x);
  const ConvForward call{problem, signal_of(out)};
  if (problem.batch == 0) return out;
#ifdef ZOO_CUDA
  const OnDevice device(x);
  check_cuda("causal_conv1d", cuda::causal_conv1d_forward(call, device.stream));
#else
  check(ZOO_CPU_SELECT(causal_conv1d_forward)(call, threads()));
#endif
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> causal_conv1d_backward(
    const Tensor& dout, const Tensor& x, const Tensor& weight, const Optional& bias,
    const Optional& seq_idx, const Optional& initial_states, bool silu) {
  constexpr const char* op = "causal_conv1d_backward";
  ConvBackward call{.problem = problem_of(op, x, weight, bias, seq_idx, initial_states, silu)};
  const ConvProblem& p = call.problem;
  Checks(op, "x", x).fits(dout, "dout", {p.batch, p.dim, p.length}, x.scalar_type());
  ZOO_CHECK(by_rows(x) ? by_rows(dout) : dout.stride(1) == 1, op,
            ": dout must have stride 1 where x has it");
  const ScalarType compute = weight.scalar_type();
  Tensor dx = empty_like_signal(x);
  Tensor dweight = new_zeros(x, {p.dim, p.width}, compute);
  Tensor dbias = new_zeros(x, {bias ? p.dim : 0}, compute);
  Tensor dinitial = initial_states
                        ? new_empty(x, {p.batch, p.dim, p.width - 1}, x.scalar_type())
                        : new_empty(x, {0}, x.scalar_type());
  call.dout = signal_of(dout);
  call.dx = signal_of(dx);
  call.dinitial_states = initial_states ? signal_of(dinitial) : ConvSignal{};
  call.dweight = dweight.data_ptr();
  call.dbias = bias ? dbias.data_ptr() : nullptr;
  if (p.batch > 0) {
#ifdef ZOO_CUDA
    const OnDevice device(x);
    const Tensor workspace = scratch_memory(x, cuda::causal_conv1d_workspace(call));
    check_cuda("causal_conv1d_backward",
               cuda::causal_conv1d_backward(call, workspace.data_ptr(), device.stream));
#else
    check(ZOO_CPU_SELECT(causal_conv1d_backward)(call, threads()));
#endif
  }
  return {dx, dweight, dbias, dinitial};
}

Tensor causal_conv1d_update(const Tensor& x, const Tensor& conv_state, const Tensor& weight,
                            const Optional& bias, const Optional& cache_seqlens, bool silu) {
  constexpr const char* op = "causal_conv1d_update";
  check_signal(op, x);
  const Checks checks(op, "x", x);
  check_parameters(checks, op, x, weight, bias);
  const int64_t b = x.size(0), d = x.size(1), l = x.size(2);
  checks.fits(conv_state, "conv_state", {b, d, kAnySize}, x.scalar_type());
  ZOO_CHECK(conv_state.size(2) >= weight.size(1) - 1, op, ": conv_state is ", text_of(conv_state),
            ", but must hold ", weight.size(1) - 1, " inputs at least");
  checks.counts("a state", conv_state.size(2));
  const void* const positions = checks.plain(cache_seqlens, "cache_seqlens", {b}, ScalarType::Int);
  checks.will_change(conv_state, "conv_state",
                     {&x, &weight, address_of(bias), address_of(cache_seqlens)});
  Tensor out = new_empty(x, {b, d, l}, x.scalar_type());
  const ConvUpdate call{
      .dtype = dtype_of(op, "x", x),
      .batch = b,
      .dim = d,
      .length = l,
      .size = conv_state.size(2),
      .width = static_cast<int>(weight.size(1)),
      .silu = silu,
      .x = signal_of(x),
      .state = signal_of(conv_state),
      .out = signal_of(out),
      .weight = weight.data_ptr(),
      .bias = bias ? bias->data_ptr() : nullptr,
      .cache_seqlens = static_cast<const int32_t*>(positions),
  };
  if (b == 0) return out;
#ifdef ZOO_CUDA
  const OnDevice device(x);
  check_cuda("causal_conv1d_update", cuda::causal_conv1d_update(call, device.stream));
#else
  check(ZOO_CPU_SELECT(causal_conv1d_update)(call, threads()));
#endif
  return out;
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("causal_conv1d", ZOO_BOX(zoo::causal_conv1d));
  m.impl("causal_conv1d_backward", ZOO_BOX(zoo::causal_conv1d_backward));
  m.impl("causal_conv1d_update", ZOO_BOX(zoo::causal_conv1d_update));
}
