#include "causal_conv1d/causal_conv1d.h"

#include "common/binding.h"
#ifdef ZOO_CUDA
#include "common/binding_cuda.h"
#endif

namespace zoo {
namespace {

using Optional = std::optional<Tensor>;

ConvSignal signal_of(const Tensor& t) {
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

bool by_rows(const Tensor& t) { return t.stride(2) == 1; }

// Laid out as x: one of the last two dimensions has stride 1.
Tensor empty_like_signal(const Tensor& x) {
  const int64_t b = x.size(0), d = x.size(1), l = x.size(2);
  if (by_rows(x)) return new_empty(x, {b, d, l}, x.scalar_type());
  return transposed(new_empty(x, {b, l, d}, x.scalar_type()), 1, 2);
}

void check_parameters(const Tensor& x, const Tensor& weight, const Optional& bias) {
  const ScalarType compute =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  ZOO_CHECK(weight.dim() == 2 && weight.size(0) == x.size(1) && weight.size(1) >= 1 &&
                weight.size(1) <= kConvMostTaps && weight.scalar_type() == compute &&
                weight.is_contiguous(),
            "causal_conv1d: weight must be [dim, 1 to 64], contiguous, in the accumulator's dtype");
  ZOO_CHECK(!bias || (bias->dim() == 1 && bias->size(0) == x.size(1) &&
                      bias->scalar_type() == compute && bias->is_contiguous()),
            "causal_conv1d: bias must be [dim], contiguous, in the accumulator's dtype");
}

ConvProblem problem_of(const Tensor& x, const Tensor& weight, const Optional& bias,
                       const Optional& seq_idx, const Optional& initial_states, bool silu) {
  ZOO_CHECK(x.dim() == 3 && (x.stride(1) == 1 || x.stride(2) == 1),
            "causal_conv1d: x must be [batch, dim, length] with stride 1 along dim or length");
  check_parameters(x, weight, bias);
  const int64_t b = x.size(0), d = x.size(1), l = x.size(2), before = weight.size(1) - 1;
  ZOO_CHECK(!seq_idx || (seq_idx->dim() == 2 && seq_idx->size(0) == b && seq_idx->size(1) == l &&
                         seq_idx->scalar_type() == ScalarType::Int && seq_idx->is_contiguous()),
            "causal_conv1d: seq_idx must be int32 [batch, length], contiguous");
  ZOO_CHECK(!initial_states ||
                (initial_states->dim() == 3 && initial_states->size(0) == b &&
                 initial_states->size(1) == d && initial_states->size(2) == before &&
                 initial_states->scalar_type() == x.scalar_type() && !seq_idx),
            "causal_conv1d: initial_states must be [batch, dim, width - 1] in the dtype of x, and "
            "not together with seq_idx");
  return {
      .dtype = dtype_of(x),
      .batch = b,
      .dim = d,
      .length = l,
      .width = static_cast<int>(weight.size(1)),
      .silu = silu,
      .x = signal_of(x),
      .weight = weight.data_ptr(),
      .bias = bias ? bias->data_ptr() : nullptr,
      .seq_idx = seq_idx ? static_cast<const int32_t*>(seq_idx->data_ptr()) : nullptr,
      .initial_states = initial_states ? signal_of(*initial_states) : ConvSignal{},
  };
}

#ifndef ZOO_CUDA
void check(bool done) { ZOO_CHECK(done, "no memory for causal_conv1d"); }
#endif

Tensor causal_conv1d(const Tensor& x, const Tensor& weight, const Optional& bias,
                     const Optional& seq_idx, const Optional& initial_states, bool silu) {
  const ConvProblem problem = problem_of(x, weight, bias, seq_idx, initial_states, silu);
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
  ConvBackward call{.problem = problem_of(x, weight, bias, seq_idx, initial_states, silu)};
  const ConvProblem& p = call.problem;
  ZOO_CHECK(dout.dim() == 3 && dout.size(0) == p.batch && dout.size(1) == p.dim &&
                dout.size(2) == p.length && dout.scalar_type() == x.scalar_type() &&
                (by_rows(x) ? dout.stride(2) == 1 : dout.stride(1) == 1),
            "causal_conv1d: the gradient must have the shape, dtype and layout of x");
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
  ZOO_CHECK(x.dim() == 3, "causal_conv1d_update: x must be [batch, dim, length]");
  check_parameters(x, weight, bias);
  const int64_t b = x.size(0), d = x.size(1), l = x.size(2);
  ZOO_CHECK(conv_state.dim() == 3 && conv_state.size(0) == b && conv_state.size(1) == d &&
                conv_state.size(2) >= weight.size(1) - 1 &&
                conv_state.scalar_type() == x.scalar_type(),
            "causal_conv1d_update: conv_state must be [batch, dim, >= width - 1] in the dtype of x");
  ZOO_CHECK(!cache_seqlens ||
                (cache_seqlens->dim() == 1 && cache_seqlens->size(0) == b &&
                 cache_seqlens->scalar_type() == ScalarType::Int && cache_seqlens->is_contiguous()),
            "causal_conv1d_update: cache_seqlens must be int32 [batch], contiguous");
  Tensor out = new_empty(x, {b, d, l}, x.scalar_type());
  const ConvUpdate call{
      .dtype = dtype_of(x),
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
      .cache_seqlens =
          cache_seqlens ? static_cast<const int32_t*>(cache_seqlens->data_ptr()) : nullptr,
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

#ifdef ZOO_CUDA
ZOO_LIBRARY_IMPL(CUDA, m) {
#else
ZOO_LIBRARY_IMPL(CPU, m) {
#endif
  m.impl("causal_conv1d", ZOO_BOX(zoo::causal_conv1d));
  m.impl("causal_conv1d_backward", ZOO_BOX(zoo::causal_conv1d_backward));
  m.impl("causal_conv1d_update", ZOO_BOX(zoo::causal_conv1d_update));
}
