// Checks the tensors of the diagonal scan and hands them to the kernels. The messages for users come from
// zoo/ops/diagonal_scan.py.
#include "common/checks.h"
#include "diagonal_scan/diagonal_scan.h"

namespace zoo {
namespace {

// Strides of [batch, step, width], 0 where one row is for all.
DiagonalScan::Rows rows_of(const char* op, const char* name, const Tensor& t) {
  ZOO_CHECK(t.size(2) == 1 || t.stride(2) == 1 || t.numel() == 0, op, ": ", name,
            " must have stride 1 in its last dimension");
  return {t.data_ptr(), t.size(0) == 1 ? 0 : t.stride(0), t.size(1) == 1 ? 0 : t.stride(1)};
}

// What forward and backward pass have in common; `b` stands for x in the latter.
DiagonalScan call_of(const char* op, const Tensor& a, const Tensor& b, const char* name,
                     const Optional& initial_state, const Optional& reset, bool is_complex,
                     bool reverse) {
  dtype_of(op, name, b);
  const ScalarType dtype = b.scalar_type();
  ZOO_CHECK(dtype == accumulator_of(b), op, ": ", name, " is ", text_of(b),
            ", expected float32 or float64");
  ZOO_CHECK(b.dim() == 3, op, ": ", name, " is ", text_of(b), ", expected [batch, length, width]");
  const Checks checks(op, name, b);
  checks.not_empty(b, name, {1, 2});
  const int64_t batch = b.size(0), length = b.size(1), width = b.size(2);
  ZOO_CHECK(!is_complex || width % 2 == 0, op, ": ", name, " is ", text_of(b),
            ", whose last dimension must hold pairs of real and imaginary parts");
  checks.fits(a, "a", {kAnySize, kAnySize, width}, dtype);
  ZOO_CHECK((a.size(0) == 1 || a.size(0) == batch) && (a.size(1) == 1 || a.size(1) == length), op,
            ": a is ", text_of(a), ", expected batch 1 or ", batch, " and length 1 or ", length);
  return {
      .is_double = dtype == ScalarType::Double,
      .is_complex = is_complex,
      .reverse = reverse,
      .batch = batch,
      .length = length,
      .width = width,
      .a = rows_of(op, "a", a),
      .b = {nullptr, 0, 0},
      .x = {nullptr, 0, 0},
      .initial_state = checks.plain(initial_state, "initial_state", {batch, width}, dtype),
      .reset = static_cast<const bool*>(
          checks.plain(reset, "reset", {batch, length}, ScalarType::Bool)),
  };
}

// An empty dimension has stride 0 with size 1, which the strides of a whole tensor must not.
DiagonalScan::Rows whole(const Tensor& t) { return {t.data_ptr(), t.stride(0), t.stride(1)}; }

Tensor diagonal_scan(const Tensor& a, const Tensor& b, const Optional& initial_state,
                     const Optional& reset, bool is_complex, bool reverse) {
  constexpr const char* op = "diagonal_scan";
  DiagonalScan call = call_of(op, a, b, "b", initial_state, reset, is_complex, reverse);
  call.b = rows_of(op, "b", b);
  Tensor x = new_empty(b, {call.batch, call.length, call.width}, b.scalar_type());
  call.x = whole(x);
  if (call.batch == 0) return x;
#ifdef ZOO_CUDA
  const OnDevice device(b);
  Tensor scratch = new_empty(b, {cuda::diagonal_scan_scratch(call)}, b.scalar_type());
  check_cuda(op, cuda::diagonal_scan(call, scratch.data_ptr(), device.stream));
#else
  ZOO_CPU_SELECT(diagonal_scan)(call, threads());
#endif
  return x;
}

std::tuple<Tensor, Tensor, Tensor> diagonal_scan_backward(const Tensor& dx, const Tensor& x,
                                                          const Tensor& a,
                                                          const Optional& initial_state,
                                                          const Optional& reset, bool is_complex,
                                                          bool reverse) {
  constexpr const char* op = "diagonal_scan_backward";
  DiagonalScanBackward call{
      .scan = call_of(op, a, x, "x", initial_state, reset, is_complex, reverse),
      .dx = {nullptr, 0, 0},
      .a_is_constant = a.size(1) == 1,
      .da = nullptr,
      .db = nullptr,
      .dinitial_state = nullptr,
  };
  DiagonalScan& scan = call.scan;
  const Checks checks(op, "x", x);
  checks.fits(dx, "dx", {scan.batch, scan.length, scan.width}, x.scalar_type());
  call.dx = rows_of(op, "dx", dx);
  scan.x = rows_of(op, "x", x);
  Tensor da = new_empty(x, {scan.batch, a.size(1), scan.width}, x.scalar_type());
  Tensor db = new_empty(x, {scan.batch, scan.length, scan.width}, x.scalar_type());
  Tensor dinitial_state = initial_state ? new_empty(x, {scan.batch, scan.width}, x.scalar_type())
                                        : new_empty(x, {0}, x.scalar_type());
  call.da = da.data_ptr();
  call.db = db.data_ptr();
  call.dinitial_state = initial_state ? dinitial_state.data_ptr() : nullptr;
  if (scan.batch == 0) return {da, db, dinitial_state};
#ifdef ZOO_CUDA
  const OnDevice device(x);
  Tensor scratch = new_empty(x, {cuda::diagonal_scan_scratch(scan)}, x.scalar_type());
  check_cuda(op, cuda::diagonal_scan_backward(call, scratch.data_ptr(), device.stream));
#else
  ZOO_CPU_SELECT(diagonal_scan_backward)(call, threads());
#endif
  return {da, db, dinitial_state};
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("diagonal_scan", ZOO_BOX(zoo::diagonal_scan));
  m.impl("diagonal_scan_backward", ZOO_BOX(zoo::diagonal_scan_backward));
}
