// Checks the tensors of Mamba-2's scan and hands them to the kernels. The messages for users come from
// zoo/ops/ssd.py; these checks only keep the kernels from reading what is not there.
#include "common/binding.h"
#include "ssd/ssd.h"
#ifdef ZOO_CUDA
#include "common/binding_cuda.h"
#endif

namespace zoo {
namespace {

using Optional = std::optional<Tensor>;

ScalarType accumulator(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check(const Tensor& t, const Tensor& x, const std::vector<int64_t>& shape, ScalarType dtype,
           const char* name) {
  bool fits = t.dim() == static_cast<int64_t>(shape.size()) && t.scalar_type() == dtype &&
              t.is_cpu() == x.is_cpu() && t.get_device() == x.get_device();
  for (size_t i = 0; fits && i < shape.size(); i++) fits = t.size(i) == shape[i];
  ZOO_CHECK(fits, "ssd: ", name, " has the wrong shape, dtype or device");
}

// [batch, length, heads or groups, size] in the dtype of x.
SsdSignal signal(const Optional& t, const Tensor& x, int64_t heads, int64_t size, const char* name) {
  if (!t) return {nullptr, 0, 0, 0};
  check(*t, x, {x.size(0), x.size(1), heads, size}, x.scalar_type(), name);
  ZOO_CHECK(size == 1 || x.size(0) == 0 || t->stride(3) == 1, "ssd: the last dimension of ", name,
            " must have stride 1");
  return {t->mutable_data_ptr(), t->stride(0), t->stride(1), t->stride(2)};
}

// Contiguous, in the given dtype.
void* plain(const Optional& t, const Tensor& x, const std::vector<int64_t>& shape, ScalarType dtype,
            const char* name) {
  if (!t) return nullptr;
  check(*t, x, shape, dtype, name);
  ZOO_CHECK(t->is_contiguous(), "ssd: ", name, " must be contiguous");
  return t->mutable_data_ptr();
}

SsdProblem problem(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                   const Tensor& C, const Optional& D, const Optional& z,
                   const Optional& initial_state, const Optional& seq_idx, bool reverse) {
  ZOO_CHECK(x.dim() == 4 && B.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0 &&
                B.size(2) > 0 && B.size(3) > 0 && x.size(2) % B.size(2) == 0,
            "ssd: x must be [batch, length, heads, channels] and B [batch, length, groups, states], "
            "none of them empty");
  const ScalarType dtype = accumulator(x);
  SsdProblem p{};
  p.dtype = dtype_of(x);
  p.batch = x.size(0);
  p.length = x.size(1);
  p.heads = x.size(2);
  p.head_dim = x.size(3);
  p.groups = B.size(2);
  p.state = B.size(3);
  p.reverse = reverse;
  p.x = signal(x, x, p.heads, p.head_dim, "x");
  p.B = signal(B, x, p.groups, p.state, "B");
  p.C = signal(C, x, p.groups, p.state, "C");
  p.z = signal(z, x, p.heads, p.head_dim, "z");
  p.dt = plain(dt, x, {p.batch, p.length, p.heads}, dtype, "dt");
  p.A = plain(A, x, {p.heads}, dtype, "A");
  if (D) {
    check(*D, x, {p.heads, p.head_dim}, dtype, "D");
    p.D = D->data_ptr();
    p.D_head = D->stride(0);
    p.D_channel = p.head_dim == 1 ? 1 : D->stride(1);
    ZOO_CHECK(p.D_channel == 0 || p.D_channel == 1, "ssd: D must have stride 0 or 1 along channels");
  }
  p.initial_state = plain(initial_state, x, {p.batch, p.heads, p.head_dim, p.state}, dtype,
                          "initial_state");
  p.seq_idx = static_cast<const int32_t*>(
      plain(seq_idx, x, {p.batch, p.length}, ScalarType::Int, "seq_idx"));
  return p;
}

std::vector<int64_t> states_shape(const SsdProblem& p) {
  return {p.batch, p.heads, p.head_dim, p.state};
}

std::vector<int64_t> borders_shape(const SsdProblem& p, int64_t span) {
  if (span == 0) return {0};
  ZOO_CHECK(span == kSsdSpan, "ssd: the span must be ", kSsdSpan);
  return {p.batch, (p.length + span - 1) / span, p.heads, p.head_dim * p.state};
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
                                       int64_t /* chunk_size: the kernels have their own */) {
  SsdForward call{};
  call.problem = problem(x, dt, A, B, C, D, z, initial_state, seq_idx, reverse);
  const SsdProblem& p = call.problem;
  const ScalarType dtype = accumulator(x);
  Tensor out = new_empty(x, {p.batch, p.length, p.heads, p.head_dim}, x.scalar_type());
  Tensor last_state = new_empty(x, states_shape(p), dtype);
  Tensor borders = new_empty(x, borders_shape(p, span), dtype);
  call.out = signal(out, x, p.heads, p.head_dim, "out");
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
                       int64_t span, int64_t /* chunk_size */) {
  SsdBackward call{};
  call.problem = problem(x, dt, A, B, C, D, z, initial_state, seq_idx, reverse);
  const SsdProblem& p = call.problem;
  const ScalarType dtype = accumulator(x);
  ZOO_CHECK(span > 0, "ssd_backward: the forward pass has saved no borders");
  call.borders = {plain(borders, x, borders_shape(p, span), dtype, "borders"), span};
  call.dout = signal(dout, x, p.heads, p.head_dim, "dout");
  call.dlast_state = plain(dlast_state, x, states_shape(p), dtype, "dlast_state");

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
  call.dx = signal(dx, x, p.heads, p.head_dim, "dx");
  call.dB = signal(dB, x, p.groups, p.state, "dB");
  call.dC = signal(dC, x, p.groups, p.state, "dC");
  if (z) call.dz = signal(dz, x, p.heads, p.head_dim, "dz");
  call.ddt = ddt.mutable_data_ptr();
  call.dA = dA.mutable_data_ptr();
  if (D) call.dD = dD.mutable_data_ptr();
  if (initial_state) call.dinitial_state = dinitial.mutable_data_ptr();
  if (p.batch > 0) run(call, x);
  return {dx, ddt, dA, dB, dC, dD, dz, dinitial};
}

}  // namespace
}  // namespace zoo

#ifdef ZOO_CUDA
ZOO_LIBRARY_IMPL(CUDA, m) {
#else
ZOO_LIBRARY_IMPL(CPU, m) {
#endif
  m.impl("ssd", ZOO_BOX(zoo::ssd));
  m.impl("ssd_backward", ZOO_BOX(zoo::ssd_backward));
}
