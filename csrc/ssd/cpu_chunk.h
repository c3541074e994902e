// What the forward and the backward pass of Mamba-2's scan on the CPU share: one chunk of steps.
//
// Inside a chunk of Q steps, for one head, with p_t the sum of the logarithms of the decays up to step t,
//
//   y_t = exp(p_t) C_t S + sum over j <= t of exp(p_t - p_j) (C_t . B_j) dt_j x_j,
//
// S being the state that enters, and exp(p_Q) S + sum_j exp(p_Q - p_j) B_j dt_j x_j is the state that
// leaves: matrix products all of them. The scores C_t . B_j serve all heads of a group.
//
// Matrices over (step, step) and (state, step) are held so that a row goes along the steps t: scores[j][t],
// B[n][j], C[n][t]; their rows are kMost apart. Those over channels have rows of channels: x[j][p], S[n][p].
// What lies behind the end of the sequence is zero.
#pragma once

#include "common/arena.h"
#include "common/product.h"
#include "ssd/ssd.h"

namespace zoo::ZOO_CPU::ssd {

constexpr double kLog2E = 1.4426950408889634;
constexpr int64_t kMost = 64;  // steps of a chunk
constexpr int64_t kFew = 16;   // the same where the states are so few that longer chunks do not pay

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t chunk_of(const SsdProblem& p) { return p.state <= 8 ? kFew : kMost; }

// How the work is cut into tasks: [batch][group][run of heads].
struct Grid {
  int64_t batch, groups, heads, run_heads, runs;  // heads: of a group

  int64_t tasks() const { return batch * groups * runs; }
};

// As few runs as make equal shares for all threads, of at most `most` heads.
inline Grid grid_of(const SsdProblem& p, int64_t most, int64_t threads) {
  Grid g{p.batch, p.groups, p.heads / p.groups, 0, 0};
  int64_t runs = divide_up(g.heads, most < 1 ? 1 : most);
  while (runs * p.batch * p.groups % threads != 0 && runs < g.heads) runs++;
  g.run_heads = divide_up(g.heads, runs);
  g.runs = divide_up(g.heads, g.run_heads);
  return g;
}

struct Task {
  int64_t batch, group, run, first_head, heads;
};

inline Task task_of(const Grid& grid, int64_t index) {
  Task t;
  t.run = index % grid.runs;
  index /= grid.runs;
  t.group = index % grid.groups;
  t.batch = index / grid.groups;
  const int64_t first = t.run * grid.run_heads;
  t.first_head = t.group * grid.heads + first;
  t.heads = smaller(grid.run_heads, grid.heads - first);
  return t;
}

// Row of a signal at a step in the order of the scan.
template <class T>
T* row_of(const SsdProblem& p, const SsdSignal& s, int64_t batch, int64_t step, int64_t head) {
  const int64_t at = p.reverse ? p.length - 1 - step : step;
  return static_cast<T*>(s.data) + batch * s.batch + at * s.step + head * s.head;
}

// f(i, n): n elements from i on, in whole vectors as far as they go.
template <class V, class F>
ZOO_INLINE void for_vectors(int64_t count, const F& f) {
  for (int64_t i = 0; i < count; i += V::kSize)
    f(i, static_cast<int>(smaller(V::kSize, count - i)));
}

template <class V, class P>
ZOO_INLINE V load_some(const P* p, int n) {
  return n == V::kSize ? load(p) : load(p, n);
}

template <class V, class P>
ZOO_INLINE void store_some(P* p, V v, int n) {
  n == V::kSize ? store(p, v) : store(p, v, n);
}

template <class V>
ZOO_INLINE void clear(typename V::Scalar* p, int64_t count) {
  memset(p, 0, count * sizeof(typename V::Scalar));
}

// out[column][row] = in[row][column], rows a multiple of the vector. What lies behind `columns` in a
// row of `in` may be anything; the same number of rows of `out` is written as there are columns.
template <class V>
void transpose_tile(typename V::Scalar* out, int64_t out_pitch, const typename V::Scalar* in,
                    int64_t in_pitch, int64_t rows, int64_t columns) {
  constexpr int W = V::kSize;
  V square[W];
  for (int64_t r = 0; r < rows; r += W) {
    for_vectors<V>(columns, [&](int64_t c, int n) {
      for (int i = 0; i < W; i++) square[i] = load_some<V>(in + (r + i) * in_pitch + c, n);
      transpose(square);
      for (int i = 0; i < n; i++) store(out + (c + i) * out_pitch + r, square[i]);
    });
  }
}

// Sizes of tiles and the steps that a chunk has.
template <class V>
struct Shape {
  int64_t states, channels, padded;  // padded: channels, up to whole vectors
  int64_t chunk;

  explicit Shape(const SsdProblem& p)
      : states(p.state), channels(p.head_dim),
        padded(divide_up(p.head_dim, V::kSize) * V::kSize), chunk(chunk_of(p)) {}
};

struct Steps {
  int64_t begin, count;
  int64_t padded;  // count, up to whole vectors

  template <class V>
  static Steps of(int64_t begin, int64_t count) {
    return {begin, count, divide_up(count, V::kSize) * V::kSize};
  }
};

// What the heads of a group share.
template <class V>
struct Shared {
  using S = typename V::Scalar;
  S *B, *C;   // [state][step]
  S* scores;  // [j][t], t >= j (and what else is in the vectors)

  void lay_out(Arena& arena, const Shape<V>& shape) {
    B = arena.take<S>(shape.states * kMost);
    C = arena.take<S>(shape.states * kMost);
    scores = arena.take<S>(kMost * kMost);
  }

  template <class T>
  void fill(const SsdProblem& p, const Shape<V>& shape, const Steps& steps, int64_t batch,
            int64_t group) const {
    load_projection<T>(B, p, p.B, steps, batch, group);
    load_projection<T>(C, p, p.C, steps, batch, group);
    product<V>(steps.count, steps.padded, {B, 1, kMost}, C, kMost, scores, kMost, {},
               [&](int64_t j, int64_t) { return Need{0, shape.states, j / V::kSize * V::kSize}; });
  }

 private:
  template <class T>
  static void load_projection(S* out, const SsdProblem& p, const SsdSignal& m, const Steps& steps,
                              int64_t batch, int64_t group) {
    constexpr int W = V::kSize;
    V square[W];
    for (int64_t s = 0; s < steps.padded; s += W) {
      for_vectors<V>(p.state, [&](int64_t n, int count) {
        for (int i = 0; i < W; i++) {
          square[i] = s + i < steps.count
                          ? load_some<V>(row_of<const T>(p, m, batch, steps.begin + s + i, group) + n,
                                         count)
                          : V::set(0);
        }
        transpose(square);
        for (int i = 0; i < count; i++) store(out + (n + i) * kMost + s, square[i]);
      });
    }
  }
};

// Step sizes and decays of one head over a chunk.
template <class V>
struct Decays {
  using S = typename V::Scalar;

  S dt[kMost];
  S high[kMost], low[kMost];    // log2 of the decay from the start of the chunk, in two parts
  S enter[kMost] = {};           // factors from the start to a step,
  S leave[kMost];                // and from a step to the end
  S keep;                        // from the start to the end
  int segment[kMost];            // packed sequences that have begun inside the chunk
  bool whole;                    // none has

  void fill(const SsdProblem& p, const Steps& steps, int64_t batch, int64_t head) {
    const S rate = static_cast<const S*>(p.A)[head];
    const S* const from = static_cast<const S*>(p.dt) + batch * p.length * p.heads + head;
    double total = 0;
    for (int64_t s = 0; s < steps.padded; s++) {
      dt[s] = s < steps.count ? from[position(p, steps.begin + s) * p.heads] : S(0);
      total += static_cast<double>(dt[s]) * rate * kLog2E;
      high[s] = static_cast<S>(total);
      low[s] = static_cast<S>(total - high[s]);
    }
    load_segments(p, steps, batch);
    const int64_t last = steps.count - 1;
    const V high_end = V::set(high[last]), low_end = V::set(low[last]);
    for (int64_t s = 0; s < steps.padded; s += V::kSize) {
      const V h = load(high + s), l = load(low + s);
      store(enter + s, exp2(h));
      store(leave + s, exp2((high_end - h) + (low_end - l)));
    }
    keep = enter[last];
    if (whole) return;
    if (segment[last] > 0) keep = 0;
    for (int64_t s = 0; s < steps.count; s++) {
      if (segment[s] > 0) enter[s] = 0;
      if (segment[s] != segment[last]) leave[s] = 0;
    }
  }

  // decay[j][t], from step j to step t >= j, 0 for t < j.
  ZOO_INLINE void row(S* decay, int64_t j, const Steps& steps) const {
    constexpr int W = V::kSize;
    const V h = V::set(high[j]), l = V::set(low[j]);
    const int64_t first = j / W * W;
    for (int64_t t = first; t < steps.padded; t += W)
      store(decay + t, exp2((load(high + t) - h) + (load(low + t) - l)));
    for (int64_t t = first; t < j; t++) decay[t] = 0;
    if (whole) return;
    for (int64_t t = j; t < steps.count; t++) {
      if (segment[t] != segment[j]) decay[t] = 0;
    }
  }

  static int64_t position(const SsdProblem& p, int64_t step) {
    return p.reverse ? p.length - 1 - step : step;
  }

 private:
  void load_segments(const SsdProblem& p, const Steps& steps, int64_t batch) {
    whole = true;
    if (p.seq_idx == nullptr) return;
    const int32_t* const ids = p.seq_idx + batch * p.length;
    int count = 0;
    for (int64_t s = 0; s < steps.count; s++) {
      const int64_t step = steps.begin + s;
      if (step > 0 && ids[position(p, step)] != ids[position(p, step - 1)]) count++;
      segment[s] = count;
    }
    whole = count == 0;
  }
};

// The state, [state][padded channel], from [channel, state].
template <class V>
void load_state(typename V::Scalar* to, const void* all, const SsdProblem& p, const Shape<V>& shape,
                int64_t batch, int64_t head) {
  using S = typename V::Scalar;
  clear<V>(to, shape.states * shape.padded);
  if (all == nullptr) return;
  const S* const from =
      static_cast<const S*>(all) + (batch * p.heads + head) * shape.channels * shape.states;
  for (int64_t n = 0; n < shape.states; n++) {
    for (int64_t c = 0; c < shape.channels; c++) to[n * shape.padded + c] = from[c * shape.states + n];
  }
}

template <class V>
void store_state(const typename V::Scalar* from, void* all, const SsdProblem& p,
                 const Shape<V>& shape, int64_t batch, int64_t head) {
  using S = typename V::Scalar;
  S* const to = static_cast<S*>(all) + (batch * p.heads + head) * shape.channels * shape.states;
  for (int64_t n = 0; n < shape.states; n++) {
    for (int64_t c = 0; c < shape.channels; c++) to[c * shape.states + n] = from[n * shape.padded + c];
  }
}

// [state][channel] of the border before `step`.
template <class V>
typename V::Scalar* border_of(const SsdBorders& borders, const SsdProblem& p, const Shape<V>& shape,
                              int64_t batch, int64_t step, int64_t head) {
  const int64_t spans = divide_up(p.length, borders.span), span = step / borders.span;
  return static_cast<typename V::Scalar*>(borders.data) +
         ((batch * spans + span) * p.heads + head) * shape.channels * shape.states;
}

// A signal of one head, [step][padded channel].
template <class V, class T>
void load_signal(typename V::Scalar* to, const SsdProblem& p, const SsdSignal& signal,
                 const Shape<V>& shape, const Steps& steps, int64_t batch, int64_t head) {
  for (int64_t s = 0; s < steps.count; s++) {
    const T* const row = row_of<const T>(p, signal, batch, steps.begin + s, head);
    for_vectors<V>(shape.channels, [&](int64_t c, int n) {
      store(to + s * shape.padded + c, load_some<V>(row + c, n));
    });
  }
  clear<V>(to + steps.count * shape.padded, (steps.padded - steps.count) * shape.padded);
}

template <class V, class T>
void store_signal(const typename V::Scalar* from, const SsdProblem& p, const SsdSignal& signal,
                  const Shape<V>& shape, const Steps& steps, int64_t batch, int64_t head) {
  for (int64_t s = 0; s < steps.count; s++) {
    T* const row = row_of<T>(p, signal, batch, steps.begin + s, head);
    for_vectors<V>(shape.channels, [&](int64_t c, int n) {
      store_some<V>(row + c, load(from + s * shape.padded + c), n);
    });
  }
}

// to[s][:] = factor[s] from[s][:].
template <class V>
void scale_rows(typename V::Scalar* to, const typename V::Scalar* from,
                const typename V::Scalar* factor, const Shape<V>& shape, const Steps& steps) {
  for (int64_t s = 0; s < steps.padded; s++) {
    const V f = V::set(factor[s]);
    for (int64_t c = s * shape.padded; c < (s + 1) * shape.padded; c += V::kSize)
      store(to + c, load(from + c) * f);
  }
}

// mixed[j][t] = scores[j][t] times the decay from j to t, for all t >= j, and 0 for the others that a tile
// of a product touches; the decays, too, go to decay[j][t] if wanted.
template <class V>
void mix(typename V::Scalar* mixed, typename V::Scalar* decay, const typename V::Scalar* scores,
         const Decays<V>& decays, const Steps& steps) {
  constexpr int W = V::kSize;
  typename V::Scalar line[kMost];
  for (int64_t j = 0; j < steps.count; j++) {
    typename V::Scalar* const row = decay ? decay + j * kMost : line;
    decays.row(row, j, steps);
    const int64_t first = j / W * W, before = smaller(first, TileShape<V>::kM);
    clear<V>(mixed + j * kMost + first - before, before);
    for (int64_t t = first; t < steps.padded; t += W)
      store(mixed + j * kMost + t, load(scores + j * kMost + t) * load(row + t));
  }
}

// y = C S with the entering decays, + mixed times x (which has its step sizes).
template <class V>
void outputs(typename V::Scalar* y, const Shared<V>& shared, const typename V::Scalar* state,
             const typename V::Scalar* mixed, const typename V::Scalar* x, const Decays<V>& decays,
             const Shape<V>& shape, const Steps& steps) {
  product<V>(steps.count, shape.padded, shape.states, {shared.C, 1, kMost}, state, shape.padded, y,
             shape.padded, {});
  product<V>(steps.count, shape.padded, {mixed, 1, kMost}, x, shape.padded, y, shape.padded,
             {decays.enter, 1},
             [&](int64_t t, int64_t rows) { return Need{0, smaller(t + rows, steps.count), 0}; });
}

// The state behind the chunk; x has its step sizes and leaving decays.
template <class V>
void pass_state(typename V::Scalar* state, const Shared<V>& shared, const typename V::Scalar* x,
                const Decays<V>& decays, const Shape<V>& shape, const Steps& steps) {
  product<V>(shape.states, shape.padded, steps.count, {shared.B, kMost, 1}, x, shape.padded, state,
             shape.padded, {&decays.keep, 0});
}

}  // namespace zoo::ZOO_CPU::ssd
