// Checks the tensors of Mamba-2's scan and hands them to the kernels. The messages for users come from
// zoo/ops/ssd.py.
#include "common/checks.h"
#include "ssd/ssd.h"

namespace zoo {
namespace {

// The arguments of one call, seen from x.
struct Arguments {
  const char* op;
  const Tensor& x;
  Checks checks;
  ScalarType dtype;  // of the state

  Arguments(const char* op, const Tensor& x, int64_t chunk_size)
      : op(op), x(x), checks(op, "x", x), dtype(accumulator_of(x)) {
    dtype_of(op, "x", x);
    ZOO_CHECK(x.dim() == 4, op, ": x is ", text_of(x), ", expected [batch, length, heads, channels]");
    checks.not_empty(x, "x", {1, 2, 3});
    checks.counts("a length", x.size(1));
    ZOO_CHECK(chunk_size > 0, op, ": chunk_size is ", chunk_size, ", expected at least 1");
  }

  // [batch, length, heads or groups, size] in the dtype of x.
  SsdSignal signal(const Optional& t, int64_t heads, int64_t size, const char* name) const {
    if (!t) return {nullptr, 0, 0, 0};
    checks.fits(*t, name, {x.size(0), x.size(1), heads, size}, x.scalar_type());
    ZOO_CHECK(size == 1 || x.size(0) == 0 || t->stride(3) == 1, op, ": the last dimension of ", name,
              " must have stride 1");
    return {t->mutable_data_ptr(), t->stride(0), t->stride(1), t->stride(2)};
  }
};

SsdProblem problem(const Arguments& a, const Tensor& dt, const Tensor& A, const Tensor& B,
                   const Tensor& C, const Optional& D, const Optional& z,
                   const Optional& initial_state, const Optional& seq_idx, bool reverse) {
  const Tensor& x = a.x;
  ZOO_CHECK(B.dim() == 4 && B.size(2) > 0 && B.size(3) > 0 && x.size(2) % B.size(2) == 0, a.op,
            ": B is ", text_of(B), ", expected [batch, length, groups, states], no dimension empty, ",
            "with groups that divide the ", x.size(2), " heads");
  SsdProblem p{};
  p.dtype = dtype_of(a.op, "x", x);
  p.batch = x.size(0);
  p.length = x.size(1);
  p.heads = x.size(2);
  p.head_dim = x.size(3);
  p.groups = B.size(2);
  p.state = B.size(3);
  p.reverse = reverse;
  p.x = a.signal(x, p.heads, p.head_dim, "x");
  p.B = a.signal(B, p.groups, p.state, "B");
  p.C = a.signal(C, p.groups, p.state, "C");
  p.z = a.signal(z, p.heads, p.head_dim, "z");
  p.dt = a.checks.plain(dt, "dt", {p.batch, p.length, p.heads}, a.dtype);
  p.A = a.checks.plain(A, "A", {p.heads}, a.dtype);
  if (D) {
    a.checks.fits(*D, "D", {p.heads, p.head_dim}, a.dtype);
    p.D = D->data_ptr();
    p.D_head = D->stride(0);
    p.D_channel = p.head_dim == 1 ? 1 : D->stride(1);
    ZOO_CHECK(p.D_channel == 0 || p.D_channel == 1, a.op,
              ": D must have stride 0 or 1 along channels");
  }
  p.initial_state = a.checks.plain(initial_state, "initial_state",
                                   {p.batch, p.heads, p.head_dim, p.state}, a.dtype);
  p.seq_idx = static_cast<const int32_t*>(
      a.checks.plain(seq_idx, "seq_idx", {p.batch, p.length}, ScalarType::Int));
  return p;
}

std::vector<int64_t> states_shape(const SsdProblem& p) {
  return {p.batch, p.heads, p.head_dim, p.state};
}

// How many borders there are.
int64_t spans_of(const Arguments& a, int64_t span) {
  ZOO_CHECK(span == kSsdSpan, a.op, ": span is ", span, ", expected ", kSsdSpan);
  return (a.x.size(1) + span - 1) / span;
}

#ifdef ZOO_CUDA

template <class Call>
void run(const char* name, const Call& call, const Tensor& x,
         const char* (*kernel)(const Call&, void*, void*)) {
  const OnDevice device(x);
  Tensor workspace = scratch_memory(x, cuda::ssd_workspace(call));
  check_cuda(name, kernel(call, workspace.mutable_data_ptr(), device.stream));
}

void run(const SsdForward& call, const Tensor& x) { run("ssd", call, x, cuda::ssd_forward); }

void run(const SsdBackward& call, const Tensor& x) {
  run("ssd_backward", call, x, cuda::ssd_backward);
}

#else

void run(const SsdForward& call, const Tensor&) {
  ZOO_CHECK(ZOO_CPU_SELECT(ssd_forward)(call, threads()), "ssd: not enough memory");
}

void run(const SsdBackward& call, const Tensor&) {
  ZOO_CHECK(ZOO_CPU_SELECT(ssd_backward)(call, threads()), "ssd_backward: not enough memory");
}

#endif

std::tuple<Tensor, Tensor, Tensor> ssd(const Tensor& x, const Tensor& dt, const Tensor& A,
                                       const Tensor& B, const Tensor& C, const Optional& D,
                                       const Optional& z, const Optional& initial_state,
                                       const Optional& seq_idx, bool reverse, int64_t span,
                                       int64_t chunk_size /* the kernels have their own */) {
  const Arguments arguments("ssd", x, chunk_size);
  SsdForward call{};
  call.problem = problem(arguments, dt, A, B, C, D, z, initial_state, seq_idx, reverse);
  const SsdProblem& p = call.problem;
  const ScalarType dtype = arguments.dtype;
  Tensor out = new_empty(x, {p.batch, p.length, p.heads, p.head_dim}, x.scalar_type());
  Tensor last_state = new_empty(x, states_shape(p), dtype);
  Tensor borders =
      span == 0 ? new_empty(x, {0}, dtype)
                : new_empty(x, {p.batch, spans_of(arguments, span), p.heads, p.head_dim * p.state}, dtype);
  call.out = arguments.signal(out, p.heads, p.head_dim, "out");
  call.last_state = last_state.mutable_data_ptr();
  if (span != 0) call.borders = {borders.mutable_data_ptr(), span};
  if (p.batch > 0) run(call, x);
  return {out, last_state, borders};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradient of what is absent has no elements.
Gradients ssd_backward(const Optional& dout, const Optional& dlast_state, const Tensor& borders,
                       const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                       const Tensor& C, const Optional& D, const Optional& z,
                       const Optional& initial_state, const Optional& seq_idx, bool reverse,
                       int64_t span, int64_t chunk_size) {
  const Arguments arguments("ssd_backward", x, chunk_size);
  SsdBackward call{};
  call.problem = problem(arguments, dt, A, B, C, D, z, initial_state, seq_idx, reverse);
  const SsdProblem& p = call.problem;
  const ScalarType dtype = arguments.dtype;
  const Checks& checks = arguments.checks;
  call.borders = {
      checks.plain(borders, "borders",
                   {p.batch, spans_of(arguments, span), p.heads, p.head_dim * p.state}, dtype),
      span};
  call.dout = arguments.signal(dout, p.heads, p.head_dim, "dout");
  call.dlast_state =
      checks.plain(dlast_state, "dlast_state", {p.batch, p.heads, p.head_dim, p.state}, dtype);

  const std::vector<int64_t> none = {0};
  const auto like = [&](int64_t heads, int64_t size) {
    return new_empty(x, {p.batch, p.length, heads, size}, x.scalar_type());
  };
  Tensor dx = like(p.heads, p.head_dim), dB = like(p.groups, p.state), dC = like(p.groups, p.state);
  Tensor dz = z ? like(p.heads, p.head_dim) : new_empty(x, none, x.scalar_type());
  Tensor ddt = new_empty(x, {p.batch, p.length, p.heads}, dtype);
  Tensor dA = new_zeros(x, {p.heads}, dtype);
  Tensor dD = D ? new_zeros(x, {p.heads, p.head_dim}, dtype) : new_empty(x, none, dtype);
  Tensor dinitial = new_empty(x, initial_state ? states_shape(p) : none, dtype);
  call.dx = arguments.signal(dx, p.heads, p.head_dim, "dx");
  call.dB = arguments.signal(dB, p.groups, p.state, "dB");
  call.dC = arguments.signal(dC, p.groups, p.state, "dC");
  if (z) call.dz = arguments.signal(dz, p.heads, p.head_dim, "dz");
  call.ddt = ddt.mutable_data_ptr();
  call.dA = dA.mutable_data_ptr();
  if (D) call.dD = dD.mutable_data_ptr();
  if (initial_state) call.dinitial_state = dinitial.mutable_data_ptr();
  if (p.batch > 0) run(call, x);
  return {dx, ddt, dA, dB, dC, dD, dz, dinitial};
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("ssd", ZOO_BOX(zoo::ssd));
  m.impl("ssd_backward", ZOO_BOX(zoo::ssd_backward));
}
