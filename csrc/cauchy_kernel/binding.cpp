// Checks the tensors of the sums of poles and hands them to the kernels. The messages for users come from
// zoo/ops/cauchy_kernel.py.
#include "cauchy_kernel/cauchy_kernel.h"
#include "common/checks.h"

namespace zoo {
namespace {

Cauchy call_of(const char* op, const Tensor& v, const Tensor& z, const Tensor& w) {
  const ScalarType dtype = v.scalar_type();
  const Checks checks(op, "v", v);
  ZOO_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op,
            ": v must be float32 or float64, got ", text_of(dtype));
  const void* const weights = checks.plain(v, "v", {kAnySize, kAnySize, kAnySize, 2}, dtype);
  checks.not_empty(v, "v", {1, 2});
  const Cauchy call = {.dtype = dtype_of(op, "v", v),
                       .rows = v.size(0),
                       .features = v.size(1),
                       .poles = v.size(2),
                       .points = z.dim() == 2 ? z.size(0) : 0,
                       .v = weights,
                       .z = checks.plain(z, "z", {kAnySize, 2}, dtype),
                       .w = checks.plain(w, "w", {v.size(1), v.size(2), 2}, dtype),
                       .out = nullptr,
                       .dout = nullptr,
                       .dv = nullptr,
                       .dw = nullptr};
  checks.counts("rows", call.rows);
  checks.counts("features", call.features);
  checks.counts("poles", call.poles);
  checks.counts("points", call.points);
  return call;
}

Tensor cauchy_kernel(const Tensor& v, const Tensor& z, const Tensor& w) {
  constexpr const char* op = "cauchy_kernel";
  Cauchy call = call_of(op, v, z, w);
  Tensor out = new_empty(v, {call.rows, call.features, call.points, 2}, v.scalar_type());
  call.out = out.data_ptr();
  if (call.rows == 0 || call.points == 0) return out;
#ifdef ZOO_CUDA
  const OnDevice device(v);
  check_cuda(op, cuda::cauchy_kernel(call, device.stream));
#else
  ZOO_CPU_SELECT(cauchy_kernel)(call, threads());
#endif
  return out;
}

std::tuple<Tensor, Tensor> cauchy_kernel_backward(const Tensor& dout, const Tensor& v, const Tensor& z,
                                                  const Tensor& w) {
  constexpr const char* op = "cauchy_kernel_backward";
  Cauchy call = call_of(op, v, z, w);
  call.dout = Checks(op, "v", v).plain(dout, "dout", {call.rows, call.features, call.points, 2},
                                       v.scalar_type());
  const std::vector<int64_t> poles = {call.features, call.poles, 2};
  const std::vector<int64_t> weights = {call.rows, call.features, call.poles, 2};
  if (call.rows == 0 || call.points == 0)
    return {new_zeros(v, weights, v.scalar_type()), new_zeros(v, poles, v.scalar_type())};
  Tensor dv = new_empty(v, weights, v.scalar_type()), dw = new_empty(v, poles, v.scalar_type());
  call.dv = dv.data_ptr();
  call.dw = dw.data_ptr();
#ifdef ZOO_CUDA
  const OnDevice device(v);
  check_cuda(op, cuda::cauchy_kernel_backward(call, device.stream));
#else
  ZOO_CHECK(ZOO_CPU_SELECT(cauchy_kernel_backward)(call, threads()), "no memory for cauchy_kernel");
#endif
  return {dv, dw};
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("cauchy_kernel", ZOO_BOX(zoo::cauchy_kernel));
  m.impl("cauchy_kernel_backward", ZOO_BOX(zoo::cauchy_kernel_backward));
}
