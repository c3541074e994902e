// Checks the tensors of the sums of exponentials and hands them to the kernels. The messages for users come
// from zoo/ops/vandermonde_kernel.py.
#include "common/checks.h"
#include "vandermonde_kernel/vandermonde_kernel.h"

namespace zoo {
namespace {

Vandermonde call_of(const char* op, const Checks& checks, const Tensor& x) {
  const ScalarType dtype = x.scalar_type();
  ZOO_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
            ": x must be float32 or float64, got ", text_of(dtype));
  const void* const data = checks.plain(x, "x", {kAnySize, kAnySize, 2}, dtype);
  checks.not_empty(x, "x", {0, 1});
  checks.counts("features", x.size(0));
  checks.counts("modes", x.size(1));
  return {.dtype = dtype_of(op, "x", x),
          .rows = 0,
          .features = x.size(0),
          .modes = x.size(1),
          .length = 0,
          .moments = 1,
          .v = nullptr,
          .u = nullptr,
          .x = data,
          .out = nullptr};
}

Tensor vandermonde_kernel(const Tensor& v, const Tensor& x, int64_t length) {
  constexpr const char* op = "vandermonde_kernel";
  const Checks checks(op, "x", x);
  Vandermonde call = call_of(op, checks, x);
  ZOO_CHECK(length >= 0, op, ": length is ", length, ", expected at least 0");
  checks.counts("a length", length);
  call.v = checks.plain(v, "v", {kAnySize, call.features, call.modes, 2}, x.scalar_type());
  call.rows = v.size(0);
  call.length = length;
  checks.counts("rows", call.rows);
  Tensor out = new_empty(x, {call.rows, call.features, length}, x.scalar_type());
  call.out = out.data_ptr();
  if (call.rows == 0 || length == 0) return out;
#ifdef ZOO_CUDA
  const OnDevice device(x);
  check_cuda(op, cuda::vandermonde_kernel(call, device.stream));
#else
  ZOO_CPU_SELECT(vandermonde_kernel)(call, threads());
#endif
  return out;
}

Tensor vandermonde_transpose(const Tensor& u, const Tensor& x, int64_t moments) {
  constexpr const char* op = "vandermonde_transpose";
  const Checks checks(op, "x", x);
  Vandermonde call = call_of(op, checks, x);
  ZOO_CHECK(moments == 1 || moments == 2, op, ": moments is ", moments, ", expected 1 or 2");
  call.u = checks.plain(u, "u", {kAnySize, call.features, kAnySize}, x.scalar_type());
  call.rows = u.size(0);
  call.length = u.size(2);
  call.moments = moments;
  checks.counts("rows", call.rows);
  checks.counts("a length", call.length);
  const std::vector<int64_t> shape = {moments, call.rows, call.features, call.modes, 2};
  if (call.rows == 0 || call.length == 0) return new_zeros(x, shape, x.scalar_type());
  Tensor out = new_empty(x, shape, x.scalar_type());
  call.out = out.data_ptr();
#ifdef ZOO_CUDA
  const OnDevice device(x);
  check_cuda(op, cuda::vandermonde_transpose(call, device.stream));
#else
  ZOO_CPU_SELECT(vandermonde_transpose)(call, threads());
#endif
  return out;
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("vandermonde_kernel", ZOO_BOX(zoo::vandermonde_kernel));
  m.impl("vandermonde_transpose", ZOO_BOX(zoo::vandermonde_transpose));
}
