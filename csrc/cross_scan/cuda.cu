// cross_scan and cross_merge on a GPU: tiles of the picture pass through shared memory, so that device
// memory is read and written along rows in the picture as well as in the row-major and the column-major
// sequences. A tile may be many whole small pictures.
#include <algorithm>

#include "common/cuda.cuh"
#include "cross_scan/cross_scan.h"

namespace zoo {
namespace {

using namespace zoo::cuda;

constexpr int kThreads = 256;
constexpr int kTileSide = 64;
constexpr int kMostPlanes = 64;

// n / d for 0 <= n < 2^31 without a division.
struct Divisor {
  uint32_t factor = 0;
  int shift = 0, divisor = 1;

  Divisor() = default;
  explicit Divisor(int64_t d) : divisor(static_cast<int>(d)) {
    while ((int64_t{1} << shift) < d) ++shift;
    const uint64_t rest = (uint64_t{1} << shift) - static_cast<uint64_t>(d);
    factor = static_cast<uint32_t>((rest << 32) / static_cast<uint64_t>(d) + 1);
  }
  __device__ int quotient(int n) const {
    return static_cast<int>((__umulhi(static_cast<uint32_t>(n), factor) + n) >> shift);
  }
};

// The positions of the picture that sequence k reads, and whether it reads them column by column.
struct Way {
  int row, column;
  bool transposed;
};
__device__ __forceinline__ Way way(bool atrous, int k) {
  return atrous ? Way{k & 1, k >> 1, (k & 1) == 1} : Way{0, 0, k == 1};
}

// The picture [batch, channel, row, column], the sequences [batch, way, channel, position], and how
// both are cut into tiles of `planes` pictures (batch and channel taken together) by rows by columns.
struct Shape {
  int channels, height, width, ways, step;  // step: 2 if atrous
  int64_t all_planes;
  int64_t batch, channel, row, column;                                  // strides of the picture
  int64_t sequence_batch, sequence_way, sequence_channel, sequence_at;  // and of the sequences
  bool by_channel;  // neighbours in memory are channels of the picture
  int row_tiles, column_tiles;
  Divisor planes, rows, columns, way_rows, way_columns, per_batch;
  int pitch, plane_pitch;

  __host__ __device__ int way_height() const { return (height + step - 1) / step; }
  __host__ __device__ int way_width() const { return (width + step - 1) / step; }
};

struct Tile {
  int plane, row, column, planes;  // first ones, and how many planes there are

  __device__ explicit Tile(const Shape& s) {
    int64_t rest = blockIdx.x;
    column = static_cast<int>(rest % s.column_tiles) * s.columns.divisor;
    rest /= s.column_tiles;
    row = static_cast<int>(rest % s.row_tiles) * s.rows.divisor;
    plane = static_cast<int>(rest / s.row_tiles) * s.planes.divisor;
    planes = static_cast<int>(
        min(static_cast<int64_t>(s.planes.divisor), s.all_planes - static_cast<int64_t>(plane)));
  }
};

// f(place in shared memory, offset in the picture, is it inside) for all of the tile, along memory.
template <class F>
__device__ __forceinline__ void for_picture(const Shape& s, const Tile& tile, const F& f) {
  const int end = s.planes.divisor * s.rows.divisor * s.columns.divisor;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < end; e += kThreads) {
    const Divisor& fastest = s.by_channel ? s.planes : s.columns;
    int rest = fastest.quotient(e);
    const int x = e - rest * fastest.divisor;
    const Divisor& middle = s.by_channel ? s.columns : s.rows;
    const int last = middle.quotient(rest), y = rest - last * middle.divisor;
    const int p = s.by_channel ? x : last, r = s.by_channel ? last : y, c = s.by_channel ? y : x;
    if (p >= tile.planes) continue;
    const int b = s.per_batch.quotient(tile.plane + p);
    const int channel = tile.plane + p - b * s.channels;
    const int row = tile.row + r, column = tile.column + c;
    f(p * s.plane_pitch + r * s.pitch + c,
      b * s.batch + channel * s.channel + row * s.row + column * s.column,
      row < s.height && column < s.width);
  }
}

// f(place in shared memory, offset in the sequences) for way k of the tile, along the sequence.
template <class F>
__device__ __forceinline__ void for_way(const Shape& s, const Tile& tile, int k, const F& f) {
  const Way w = way(s.step == 2, k);
  const int end = s.planes.divisor * s.way_rows.divisor * s.way_columns.divisor;
  const int first_row = tile.row / s.step, first_column = tile.column / s.step;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < end; e += kThreads) {
    const Divisor& fastest = w.transposed ? s.way_rows : s.way_columns;
    const int rest = fastest.quotient(e), x = e - rest * fastest.divisor;
    const Divisor& middle = w.transposed ? s.way_columns : s.way_rows;
    const int p = middle.quotient(rest), y = rest - p * middle.divisor;
    const int r = w.transposed ? x : y, c = w.transposed ? y : x;
    const int row = first_row + r, column = first_column + c;
    if (p >= tile.planes || row >= s.way_height() || column >= s.way_width()) continue;
    const int b = s.per_batch.quotient(tile.plane + p);
    const int channel = tile.plane + p - b * s.channels;
    const int64_t position = w.transposed ? static_cast<int64_t>(column) * s.way_height() + row
                                          : static_cast<int64_t>(row) * s.way_width() + column;
    f(p * s.plane_pitch + (r * s.step + w.row) * s.pitch + c * s.step + w.column,
      b * s.sequence_batch + k * s.sequence_way + channel * s.sequence_channel +
          position * s.sequence_at);
  }
}

// T is an unsigned integer of the size of the elements: they are only moved.
template <class T>
__global__ void __launch_bounds__(kThreads) scan_kernel(const T* picture, T* sequences, Shape s) {
  T* const tile = &shared_memory<T>();
  const Tile at(s);
  for_picture(s, at, [&](int place, int64_t offset, bool inside) {
    tile[place] = inside ? picture[offset] : 0;
  });
  __syncthreads();
  for (int k = 0; k < s.ways; ++k)
    for_way(s, at, k, [&](int place, int64_t offset) { sequences[offset] = tile[place]; });
}

template <class T>
__global__ void __launch_bounds__(kThreads) merge_kernel(const T* sequences, T* picture, Shape s) {
  using F = Accumulator<T>;
  F* const tile = &shared_memory<F>();
  const Tile at(s);
  for (int k = 0; k < s.ways; ++k) {
    const bool add = s.step == 1 && k > 0;  // atrous ways share no position
    if (add) __syncthreads();
    for_way(s, at, k, [&](int place, int64_t offset) {
      const F value = widen(sequences[offset]);
      tile[place] = add ? tile[place] + value : value;
    });
  }
  __syncthreads();
  for_picture(s, at, [&](int place, int64_t offset, bool inside) {
    if (inside) picture[offset] = narrow<T>(tile[place]);
  });
}

Shape describe(const CrossScan& call) {
  Shape s{};
  s.channels = static_cast<int>(call.channels);
  s.height = static_cast<int>(call.height);
  s.width = static_cast<int>(call.width);
  s.ways = static_cast<int>(call.ways());
  s.step = call.atrous ? 2 : 1;
  s.all_planes = call.batch * call.channels;
  s.batch = call.map_batch;
  s.channel = call.map_channel;
  s.row = call.map_row;
  s.column = call.map_column;
  s.sequence_batch = call.sequences_batch;
  s.sequence_way = call.sequences_way;
  s.sequence_channel = call.sequences_channel;
  s.sequence_at = call.sequences_step;
  s.by_channel = s.channel < s.column;

  // Sides are even, so that a tile holds whole squares of atrous ways.
  const int height = static_cast<int>(call.way_height()) * s.step;
  const int width = static_cast<int>(call.way_width()) * s.step;
  const int side = s.by_channel ? kTileSide / 4 : kTileSide;
  const int rows = std::min(height, side), columns = std::min(width, side);
  const int planes = std::clamp(
      kTileSide * kTileSide / (rows * columns), 1,
      static_cast<int>(std::min<int64_t>(kMostPlanes, std::max<int64_t>(s.all_planes, 1))));
  s.row_tiles = (height + rows - 1) / rows;
  s.column_tiles = (width + columns - 1) / columns;
  s.planes = Divisor(planes);
  s.rows = Divisor(rows);
  s.columns = Divisor(columns);
  s.way_rows = Divisor(rows / s.step);
  s.way_columns = Divisor(columns / s.step);
  s.per_batch = Divisor(s.channels);
  s.pitch = columns | 1;  // odd, so that a column is not in one bank
  s.plane_pitch = (rows * s.pitch) | 1;
  return s;
}

dim3 grid(const Shape& s) {
  const int64_t plane_tiles = (s.all_planes + s.planes.divisor - 1) / s.planes.divisor;
  return grid_of(plane_tiles * s.row_tiles * s.column_tiles);
}

template <class T>
cudaError_t scan(const CrossScan& call, void* stream) {
  const Shape s = describe(call);
  return launch(scan_kernel<T>, grid(s), kThreads, sizeof(T) * s.planes.divisor * s.plane_pitch,
                stream, static_cast<const T*>(call.map), static_cast<T*>(call.sequences), s);
}

template <class T>
cudaError_t merge(const CrossScan& call, void* stream) {
  const Shape s = describe(call);
  const size_t bytes = sizeof(Accumulator<T>) * s.planes.divisor * s.plane_pitch;
  return launch(merge_kernel<T>, grid(s), kThreads, bytes, stream,
                static_cast<const T*>(call.sequences), static_cast<T*>(call.map), s);
}

}  // namespace

namespace cuda {

const char* cross_scan(const CrossScan& call, void* stream) {
  if (call.batch == 0) return nullptr;
  switch (call.dtype) {
    case DType::kFloat64:
      return message(scan<uint64_t>(call, stream));
    case DType::kFloat32:
      return message(scan<uint32_t>(call, stream));
    default:
      return message(scan<uint16_t>(call, stream));
  }
}

const char* cross_merge(const CrossScan& call, void* stream) {
  if (call.batch == 0) return nullptr;
  return message(with_type(call.dtype, [&](auto t) { return merge<decltype(t)>(call, stream); }));
}

}  // namespace cuda
}  // namespace zoo
