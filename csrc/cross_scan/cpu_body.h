// cross_scan and cross_merge on the CPU. A strip of a few rows of the map, one vector of channels deep,
// stands in the cache as [row][column][lane]; the ways read it, or add to it, row by row and column by
// column.
#pragma once

#include "common/arena.h"
#include "common/tile.h"
#include "cross_scan/cross_scan.h"

namespace zoo::ZOO_CPU {

template <class V, class T>
class CrossScanStrips {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize;

 public:
  explicit CrossScanStrips(const CrossScan& call)
      : p_(call),
        step_(call.atrous ? 2 : 1),
        blocks_((call.channels + W - 1) / W),
        // one vector of steps along a column of a way, and more of them where rows are short
        rows_(smaller(step_ * call.way_height(), step_ * W * (1 + kStripColumns / call.width))),
        strips_((call.height + rows_ - 1) / rows_),
        columns_(step_ * call.way_width()) {}

  int64_t tasks() const { return p_.batch * blocks_ * strips_; }

  bool run(int64_t begin, int64_t end, bool merge) const {
    Arena arena;
    Buffers(arena, *this);
    if (!arena.allocate()) return false;
    const Buffers to(arena, *this);
    for (int64_t i = begin; i < end; i++) run_strip(i, to, merge);
    return true;
  }

 private:
  static constexpr int64_t kStripColumns = 64;

  struct Buffers {
    S *strip, *line;  // [row][column][lane], [step][lane]

    Buffers(Arena& arena, const CrossScanStrips& s) {
      strip = arena.take<S>(s.rows_ * s.columns_ * W);
      line = arena.take<S>((s.rows_ > s.columns_ ? s.rows_ : s.columns_) * W);
    }
  };

  static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

  void run_strip(int64_t index, const Buffers& to, bool merge) const {
    const int64_t row = index % strips_ * rows_, rest = index / strips_;
    const int64_t channel = rest % blocks_ * W, batch = rest / blocks_;
    const int lanes = static_cast<int>(smaller(W, p_.channels - channel));
    const int64_t rows = smaller(rows_, p_.height - row);
    T* const map = static_cast<T*>(p_.map) + batch * p_.map_batch + channel * p_.map_channel;
    T* const sequences = static_cast<T*>(p_.sequences) + batch * p_.sequences_batch +
                         channel * p_.sequences_channel;
    if (!merge) load_map(to, map, row, rows, lanes);
    for (int64_t way = 0; way < p_.ways(); way++)
      run_way(to, sequences + way * p_.sequences_way, way, row, rows, lanes, merge);
    if (merge) {
      for (int64_t r = 0; r < rows; r++)
        store_tile<V>(to.strip + r * columns_ * W, map + (row + r) * p_.map_row, p_.map_channel,
                      p_.map_column, lanes, static_cast<int>(p_.width));
    }
  }

  void load_map(const Buffers& to, const T* map, int64_t row, int64_t rows, int lanes) const {
    for (int64_t r = 0; r < rows; r++) {
      S* const line = to.strip + r * columns_ * W;
      load_tile<V>(line, map + (row + r) * p_.map_row, p_.map_channel, p_.map_column, lanes,
                   static_cast<int>(p_.width));
      memset(line + p_.width * W, 0, (columns_ - p_.width) * W * sizeof(S));
    }
    if (step_ == 2 && rows % 2 == 1)  // below the last row of an odd map
      memset(to.strip + rows * columns_ * W, 0, columns_ * W * sizeof(S));
  }

  // All lines of a way in the strip: rows, or columns where the way goes column after column.
  void run_way(const Buffers& to, T* sequence, int64_t way, int64_t row, int64_t rows, int lanes,
               bool merge) const {
    const bool by_column = way % 2 == 1;
    const int64_t height = (rows + step_ - 1) / step_, width = p_.way_width();
    const int64_t corner = p_.atrous ? way % 2 * columns_ + way / 2 : 0;
    const int64_t down = step_ * columns_ * W, right = step_ * W;
    const int64_t lines = by_column ? width : height, steps = by_column ? height : width;
    for (int64_t i = 0; i < lines; i++) {
      S* const place = to.strip + corner * W + i * (by_column ? right : down);
      const int64_t between = by_column ? down : right;
      const int64_t first =
          by_column ? i * p_.way_height() + row / step_ : (row / step_ + i) * width;
      T* const at = sequence + first * p_.sequences_step;
      if (merge) {
        load_tile<V>(to.line, at, p_.sequences_channel, p_.sequences_step, lanes,
                     static_cast<int>(steps));
        const bool add = way > 0 && !p_.atrous;
        for (int64_t s = 0; s < steps; s++) {
          const V value = load(to.line + s * W);
          store(place + s * between, add ? load(place + s * between) + value : value);
        }
      } else {
        for (int64_t s = 0; s < steps; s++) store(to.line + s * W, load(place + s * between));
        store_tile<V>(to.line, at, p_.sequences_channel, p_.sequences_step, lanes,
                      static_cast<int>(steps));
      }
    }
  }

  const CrossScan& p_;
  int64_t step_, blocks_, rows_, strips_, columns_;
};

template <class V, class T>
bool cross_scan_typed(const CrossScan& call, const Threads& threads, bool merge) {
  const CrossScanStrips<V, T> strips(call);
  bool done = true;
  threads(strips.tasks(), [&](int64_t begin, int64_t end) {
    if (!strips.run(begin, end, merge)) __atomic_store_n(&done, false, __ATOMIC_RELAXED);
  });
  return done;
}

inline bool cross_scan_any(const CrossScan& call, const Threads& threads, bool merge) {
  switch (call.dtype) {
    case DType::kFloat32: return cross_scan_typed<Vec, float>(call, threads, merge);
    case DType::kBFloat16: return cross_scan_typed<Vec, BFloat16>(call, threads, merge);
    case DType::kFloat16: return cross_scan_typed<Vec, Float16>(call, threads, merge);
    default: return cross_scan_typed<VecD, double>(call, threads, merge);
  }
}

bool cross_scan(const CrossScan& call, const Threads& threads) {
  return cross_scan_any(call, threads, false);
}

bool cross_merge(const CrossScan& call, const Threads& threads) {
  return cross_scan_any(call, threads, true);
}

}  // namespace zoo::ZOO_CPU
