#include "common/binding.h"
#include "cross_scan/cross_scan.h"
#ifdef ZOO_CUDA
#include "common/binding_cuda.h"
#endif

namespace zoo {
namespace {

CrossScan call_of(const Tensor& map, const Tensor& sequences, bool atrous) {
  const CrossScan call{
      .dtype = dtype_of(map),
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
  ZOO_CHECK(sequences.size(0) == call.batch && sequences.size(1) == call.ways() &&
                sequences.size(2) == call.channels &&
                sequences.size(3) == call.way_height() * call.way_width(),
            "the sequences do not fit the map");
  return call;
}

void run(const Tensor& map, const Tensor& sequences, bool atrous, bool merge) {
  const CrossScan call = call_of(map, sequences, atrous);
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
  ZOO_CHECK(x.dim() == 4, "cross_scan: x must be [batch, channels, height, width]");
  const int64_t h = x.size(2), w = x.size(3);
  const int64_t length = atrous ? ((h + 1) / 2) * ((w + 1) / 2) : h * w;
  Tensor sequences = new_empty(x, {x.size(0), atrous ? 4 : 2, x.size(1), length}, x.scalar_type());
  run(x, sequences, atrous, false);
  return sequences;
}

Tensor cross_merge(const Tensor& ys, int64_t height, int64_t width, bool atrous) {
  ZOO_CHECK(ys.dim() == 4, "cross_merge: ys must be [batch, ways, channels, length]");
  Tensor map = new_empty(ys, {ys.size(0), ys.size(2), height, width}, ys.scalar_type());
  run(map, ys, atrous, true);
  return map;
}

}  // namespace
}  // namespace zoo

#ifdef ZOO_CUDA
ZOO_LIBRARY_IMPL(CUDA, m) {
#else
ZOO_LIBRARY_IMPL(CPU, m) {
#endif
  m.impl("cross_scan", ZOO_BOX(zoo::cross_scan));
  m.impl("cross_merge", ZOO_BOX(zoo::cross_merge));
}
