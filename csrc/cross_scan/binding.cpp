// Checks the tensors of cross_scan and cross_merge and hands them to the kernels. The messages for users come
// from zoo/ops/cross_scan.py.
#include "common/checks.h"
#include "cross_scan/cross_scan.h"

namespace zoo {
namespace {

CrossScan call_of(const char* op, const Tensor& map, const Tensor& sequences, bool atrous) {
  return {
      .dtype = dtype_of(op, "the map", map),
      .atrous = atrous,
      .batch = map.size(0),
      .channels = map.size(1),
      .height = map.size(2),
      .width = map.size(3),
      .map = map.data_ptr(),
      .map_batch = map.stride(0),
      .map_channel = map.stride(1),
      .map_row = map.stride(2),
      .map_column = map.stride(3),
      .sequences = sequences.data_ptr(),
      .sequences_batch = sequences.stride(0),
      .sequences_way = sequences.stride(1),
      .sequences_channel = sequences.stride(2),
      .sequences_step = sequences.stride(3),
  };
}

// [batch, ways, channels, length] of the sequences of a map.
std::vector<int64_t> sequences_shape(const Checks& checks, int64_t batch, int64_t channels,
                                     int64_t height, int64_t width, bool atrous) {
  checks.counts("a height", height);
  checks.counts("a width", width);
  checks.counts("batch * channels", batch * channels);
  const int64_t length = atrous ? ((height + 1) / 2) * ((width + 1) / 2) : height * width;
  return {batch, atrous ? 4 : 2, channels, length};
}

void run(const Tensor& map, const Tensor& sequences, bool atrous, bool merge) {
  const CrossScan call = call_of(merge ? "cross_merge" : "cross_scan", map, sequences, atrous);
  if (call.batch == 0) return;
#ifdef ZOO_CUDA
  const OnDevice device(map);
  const auto kernel = merge ? cuda::cross_merge : cuda::cross_scan;
  check_cuda(merge ? "cross_merge" : "cross_scan", kernel(call, device.stream));
#else
  const auto kernel = merge ? ZOO_CPU_SELECT(cross_merge) : ZOO_CPU_SELECT(cross_scan);
  ZOO_CHECK(kernel(call, threads()), "no memory for cross_scan");
#endif
}

Tensor cross_scan(const Tensor& x, bool atrous) {
  constexpr const char* op = "cross_scan";
  dtype_of(op, "x", x);
  ZOO_CHECK(x.dim() == 4, op, ": x is ", text_of(x), ", expected [batch, channels, height, width]");
  const Checks checks(op, "x", x);
  checks.not_empty(x, "x", {1, 2, 3});
  Tensor sequences = new_empty(
      x, sequences_shape(checks, x.size(0), x.size(1), x.size(2), x.size(3), atrous), x.scalar_type());
  run(x, sequences, atrous, false);
  return sequences;
}

Tensor cross_merge(const Tensor& ys, int64_t height, int64_t width, bool atrous) {
  constexpr const char* op = "cross_merge";
  dtype_of(op, "ys", ys);
  ZOO_CHECK(ys.dim() == 4, op, ": ys is ", text_of(ys), ", expected [batch, ways, channels, length]");
  const Checks checks(op, "ys", ys);
  checks.not_empty(ys, "ys", {2});
  ZOO_CHECK(height > 0 && width > 0, op, ": the map is ", height, " x ", width,
            ", of which neither may be below 1");
  const int64_t batch = ys.size(0), channels = ys.size(2);
  const auto shape = sequences_shape(checks, batch, channels, height, width, atrous);
  ZOO_CHECK(ys.size(1) == shape[1] && ys.size(3) == shape[3], op, ": ys is ", text_of(ys),
            ", expected ", text_of_sizes(shape), " for a map of ", height, " x ", width);
  Tensor map = new_empty(ys, {batch, channels, height, width}, ys.scalar_type());
  run(map, ys, atrous, true);
  return map;
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("cross_scan", ZOO_BOX(zoo::cross_scan));
  m.impl("cross_merge", ZOO_BOX(zoo::cross_merge));
}
