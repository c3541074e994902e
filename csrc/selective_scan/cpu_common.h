// What the forward and the backward CPU kernel share.
//
// A vector holds neighbouring channels of one group, so that B and C are the same for all of its
// elements and nothing has to be added up across a vector. A "block" is such a vector of channels. Steps
// are counted in the order of the scan and handled in tiles, whose delta, u, ... stand in [step][lane]
// layout in the first-level cache while all states go over them, a few states at a time.
#pragma once

#include "common/arena.h"
#include "common/tile.h"
#include "selective_scan/selective_scan.h"

namespace zoo::ZOO_CPU::scan {

constexpr double kLog2E = 1.4426950408889634;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// How the work is cut into tasks: [batch][group][run of blocks][part of the sequence].
struct Grid {
  int64_t batch, groups, blocks, run_blocks, runs, parts, part_steps;

  int64_t tasks() const { return batch * groups * runs * parts; }

  void cut_runs(int64_t length) {
    run_blocks = length < 1 ? 1 : smaller(length, blocks);
    runs = divide_up(blocks, run_blocks);
  }
};

// Runs of one block. Parts are multiples of `unit` steps; there are several only if there are fewer
// blocks than threads, and the factors of many steps are an exponential (see cpu_links.h).
inline Grid grid_of(const ScanProblem& p, int lanes, int64_t unit, int64_t threads) {
  constexpr int64_t kFewestSteps = 512;
  Grid g{};
  g.batch = p.batch;
  g.groups = p.groups;
  g.blocks = divide_up(p.dim / p.groups, lanes);
  g.cut_runs(1);
  const int64_t blocks = g.batch * g.groups * g.blocks;
  int64_t parts = 1;
  if (blocks > 0 && blocks < threads && !p.negative) {
    int64_t common = blocks;  // divisor, so that all threads get the same number of tasks
    while (blocks % common != 0 || threads % common != 0) common--;
    parts = smaller(threads / common, p.length / kFewestSteps);
  }
  if (parts < 1) parts = 1;
  g.part_steps = divide_up(divide_up(p.length, parts), unit) * unit;
  g.parts = divide_up(p.length, g.part_steps);
  return g;
}

struct Task {
  int64_t batch, group, run, part;
  int64_t first_block, blocks;  // of the group
  int64_t begin, end;           // steps
};

inline Task task_of(const Grid& grid, int64_t length, int64_t index) {
  Task t;
  t.part = index % grid.parts;
  index /= grid.parts;
  t.run = index % grid.runs;
  index /= grid.runs;
  t.group = index % grid.groups;
  t.batch = index / grid.groups;
  t.first_block = t.run * grid.run_blocks;
  t.blocks = smaller(grid.run_blocks, grid.blocks - t.first_block);
  t.begin = t.part * grid.part_steps;
  t.end = smaller(length, t.begin + grid.part_steps);
  return t;
}

struct Block {
  int64_t channel;  // the first
  int lanes;        // how many
};

inline Block block_of(const ScanProblem& p, int lanes, int64_t group, int64_t block) {
  const int64_t per_group = p.dim / p.groups;
  return {group * per_group + block * lanes,
          static_cast<int>(smaller(lanes, per_group - block * lanes))};
}

// What went wrong on any thread.
class Failure {
 public:
  void add(ScanStatus status) {
    if (status != ScanStatus::kDone) __atomic_store_n(&status_, status, __ATOMIC_RELAXED);
  }
  ScanStatus status() const { return status_; }

 private:
  ScanStatus status_ = ScanStatus::kDone;
};

// A sequence of one batch entry, in the order of the scan.
template <class T>
struct Rows {
  T* data;
  int64_t channel, step;

  T* at(int64_t c, int64_t s) const { return data + c * channel + s * step; }
};

template <class T>
Rows<T> rows_of(const ScanProblem& p, const ScanSequence& q, int64_t batch) {
  T* const data = static_cast<T*>(q.data) + batch * q.batch;
  if (p.reverse) return {data + (p.length - 1) * q.step, q.channel, -q.step};
  return {data, q.channel, q.step};
}

// B or C of one batch entry and group: its "channels" are the states.
template <class T>
Rows<T> rows_of(const ScanProblem& p, const ScanProjection& m, int64_t batch, int64_t group) {
  Rows<T> rows = rows_of<T>(p, ScanSequence{m.data, m.batch, m.state, m.step}, batch);
  rows.data += group * m.group;
  return rows;
}

// What belongs to one batch entry in [batch, dim, state]; null if there is nothing.
template <class S, class Void>
S* of_batch(const ScanProblem& p, Void* data, int64_t batch) {
  return data ? static_cast<S*>(data) + batch * p.dim * p.state : nullptr;
}

// [state][dim] of the border before `step`.
template <class S>
S* border_of(const ScanProblem& p, const ScanBorders& borders, int64_t batch, int64_t step) {
  const int64_t chunks = divide_up(p.length, borders.chunk), chunk = step / borders.chunk;
  return static_cast<S*>(borders.data) + (batch * chunks + chunk) * p.state * p.dim;
}

// For how many steps (a multiple of `unit`) a run of blocks holds B and C: the longer a block has its way
// along its rows, the better the processor foresees what it will read; B and C must fit into a part
// of the second-level cache.
inline int64_t stretch_of(const ScanProblem& p, int64_t unit) {
  constexpr int64_t kNumbers = 8192;
  return divide_up(smaller(divide_up(kNumbers, p.state), p.length), unit) * unit;
}

// The steps begin ... end of B or C as out[n * pitch + s], from where single numbers are spread over
// vectors. Nothing if it is constant.
template <class V, class T>
void load_projection(typename V::Scalar* out, int64_t pitch, const ScanProblem& p,
                     const ScanProjection& m, const Task& task, int64_t begin, int64_t end) {
  constexpr int W = V::kSize;
  if (m.constant) return;
  const int64_t steps = end - begin;
  const auto from = rows_of<const T>(p, m, task.batch, task.group);
  const auto each = [&](int64_t count, const auto& f) {
    for (int64_t i = 0; i < count; i += W) f(i, static_cast<int>(smaller(W, count - i)));
  };
  if (from.step == 1 || (from.step == -1 && steps % W == 0)) {
    for (int64_t n = 0; n < p.state; n++) {
      each(steps, [&](int64_t s, int count) {
        store(out + n * pitch + s,
              from.step == 1 ? load(from.at(n, begin + s), count)
                             : reversed(load(from.at(n, begin + s + W - 1))),
              count);
      });
    }
    return;
  }
  V rows[W];
  T gathered[W];
  each(p.state, [&](int64_t n, int states) {
    each(steps, [&](int64_t s, int count) {
      for (int i = 0; i < W; i++) {
        const T* row = from.at(n, begin + s + (i < count ? i : 0));
        if (from.channel != 1) {
          for (int j = 0; j < states; j++) gathered[j] = row[j * from.channel];
          row = gathered;
        }
        rows[i] = load(row, states);
      }
      transpose(rows);
      for (int j = 0; j < states; j++) store(out + (n + j) * pitch + s, rows[j], count);
    });
  });
}

// out[n][lane] = scale * from[channel + lane][n]; 0 in lanes without a channel and where there is
// nothing to load.
template <class V>
void load_parameters(typename V::Scalar* out, const void* from, const Block& block, int64_t states,
                     double scale = 1.0) {
  using S = typename V::Scalar;
  constexpr int W = V::kSize;
  const S* const p = static_cast<const S*>(from) + block.channel * states;
  const int lanes = from ? block.lanes : 0;
  for (int64_t n = 0; n < states; n++) {
    for (int c = 0; c < W; c++)
      out[n * W + c] = c < lanes ? static_cast<S>(scale * p[c * states + n]) : S(0);
  }
}

template <class V>
void store_parameters(const typename V::Scalar* in, typename V::Scalar* to, const Block& block,
                      int64_t states) {
  typename V::Scalar* const p = to + block.channel * states;
  for (int64_t n = 0; n < states; n++) {
    for (int c = 0; c < block.lanes; c++) p[c * states + n] = in[n * V::kSize + c];
  }
}

// One number for each channel of a block; 0 if there are none.
template <class V>
ZOO_INLINE V load_vector(const void* from, const Block& block) {
  if (from == nullptr) return V::set(0);
  return load(static_cast<const typename V::Scalar*>(from) + block.channel, block.lanes);
}

// A sequence's tile, [step][lane].
template <class V, class T>
void load_steps(typename V::Scalar* tile, const ScanProblem& p, const ScanSequence& q, int64_t batch,
                const Block& block, int64_t begin, int steps) {
  const auto rows = rows_of<const T>(p, q, batch);
  load_tile<V>(tile, rows.at(block.channel, begin), rows.channel, rows.step, block.lanes, steps);
}

template <class V, class T>
void store_steps(const typename V::Scalar* tile, const ScanProblem& p, const ScanSequence& q,
                 int64_t batch, const Block& block, int64_t begin, int steps) {
  const auto rows = rows_of<T>(p, q, batch);
  store_tile<V>(tile, rows.at(block.channel, begin), rows.channel, rows.step, block.lanes, steps);
}

// delta and u of a tile.
template <class V>
struct Inputs {
  typename V::Scalar* raw;    // delta with its bias
  typename V::Scalar* delta;  // after softplus, if any; may be the same as raw
  typename V::Scalar *u, *du;  // du = delta u
};

// The result is 0, or NaN if delta is not finite.
template <class V, class T>
V load_inputs(const Inputs<V>& to, const ScanProblem& p, int64_t batch, const Block& block,
              int64_t begin, int steps) {
  constexpr int W = V::kSize;
  load_steps<V, T>(to.raw, p, p.delta, batch, block, begin, steps);
  load_steps<V, T>(to.u, p, p.u, batch, block, begin, steps);
  const V bias = load_vector<V>(p.delta_bias, block);
  V bad = V::set(0);
  for (int i = 0; i < steps * W; i += W) {
    V d = load(to.raw + i) + bias;
    bad += d - d;
    store(to.raw + i, d);
    if (p.softplus) d = softplus(d);
    store(to.delta + i, d);
    store(to.du + i, d * load(to.u + i));
  }
  return bad;
}

// The gradient of what comes before the gate, dout silu(z). z becomes dout times the derivative of
// silu, which times that output is dz.
template <class V, class T>
void load_dy(typename V::Scalar* dy, typename V::Scalar* z, const ScanProblem& p,
             const ScanSequence& dout, int64_t batch, const Block& block, int64_t begin,
             int steps) {
  constexpr int W = V::kSize;
  if (dout.data == nullptr) {
    memset(dy, 0, steps * W * sizeof(typename V::Scalar));
  } else {
    load_steps<V, T>(dy, p, dout, batch, block, begin, steps);
  }
  if (p.z.data == nullptr) return;
  load_steps<V, T>(z, p, p.z, batch, block, begin, steps);
  const V one = V::set(1);
  for (int i = 0; i < steps * W; i += W) {
    const V x = load(z + i), gate = sigmoid(x), d = load(dy + i);
    store(dy + i, d * x * gate);
    store(z + i, d * gate * fma(x, one - gate, one));
  }
}

// f(first, count, reset) for each stretch of the tile that no reset interrupts; `reset`: it begins
// with one.
template <class F>
void for_stretches(const ScanProblem& p, int64_t batch, int64_t begin, int steps, const F& f) {
  if (p.reset == nullptr) return f(0, steps, false);
  const uint8_t* const row = p.reset + batch * p.length;
  const auto reset = [&](int s) {
    return row[p.reverse ? p.length - 1 - (begin + s) : begin + s];
  };
  for (int first = 0; first < steps;) {
    int last = first + 1;
    while (last < steps && !reset(last)) last++;
    f(first, last - first, reset(first));
    first = last;
  }
}

// What a state is multiplied with, from exp(delta A).
template <bool kNegative, class V>
ZOO_INLINE V factor(V exponential) {
  if constexpr (!kNegative) return exponential;
  return exponential + exponential - V::set(1);
}

// f.operator()<NB>(n) for runs of NB = kMost, kMost/2, ..., 1 states that together cover all.
template <int kMost, class F>
void for_runs_of_states(int64_t states, const F& f, int64_t n = 0) {
  for (; n + kMost <= states; n += kMost) f.template operator()<kMost>(n);
  if constexpr (kMost > 1) for_runs_of_states<kMost / 2>(states, f, n);
}

}  // namespace zoo::ZOO_CPU::scan
