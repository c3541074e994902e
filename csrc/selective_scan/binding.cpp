// Checks the tensors of the selective scan and hands them to the kernels. The messages for users come
// from zoo/ops/selective_scan.py.
#include "common/checks.h"
#include "selective_scan/selective_scan.h"

namespace zoo {
namespace {

// The arguments of one call, seen from u and A.
struct Arguments {
  const char* op;
  const Tensor &u, &A;
  Checks checks;
  ScalarType dtype;  // of the state

  Arguments(const char* op, const Tensor& u, const Tensor& A)
      : op(op), u(u), A(A), checks(op, "u", u), dtype(accumulator_of(u)) {
    dtype_of(op, "u", u);
    ZOO_CHECK(u.dim() == 3, op, ": u is ", text_of(u), ", expected [batch, dim, length]");
    ZOO_CHECK(A.dim() == 2, op, ": A is ", text_of(A), ", expected [dim, state]");
    checks.not_empty(u, "u", {1, 2});
    checks.not_empty(A, "A", {1});
    checks.counts("a length", u.size(2));
    checks.counts("a state", A.size(1));
  }

  // [batch, dim, length] in the dtype of u.
  ScanSequence sequence(const Optional& t, const char* name) const {
    if (!t) return {nullptr, 0, 0, 0};
    checks.fits(*t, name, {u.size(0), u.size(1), u.size(2)}, u.scalar_type());
    return {t->mutable_data_ptr(), t->stride(0), t->stride(1), t->stride(2)};
  }

  ScanProjection projection(const Tensor& m, const char* name) const {
    if (m.dim() == 2)
      return {checks.plain(m, name, {A.size(0), A.size(1)}, dtype), true, 0, 0, 0, 0};
    checks.fits(m, name, {u.size(0), kAnySize, A.size(1), u.size(2)}, u.scalar_type());
    ZOO_CHECK(m.size(1) > 0 && u.size(1) % m.size(1) == 0, op, ": ", name, " is ", text_of(m),
              ", whose groups do not divide the ", u.size(1), " channels");
    return {m.mutable_data_ptr(), false, m.stride(0), m.stride(1), m.stride(2), m.stride(3)};
  }
};

ScanProblem problem(const Arguments& a, const Tensor& delta, const Tensor& B, const Tensor& C,
                    const Optional& D, const Optional& z, const Optional& delta_bias,
                    const Optional& initial_state, const Optional& reset, bool delta_softplus,
                    bool reverse, bool negative) {
  const Tensor& u = a.u;
  const int64_t batch = u.size(0), dim = u.size(1), length = u.size(2), state = a.A.size(1);
  ScanProblem p{};
  p.dtype = dtype_of(a.op, "u", u);
  p.batch = batch;
  p.dim = dim;
  p.length = length;
  p.state = state;
  p.softplus = delta_softplus;
  p.reverse = reverse;
  p.negative = negative;
  p.u = a.sequence(u, "u");
  p.delta = a.sequence(delta, "delta");
  p.z = a.sequence(z, "z");
  p.A = a.checks.plain(a.A, "A", {dim, state}, a.dtype);
  p.B = a.projection(B, "B");
  p.C = a.projection(C, "C");
  p.groups = !p.B.constant ? B.size(1) : !p.C.constant ? C.size(1) : 1;
  ZOO_CHECK(p.B.constant || p.C.constant || C.size(1) == p.groups, a.op, ": B has ", p.groups,
            " groups and C ", C.size(1), "; both must have the same");
  p.D = a.checks.plain(D, "D", {dim}, a.dtype);
  p.delta_bias = a.checks.plain(delta_bias, "delta_bias", {dim}, a.dtype);
  p.initial_state = a.checks.plain(initial_state, "initial_state", {batch, dim, state}, a.dtype);
  p.reset = static_cast<const uint8_t*>(
      a.checks.plain(reset, "reset", {batch, length}, ScalarType::Bool));
  return p;
}

// How many borders there are.
int64_t chunks_of(const Arguments& a, int64_t chunk) {
#ifdef ZOO_CUDA
  ZOO_CHECK(chunk == cuda::kScanChunk, a.op, ": chunk is ", chunk, ", expected ", cuda::kScanChunk);
#else
  ZOO_CHECK(chunk >= 32 && chunk <= kScanLongestChunk && chunk % 32 == 0, a.op, ": chunk is ", chunk,
            ", expected a multiple of 32 up to ", kScanLongestChunk);
#endif
  return (a.u.size(2) + chunk - 1) / chunk;
}

#ifdef ZOO_CUDA

template <class Call>
void run(const char* name, const Call& call, const Tensor& u,
         const char* (*kernel)(const Call&, void*, void*)) {
  const OnDevice device(u);
  Tensor workspace = scratch_memory(u, cuda::selective_scan_workspace(call));
  check_cuda(name, kernel(call, workspace.mutable_data_ptr(), device.stream));
}

void run(const ScanForward& call, const Tensor& u) {
  run("selective_scan", call, u, cuda::selective_scan_forward);
}

void run(const ScanBackward& call, const Tensor& u) {
  run("selective_scan_backward", call, u, cuda::selective_scan_backward);
}

#else

void check_status(ScanStatus status) {
  ZOO_CHECK(status != ScanStatus::kDeltaNotFinite,
            "selective_scan: delta (with delta_bias) holds NaN or infinity; look for the first "
            "layer whose output is not finite");
  ZOO_CHECK(status == ScanStatus::kDone, "selective_scan: not enough memory");
}

void run(const ScanForward& call, const Tensor&) {
  check_status(ZOO_CPU_SELECT(selective_scan_forward)(call, threads()));
}

void run(const ScanBackward& call, const Tensor&) {
  check_status(ZOO_CPU_SELECT(selective_scan_backward)(call, threads()));
}

#endif

std::tuple<Tensor, Tensor, Tensor> selective_scan(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C,
    const Optional& D, const Optional& z, const Optional& delta_bias,
    const Optional& initial_state, const Optional& reset, bool delta_softplus, bool reverse,
    bool negative, int64_t chunk) {
  const Arguments arguments("selective_scan", u, A);
  ScanForward call{};
  call.problem = problem(arguments, delta, B, C, D, z, delta_bias, initial_state, reset,
                         delta_softplus, reverse, negative);
  const ScanProblem& p = call.problem;
  Tensor out = empty_like(u);
  Tensor last_state = new_empty(u, {p.batch, p.dim, p.state}, arguments.dtype);
  Tensor borders =
      chunk == 0 ? new_empty(u, {0}, arguments.dtype)
                 : new_empty(u, {p.batch, chunks_of(arguments, chunk), p.dim, p.state}, arguments.dtype);
  call.out = arguments.sequence(out, "out");
  call.last_state = last_state.mutable_data_ptr();
  if (chunk != 0) call.borders = {borders.mutable_data_ptr(), chunk};
  if (p.batch > 0) run(call, u);
  return {out, last_state, borders};
}

using Gradients =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// The gradient of what is absent has no elements.
Gradients selective_scan_backward(const Optional& dout, const Optional& dlast_state,
                                  const Tensor& borders, const Tensor& u, const Tensor& delta,
                                  const Tensor& A, const Tensor& B, const Tensor& C,
                                  const Optional& D, const Optional& z, const Optional& delta_bias,
                                  const Optional& initial_state, const Optional& reset,
                                  bool delta_softplus, bool reverse, bool negative,
                                  int64_t chunk) {
  const Arguments arguments("selective_scan_backward", u, A);
  ScanBackward call{};
  call.problem = problem(arguments, delta, B, C, D, z, delta_bias, initial_state, reset,
                         delta_softplus, reverse, negative);
  const ScanProblem& p = call.problem;
  const ScalarType dtype = arguments.dtype;
  const std::vector<int64_t> none = {0}, states = {p.batch, p.dim, p.state};
  call.borders = {arguments.checks.plain(
                      borders, "borders",
                      {p.batch, chunks_of(arguments, chunk), p.dim, p.state}, dtype),
                  chunk};
  call.dout = arguments.sequence(dout, "dout");
  call.dlast_state =
      arguments.checks.plain(dlast_state, "dlast_state", {p.batch, p.dim, p.state}, dtype);

  Tensor du = empty_like(u), ddelta = empty_like(delta);
  Tensor dz = z ? empty_like(*z) : new_empty(u, none, u.scalar_type());
  const auto parameter = [&](const Optional& t) {
    return t ? new_zeros(u, std::vector<int64_t>(t->sizes().begin(), t->sizes().end()), dtype)
             : new_empty(u, none, dtype);
  };
  const auto projections = [&](const Tensor& m) {
    return m.dim() == 2 ? parameter(m)
                        : new_empty(u, {p.batch, p.groups, p.state, p.length}, u.scalar_type());
  };
  Tensor dA = parameter(A), dB = projections(B), dC = projections(C), dD = parameter(D);
  Tensor dbias = parameter(delta_bias);
  Tensor dinitial = new_empty(u, initial_state ? states : none, dtype);
  call.du = arguments.sequence(du, "du");
  call.ddelta = arguments.sequence(ddelta, "ddelta");
  if (z) call.dz = arguments.sequence(dz, "dz");
  call.dB = arguments.projection(dB, "dB");
  call.dC = arguments.projection(dC, "dC");
  call.dA = dA.mutable_data_ptr();
  if (D) call.dD = dD.mutable_data_ptr();
  if (delta_bias) call.ddelta_bias = dbias.mutable_data_ptr();
  if (initial_state) call.dinitial_state = dinitial.mutable_data_ptr();
  if (p.batch > 0) run(call, u);
  return {du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial};
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("selective_scan", ZOO_BOX(zoo::selective_scan));
  m.impl("selective_scan_backward", ZOO_BOX(zoo::selective_scan_backward));
}
