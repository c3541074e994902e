// Checks the tensors of the delta rule and hands them to the kernels. The messages for users come from
// zoo/ops/delta_rule.py.
#include "common/checks.h"
#include "delta_rule/delta_rule.h"

namespace zoo {
namespace {

int64_t spans_of(const DeltaProblem& p) { return (p.length + kDeltaSpan - 1) / kDeltaSpan; }

DeltaProblem problem(const char* op, const Checks& checks, const Tensor& q, const Tensor& k,
                     const Tensor& v, const Optional& beta, const Optional& decay,
                     const Optional& initial_state, int64_t span) {
  const ScalarType dtype = k.scalar_type();
  ZOO_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": k is ", text_of(k),
            ", expected float32 or float64");
  ZOO_CHECK(k.dim() == 4 && v.dim() == 4, op, ": k is ", text_of(k), " and v is ", text_of(v),
            ", expected [batch, length, heads, state] and [batch, length, heads, channels]");
  checks.not_empty(k, "k", {1, 2, 3});
  checks.not_empty(v, "v", {3});
  ZOO_CHECK(span == 0 || span == kDeltaSpan, op, ": span is ", span, ", expected ", kDeltaSpan);
  DeltaProblem p{};
  p.dtype = dtype_of(op, "k", k);
  p.batch = k.size(0);
  p.length = k.size(1);
  p.heads = k.size(2);
  p.state = k.size(3);
  p.head_dim = v.size(3);
  checks.counts("a length", p.length);
  checks.counts("a state", p.state);
  const Sizes rows{p.batch, p.length, p.heads};
  p.q = checks.plain(q, "q", {p.batch, p.length, p.heads, p.state}, dtype);
  p.k = checks.plain(k, "k", {p.batch, p.length, p.heads, p.state}, dtype);
  p.v = checks.plain(v, "v", {p.batch, p.length, p.heads, p.head_dim}, dtype);
  p.beta = checks.plain(beta, "beta", rows, dtype);
  p.decay = checks.plain(decay, "decay", rows, dtype);
  p.initial_state = checks.plain(initial_state, "initial_state",
                                 {p.batch, p.heads, p.state, p.head_dim}, dtype);
  return p;
}

#ifdef ZOO_CUDA

void run(const DeltaForward& call, const Tensor& k) {
  const OnDevice device(k);
  check_cuda("delta_rule", cuda::delta_forward(call, device.stream));
}

void run(const DeltaBackward& call, const Tensor& k) {
  const OnDevice device(k);
  Tensor workspace = scratch_memory(k, cuda::delta_workspace(call));
  check_cuda("delta_rule_backward",
             cuda::delta_backward(call, workspace.mutable_data_ptr(), device.stream));
}

#else

void run(const DeltaForward& call, const Tensor&) {
  ZOO_CHECK(ZOO_CPU_SELECT(delta_forward)(call, threads()), "delta_rule: not enough memory");
}

void run(const DeltaBackward& call, const Tensor&) {
  ZOO_CHECK(ZOO_CPU_SELECT(delta_backward)(call, threads()),
            "delta_rule_backward: not enough memory");
}

#endif

std::tuple<Tensor, Tensor, Tensor> delta_rule(const Tensor& q, const Tensor& k, const Tensor& v,
                                              const Optional& beta, const Optional& decay,
                                              const Optional& initial_state, int64_t span) {
  const Checks checks("delta_rule", "k", k);
  DeltaForward call{};
  call.problem = problem("delta_rule", checks, q, k, v, beta, decay, initial_state, span);
  const DeltaProblem& p = call.problem;
  const ScalarType dtype = k.scalar_type();
  Tensor out = new_empty(k, {p.batch, p.length, p.heads, p.head_dim}, dtype);
  Tensor last_state = new_empty(k, {p.batch, p.heads, p.state, p.head_dim}, dtype);
  Tensor borders =
      span == 0 ? new_empty(k, {0}, dtype)
                : new_empty(k, {p.batch, spans_of(p), p.heads, p.state * p.head_dim}, dtype);
  call.out = out.mutable_data_ptr();
  call.last_state = last_state.mutable_data_ptr();
  if (span != 0) call.borders = borders.mutable_data_ptr();
  if (p.batch > 0) run(call, k);
  return {out, last_state, borders};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradient of what is absent has no elements.
Gradients delta_rule_backward(const Optional& dout, const Optional& dlast_state,
                              const Tensor& borders, const Tensor& q, const Tensor& k,
                              const Tensor& v, const Optional& beta, const Optional& decay,
                              const Optional& initial_state, int64_t span) {
  const char* const op = "delta_rule_backward";
  const Checks checks(op, "k", k);
  DeltaBackward call{};
  call.problem = problem(op, checks, q, k, v, beta, decay, initial_state, span);
  ZOO_CHECK(span != 0, op, ": the forward pass has left no borders");
  const DeltaProblem& p = call.problem;
  const ScalarType dtype = k.scalar_type();
  call.borders = checks.plain(borders, "borders",
                              {p.batch, spans_of(p), p.heads, p.state * p.head_dim}, dtype);
  call.dout = checks.plain(dout, "dout", {p.batch, p.length, p.heads, p.head_dim}, dtype);
  call.dlast_state = checks.plain(dlast_state, "dlast_state",
                                  {p.batch, p.heads, p.state, p.head_dim}, dtype);
  const std::vector<int64_t> none = {0}, rows = {p.batch, p.length, p.heads};
  Tensor dq = new_empty(k, {p.batch, p.length, p.heads, p.state}, dtype);
  Tensor dk = new_empty(k, {p.batch, p.length, p.heads, p.state}, dtype);
  Tensor dv = new_empty(k, {p.batch, p.length, p.heads, p.head_dim}, dtype);
  Tensor dbeta = new_empty(k, beta ? rows : none, dtype);
  Tensor ddecay = new_empty(k, decay ? rows : none, dtype);
  Tensor dinitial = initial_state
                        ? new_empty(k, {p.batch, p.heads, p.state, p.head_dim}, dtype)
                        : new_empty(k, none, dtype);
  call.dq = dq.mutable_data_ptr();
  call.dk = dk.mutable_data_ptr();
  call.dv = dv.mutable_data_ptr();
  if (beta) call.dbeta = dbeta.mutable_data_ptr();
  if (decay) call.ddecay = ddecay.mutable_data_ptr();
  if (initial_state) call.dinitial_state = dinitial.mutable_data_ptr();
  if (p.batch > 0) run(call, k);
  return {dq, dk, dv, dbeta, ddecay, dinitial};
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("delta_rule", ZOO_BOX(zoo::delta_rule));
  m.impl("delta_rule_backward", ZOO_BOX(zoo::delta_rule_backward));
}
