// Tree attention on the CPU. A task is some query rows of one key-value head; the keys pass by in blocks,
// first those of the prefix, then the tree's own, with a running maximum and sum for each row (online
// softmax). Both products run as outer products on register tiles: keys are packed transposed, so that a
// vector holds one coordinate of several keys.
#include "common/arena.h"
#include "common/product.h"
#include "tree_attention/tree_attention.h"

namespace zoo::ZOO_CPU {
namespace {

constexpr int kRows = 64;    // query rows of a task
constexpr int kKeys = 128;   // keys of a block
constexpr double kLog2E = 1.4426950408889634;  // in scores, so that exp2 makes weights of them
constexpr double kNothing = -1e30;              // below every score
constexpr double kHidden = -2e30;               // weight 0 even where there is nothing else

// One sequence and key-value head.
template <class V, class T>
struct Rows {
  using S = typename V::Scalar;
  static constexpr int W = V::kSize, G = TileShape<V>::kN * W;

  const TreeAttention& call;
  int64_t batch, head;  // key-value head
  int64_t first;        // query row: (group, node), nodes fastest
  int count;            // query rows
  int64_t padded_dim;
  S *q, *keys, *values, *scores, *out, *highest, *total, *factor;
  uint64_t* seen;  // the nodes that any query sees, as bits; the others may never have been written

  const T* row_of(const TreeHeads& heads, int64_t slot) const {
    const T* const data = static_cast<const T*>(heads.data) + head * heads.head;
    if (!call.block_table) return data + batch * heads.batch + slot * heads.row;
    const int64_t page = call.block_table[batch * call.pages + slot / call.page_size];
    return data + page * heads.batch + slot % call.page_size * heads.row;
  }

  const T* query(int64_t row) const {
    const int64_t h = head * (call.heads / call.kv_heads) + row / call.nodes;
    return static_cast<const T*>(call.q.data) + batch * call.q.batch + h * call.q.head +
           row % call.nodes * call.q.row;
  }

  const int64_t* bits(int64_t row) const {
    return call.anc_bits + (batch * call.nodes + row % call.nodes) * call.words;
  }

  int64_t depth(int64_t row) const {
    int64_t sum = -1;
    for (int64_t w = 0; w < call.words; w++) sum += __builtin_popcountll(bits(row)[w]);
    return sum;
  }

  void run() {
    const V scale = V::set(static_cast<S>(call.scale * kLog2E));
    for (int r = 0; r < count; r++) {
      const T* const from = query(first + r);
      for (int64_t d = 0; d < padded_dim; d += W) {
        const int left = static_cast<int>(call.dim - d);
        store(q + r * padded_dim + d, (left >= W ? load(from + d) : load(from + d, left)) * scale);
        store(out + r * padded_dim + d, V::set(0));
      }
      highest[r] = static_cast<S>(kNothing);
      total[r] = 0;
    }
    const int64_t prefix = call.kv_len[batch];
    int64_t begin = 0;
    if (call.window > 0 && prefix + 1 > call.window) {
      int64_t shallowest = depth(first);
      for (int r = 1; r < count; r++) {
        const int64_t d = depth(first + r);
        if (d < shallowest) shallowest = d;
      }
      begin = prefix + shallowest - call.window + 1;
      begin = begin < 0 ? 0 : begin < prefix ? begin : prefix;
    }
    for (int64_t s = begin; s < prefix; s += kKeys)
      block(s, static_cast<int>(prefix - s < kKeys ? prefix - s : kKeys), -1);
    const int64_t start = call.tree_start[batch], nodes = find_seen();
    for (int64_t j = 0; j < nodes; j += kKeys)
      block(start + j, static_cast<int>(nodes - j < kKeys ? nodes - j : kKeys), j);
    finish();
  }

  // How many nodes there are up to the last that any query sees.
  int64_t find_seen() {
    int64_t end = 0;
    for (int64_t w = 0; w < call.words; w++) {
      seen[w] = 0;
      for (int64_t row = 0; row < call.nodes; row++) seen[w] |= static_cast<uint64_t>(bits(row)[w]);
      if (seen[w]) end = w * 64 + 64 - __builtin_clzll(seen[w]);
    }
    return end;
  }

  // Whether anybody sees the key in a place of the block that begins with `node` (-1: in the prefix).
  bool is_seen(int64_t node, int place) const {
    return node < 0 || seen[(node + place) / 64] >> ((node + place) % 64) & 1;
  }

  // Keys `slot` to `slot + n - 1`; node: which node of the tree the first of them is, -1 in the prefix.
  void block(int64_t slot, int n, int64_t node) {
    const S* v = values;
    int64_t v_row = padded_dim;
    pack_keys(slot, n, node);
    if constexpr (sizeof(T) == sizeof(S)) {
      bool all = true;
      for (int j = 0; node >= 0 && j < n; j++) all = all && is_seen(node, j);
      if (all && call.dim == padded_dim && !call.block_table) {
        v = reinterpret_cast<const S*>(row_of(call.v, slot));
        v_row = call.v.row;
      }
    }
    if (v == values) pack_values(slot, n, node);
    for (int g = 0; g < n; g += G)
      product<V>(count, G, call.dim, {q, padded_dim, 1}, keys + g * call.dim, G, scores + g, kKeys, {});
    for (int r = 0; r < count; r++) weigh(r, slot, n, node);
    product<V>(count, padded_dim, n, {scores, kKeys, 1}, v, v_row, out, padded_dim, {factor, 1});
  }

  // keys[group of G][dim][G]
  void pack_keys(int64_t slot, int n, int64_t node) {
    V rows[W];
    for (int g = 0; g < n; g += W) {
      const T* from[W];
      for (int c = 0; c < W; c++)
        from[c] = g + c < n && is_seen(node, g + c) ? row_of(call.k, slot + g + c) : nullptr;
      S* const to = keys + g / G * G * call.dim + g % G;
      for (int64_t d = 0; d < call.dim; d += W) {
        const int left = call.dim - d < W ? static_cast<int>(call.dim - d) : W;
        for (int c = 0; c < W; c++) {
          if (!from[c]) {
            rows[c] = V::set(0);
          } else {
            rows[c] = left == W ? load(from[c] + d) : load(from[c] + d, left);
          }
        }
        transpose(rows);
        for (int i = 0; i < left; i++) store(to + (d + i) * G, rows[i]);
      }
    }
  }

  void pack_values(int64_t slot, int n, int64_t node) {
    for (int j = 0; j < n; j++) {
      if (!is_seen(node, j)) {
        for (int64_t d = 0; d < padded_dim; d += W) store(values + j * padded_dim + d, V::set(0));
        continue;
      }
      const T* const from = row_of(call.v, slot + j);
      for (int64_t d = 0; d < padded_dim; d += W) {
        const int left = static_cast<int>(call.dim - d);
        store(values + j * padded_dim + d, left >= W ? load(from + d) : load(from + d, left));
      }
    }
  }

  // Scores of row r to weights; what the sums so far are multiplied with goes to factor[r].
  void weigh(int r, int64_t slot, int n, int64_t node) {
    S* const row = scores + static_cast<int64_t>(r) * kKeys;
    const S hidden = static_cast<S>(kHidden);
    const int end = (n + W - 1) / W * W;
    for (int j = n; j < end; j++) row[j] = hidden;
    if (node >= 0) {
      const int64_t* const own = bits(first + r);
      for (int j = 0; j < n; j++) {
        if (!(static_cast<uint64_t>(own[(node + j) / 64]) >> ((node + j) % 64) & 1)) row[j] = hidden;
      }
      hide_counted(r, row, slot, n, hidden);
    }
    if (call.window > 0) hide_far(r, row, slot, n, node, hidden);
    V top = load(row);
    for (int j = W; j < end; j += W) top = max(top, load(row + j));
    S lanes[W];
    store(lanes, top);
    S now = highest[r];
    for (int i = 0; i < W; i++) now = lanes[i] > now ? lanes[i] : now;
    const V shift = V::set(now);
    V sum = V::set(0);
    for (int j = 0; j < end; j += W) {
      const V weight = exp2(load(row + j) - shift);
      store(row + j, weight);
      sum += weight;
    }
    store(lanes, exp2(V::set(highest[r]) - shift));
    factor[r] = lanes[0];
    store(lanes, sum);
    S added = 0;
    for (int i = 0; i < W; i++) added += lanes[i];
    total[r] = total[r] * factor[r] + added;
    highest[r] = now;
  }

  // The first slot of the prefix that a row sees.
  int64_t first_near(int r) const {
    return call.window > 0 ? call.kv_len[batch] + depth(first + r) - call.window + 1 : 0;
  }

  // Leave out the nodes that stand inside of the prefix and were seen there.
  void hide_counted(int r, S* row, int64_t slot, int n, S hidden) const {
    const int64_t prefix = call.kv_len[batch];
    if (slot >= prefix) return;
    const int64_t near = first_near(r);
    for (int j = 0; j < n && slot + j < prefix; j++)
      if (slot + j >= near) row[j] = hidden;
  }

  // Leave out what is further away than the window.
  void hide_far(int r, S* row, int64_t slot, int n, int64_t node, S hidden) {
    if (node < 0) {
      const int64_t near = first_near(r);
      for (int j = 0; j < n && slot + j < near; j++) row[j] = hidden;
      return;
    }
    // an ancestor is as far away as there are ancestors from it on
    const int64_t* const own = bits(first + r);
    int64_t before = 0;
    for (int64_t w = 0; w < node / 64; w++) before += __builtin_popcountll(own[w]);
    const int64_t all = depth(first + r) + 1;
    for (int j = 0; j < n; j++) {
      if (!(static_cast<uint64_t>(own[(node + j) / 64]) >> ((node + j) % 64) & 1)) continue;
      if (all - before > call.window) row[j] = hidden;
      before++;
    }
  }

  void finish() {
    for (int r = 0; r < count; r++) {
      const int64_t row = first + r, h = head * (call.heads / call.kv_heads) + row / call.nodes;
      T* const to = static_cast<T*>(call.out.data) + batch * call.out.batch + h * call.out.head +
                    row % call.nodes * call.out.row;
      const V share = V::set(1 / total[r]);
      for (int64_t d = 0; d < call.dim; d += W) {
        const V value = load(out + r * padded_dim + d) * share;
        const int left = static_cast<int>(call.dim - d);
        if (left >= W) {
          store(to + d, value);
        } else {
          store(to + d, value, left);
        }
      }
    }
  }
};

template <class V, class T>
bool run(const TreeAttention& call, const Threads& threads) {
  using S = typename V::Scalar;
  constexpr int W = V::kSize;
  const int64_t rows = call.heads / call.kv_heads * call.nodes;
  // few heads: smaller parts, so that every thread has some
  int64_t part = kRows;
  while (part > 8 && call.batch * call.kv_heads * ((rows + part - 1) / part) < 2 * threads.count)
    part /= 2;
  const int64_t parts = (rows + part - 1) / part;
  bool enough = true;
  threads(call.batch * call.kv_heads * parts, [&](int64_t begin, int64_t end) {
    const int64_t padded = (call.dim + W - 1) / W * W;
    Arena arena;
    Rows<V, T> work{call, 0, 0, 0, 0, padded};
    for (int round = 0; round < 2; round++) {
      work.q = arena.take<S>(kRows * padded);
      work.keys = arena.take<S>((kKeys + Rows<V, T>::G) * call.dim);
      work.values = arena.take<S>(kKeys * padded);
      work.scores = arena.take<S>(kRows * kKeys + Rows<V, T>::G);
      work.out = arena.take<S>(kRows * padded);
      work.highest = arena.take<S>(kRows);
      work.total = arena.take<S>(kRows);
      work.factor = arena.take<S>(kRows);
      work.seen = arena.take<uint64_t>(call.words);
      if (round == 0 && !arena.allocate()) {
        __atomic_store_n(&enough, false, __ATOMIC_RELAXED);
        return;
      }
    }
    for (int64_t task = begin; task < end; task++) {
      work.batch = task / (call.kv_heads * parts);
      work.head = task / parts % call.kv_heads;
      work.first = task % parts * part;
      const int64_t left = rows - work.first;
      work.count = static_cast<int>(left < part ? left : part);
      work.run();
    }
  });
  return enough;
}

}  // namespace

bool tree_attention(const TreeAttention& call, const Threads& threads) {
  switch (call.dtype) {
    case DType::kFloat32: return run<Vec, float>(call, threads);
    case DType::kBFloat16: return run<Vec, BFloat16>(call, threads);
    case DType::kFloat16: return run<Vec, Float16>(call, threads);
    case DType::kFloat64: return run<VecD, double>(call, threads);
  }
  return false;
}

}  // namespace zoo::ZOO_CPU
