// Checks the tensors of the selective scan and hands them to the kernels. The messages for users come
// from zoo/ops/selective_scan.py; these checks only keep the kernels from reading what is not there.
#include "common/binding.h"
#include "selective_scan/selective_scan.h"
#ifdef ZOO_CUDA
#include "common/binding_cuda.h"
#endif

namespace zoo {
namespace {

using Optional = std::optional<Tensor>;

ScalarType accumulator(const Tensor& u) {
  return u.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_shape(const Tensor& t, const std::vector<int64_t>& shape, const char* name) {
  bool equal = t.dim() == static_cast<int64_t>(shape.size());
  for (size_t i = 0; equal && i < shape.size(); i++) equal = t.size(i) == shape[i];
  ZOO_CHECK(equal, "selective_scan: ", name, " has the wrong shape");
}

void check_device(const Tensor& t, const Tensor& u, const char* name) {
  ZOO_CHECK(t.is_cpu() == u.is_cpu() && t.get_device() == u.get_device(), "selective_scan: ", name,
            " is on another device than u");
}

// [batch, dim, length] in the dtype of u.
ScanSequence sequence(const Optional& t, const Tensor& u, const char* name) {
  if (!t) return {nullptr, 0, 0, 0};
  check_shape(*t, {u.size(0), u.size(1), u.size(2)}, name);
  check_device(*t, u, name);
  ZOO_CHECK(t->scalar_type() == u.scalar_type(), "selective_scan: ", name,
            " has another dtype than u");
  return {t->mutable_data_ptr(), t->stride(0), t->stride(1), t->stride(2)};
}

// Contiguous, in the given dtype.
void* plain(const Optional& t, const Tensor& u, const std::vector<int64_t>& shape, ScalarType dtype,
            const char* name) {
  if (!t) return nullptr;
  check_shape(*t, shape, name);
  check_device(*t, u, name);
  ZOO_CHECK(t->is_contiguous() && t->scalar_type() == dtype, "selective_scan: ", name,
            " must be contiguous and in the dtype of the state");
  return t->mutable_data_ptr();
}

ScanProjection projection(const Tensor& m, const Tensor& u, const Tensor& A, const char* name) {
  if (m.dim() == 2)
    return {plain(m, u, {A.size(0), A.size(1)}, accumulator(u), name), true, 0, 0, 0, 0};
  ZOO_CHECK(m.dim() == 4 && m.size(1) > 0 && u.size(1) % m.size(1) == 0, "selective_scan: ", name,
            " must be [dim, state] or [batch, groups, state, length]");
  check_shape(m, {u.size(0), m.size(1), A.size(1), u.size(2)}, name);
  check_device(m, u, name);
  ZOO_CHECK(m.scalar_type() == u.scalar_type(), "selective_scan: ", name,
            " has another dtype than u");
  return {m.mutable_data_ptr(), false, m.stride(0), m.stride(1), m.stride(2), m.stride(3)};
}

ScanProblem problem(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                    const Tensor& C, const Optional& D, const Optional& z,
                    const Optional& delta_bias, const Optional& initial_state,
                    const Optional& reset, bool delta_softplus, bool reverse) {
  ZOO_CHECK(u.dim() == 3 && A.dim() == 2 && u.size(1) > 0 && u.size(2) > 0 && A.size(1) > 0,
            "selective_scan: u must be [batch, dim, length] and A [dim, state], none of them empty");
  const int64_t batch = u.size(0), dim = u.size(1), length = u.size(2), state = A.size(1);
  const ScalarType dtype = accumulator(u);
  ScanProblem p{};
  p.dtype = dtype_of(u);
  p.batch = batch;
  p.dim = dim;
  p.length = length;
  p.state = state;
  p.softplus = delta_softplus;
  p.reverse = reverse;
  p.u = sequence(u, u, "u");
  p.delta = sequence(delta, u, "delta");
  p.z = sequence(z, u, "z");
  p.A = plain(A, u, {dim, state}, dtype, "A");
  p.B = projection(B, u, A, "B");
  p.C = projection(C, u, A, "C");
  p.groups = !p.B.constant ? B.size(1) : !p.C.constant ? C.size(1) : 1;
  ZOO_CHECK(p.B.constant || p.C.constant || C.size(1) == p.groups,
            "selective_scan: B and C differ in their groups");
  p.D = plain(D, u, {dim}, dtype, "D");
  p.delta_bias = plain(delta_bias, u, {dim}, dtype, "delta_bias");
  p.initial_state = plain(initial_state, u, {batch, dim, state}, dtype, "initial_state");
  p.reset = static_cast<const bool*>(plain(reset, u, {batch, length}, ScalarType::Bool, "reset"));
  return p;
}

// [batch, chunks, dim, state]; nothing if chunk is 0.
std::vector<int64_t> borders_shape(const ScanProblem& p, int64_t chunk) {
  if (chunk == 0) return {0};
  ZOO_CHECK(chunk > 0 && chunk % 32 == 0, "selective_scan: chunk must be a multiple of 32");
  return {p.batch, (p.length + chunk - 1) / chunk, p.dim, p.state};
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
    int64_t chunk) {
  ScanForward call{};
  call.problem = problem(u, delta, A, B, C, D, z, delta_bias, initial_state, reset, delta_softplus,
                         reverse);
  const ScanProblem& p = call.problem;
  Tensor out = empty_like(u);
  Tensor last_state = new_empty(u, {p.batch, p.dim, p.state}, accumulator(u));
  Tensor borders = new_empty(u, borders_shape(p, chunk), accumulator(u));
  call.out = sequence(out, u, "out");
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
                                  bool delta_softplus, bool reverse, int64_t chunk) {
  ScanBackward call{};
  call.problem = problem(u, delta, A, B, C, D, z, delta_bias, initial_state, reset, delta_softplus,
                         reverse);
  const ScanProblem& p = call.problem;
  const ScalarType dtype = accumulator(u);
  const std::vector<int64_t> none = {0}, states = {p.batch, p.dim, p.state};
  ZOO_CHECK(chunk > 0, "selective_scan_backward: the forward pass has saved no borders");
  call.borders = {plain(borders, u, borders_shape(p, chunk), dtype, "borders"), chunk};
  call.dout = sequence(dout, u, "dout");
  call.dlast_state = plain(dlast_state, u, states, dtype, "dlast_state");

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
  call.du = sequence(du, u, "du");
  call.ddelta = sequence(ddelta, u, "ddelta");
  if (z) call.dz = sequence(dz, u, "dz");
  call.dB = projection(dB, u, A, "dB");
  call.dC = projection(dC, u, A, "dC");
  call.dA = dA.mutable_data_ptr();
  if (D) call.dD = dD.mutable_data_ptr();
  if (delta_bias) call.ddelta_bias = dbias.mutable_data_ptr();
  if (initial_state) call.dinitial_state = dinitial.mutable_data_ptr();
  if (p.batch > 0) run(call, u);
  return {du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial};
}

}  // namespace
}  // namespace zoo

#ifdef ZOO_CUDA
ZOO_LIBRARY_IMPL(CUDA, m) {
#else
ZOO_LIBRARY_IMPL(CPU, m) {
#endif
  m.impl("selective_scan", ZOO_BOX(zoo::selective_scan));
  m.impl("selective_scan_backward", ZOO_BOX(zoo::selective_scan_backward));
}
