// Tree attention on CUDA. A block is 16 query rows of one key-value head, eight threads a row; the keys
// pass by in tiles of 32 through shared memory, with a running maximum and sum for each row (online
// softmax).
#include "common/cuda.cuh"
#include "tree_attention/tree_attention.h"

namespace zoo::cuda {
namespace {

constexpr int kRows = 16, kLanes = 8, kKeys = 32, kThreads = kRows * kLanes;
constexpr int kMaxDim = 256;
constexpr float kNothing = -1e30f;  // below every score

__device__ __forceinline__ float power2(float x) { return exp2_fast(x); }
__device__ __forceinline__ double power2(double x) { return exp2(x); }

__device__ __forceinline__ int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : value > high ? high : value;
}

// Numbers out of the index tensors are not looked at before the launch, so they are kept inside here.
template <class T>
__device__ __forceinline__ const T* slot_row(const TreeAttention& call, const TreeHeads& heads,
                                             int64_t batch, int64_t head, int64_t slot) {
  const T* const data = static_cast<const T*>(heads.data) + head * heads.head;
  if (!call.block_table) return data + batch * heads.batch + slot * heads.row;
  const int64_t wanted = call.block_table[batch * call.pages + slot / call.page_size];
  const int64_t page = clamp(wanted, 0, call.pool_pages - 1);
  return data + page * heads.batch + slot % call.page_size * heads.row;
}

__device__ __forceinline__ bool has_bit(const int64_t* bits, int64_t node) {
  return static_cast<uint64_t>(bits[node / 64]) >> (node % 64) & 1;
}

// Ancestors of a query from node `from` on.
__device__ __forceinline__ int64_t ancestors(const int64_t* bits, int64_t words, int64_t from) {
  int64_t count = 0;
  for (int64_t w = from / 64; w < words; w++) {
    uint64_t word = static_cast<uint64_t>(bits[w]);
    if (w == from / 64) word = word >> (from % 64) << (from % 64);
    count += __popcll(word);
  }
  return count;
}

template <class T>
__global__ void __launch_bounds__(kThreads) attend(TreeAttention call) {
  using S = Accumulator<T>;
  const int dim = static_cast<int>(call.dim), pitch = dim + 1;  // odd: no two lanes on one bank
  S* const q = &shared_memory<S>();
  S* const keys = q + kRows * dim;
  S* const values = keys + kKeys * pitch;
  S* const weights = values + kKeys * dim;
  const int row = threadIdx.x / kLanes, lane = threadIdx.x % kLanes;
  const int64_t batch = blockIdx.y / call.kv_heads, head = blockIdx.y % call.kv_heads;
  const int64_t groups = call.heads / call.kv_heads, rows = groups * call.nodes;
  const int64_t wanted = static_cast<int64_t>(blockIdx.x) * kRows + row;
  const int64_t r = wanted < rows ? wanted : rows - 1;  // rows too many repeat the last one
  const int64_t query_head = head * groups + r / call.nodes, node = r % call.nodes;
  const int64_t* const bits = call.anc_bits + (batch * call.nodes + node) * call.words;
  const int64_t bit_count = call.words * 64;
  const int64_t prefix = clamp(call.kv_len[batch], 0, call.slots);
  const int64_t start = clamp(call.tree_start[batch], -bit_count, call.slots);
  const int64_t depth = ancestors(bits, call.words, 0) - 1;
  const auto exists = [&](int64_t slot) { return slot >= 0 && slot < call.slots; };
  const auto in_window = [&](int64_t slot) {  // of a slot of the prefix
    return call.window <= 0 || prefix + depth - slot < call.window;
  };

  const T* const from = static_cast<const T*>(call.q.data) + batch * call.q.batch +
                        query_head * call.q.head + node * call.q.row;
  const S scale = static_cast<S>(call.scale * 1.4426950408889634);
  for (int d = lane; d < dim; d += kLanes) q[row * dim + d] = widen(from[d]) * scale;

  S out[kMaxDim / kLanes];
  for (int i = 0; i < kMaxDim / kLanes; i++) out[i] = 0;
  S highest = kNothing, total = 0;
  for (int part = 0; part < 2; part++) {
    const int64_t first = part ? start : 0, size = part ? bit_count : prefix;
    for (int64_t s = 0; s < size; s += kKeys) {
      const int n = static_cast<int>(size - s < kKeys ? size - s : kKeys);
      // a node that no query of this block sees may never have been written
      bool seen = false;
      if (part) {
        for (int j = lane; j < n; j += kLanes)
          seen = seen || (has_bit(bits, s + j) && exists(first + s + j));
      }
      if (part && !__syncthreads_or(seen)) continue;
      __syncthreads();
      for (int i = threadIdx.x; i < kKeys * dim; i += kThreads) {
        const int j = i / dim, d = i % dim;
        S key = 0, value = 0;
        if (j < n && exists(first + s + j)) {
          key = widen(slot_row<T>(call, call.k, batch, head, first + s + j)[d]);
          value = widen(slot_row<T>(call, call.v, batch, head, first + s + j)[d]);
        }
        keys[j * pitch + d] = key;
        values[j * dim + d] = value;
      }
      __syncthreads();
      S score[kKeys / kLanes];
      S top = highest;
      for (int i = 0; i < kKeys / kLanes; i++) {
        const int j = lane + i * kLanes;
        const int64_t slot = first + s + j;
        bool visible = j < n && exists(slot);
        if (visible && part) {
          // a node inside of the prefix has been seen there, if it is near enough
          visible = has_bit(bits, s + j) && !(slot < prefix && in_window(slot)) &&
                    (call.window <= 0 || ancestors(bits, call.words, s + j) <= call.window);
        } else if (visible) {
          visible = in_window(slot);
        }
        S sum = 0;
        if (visible) {
          for (int d = 0; d < dim; d++) sum += q[row * dim + d] * keys[j * pitch + d];
          top = sum > top ? sum : top;
        }
        score[i] = visible ? sum : static_cast<S>(2 * kNothing);
      }
      for (int step = 1; step < kLanes; step *= 2) {
        const S other = __shfl_xor_sync(kFullWarp, top, step);
        top = other > top ? other : top;
      }
      S added = 0;
      for (int i = 0; i < kKeys / kLanes; i++) {
        const S weight = score[i] < kNothing ? static_cast<S>(0) : power2(score[i] - top);
        weights[row * kKeys + lane + i * kLanes] = weight;
        added += weight;
      }
      for (int step = 1; step < kLanes; step *= 2) added += __shfl_xor_sync(kFullWarp, added, step);
      const S factor = power2(highest - top);
      total = total * factor + added;
      highest = top;
      __syncwarp();
      for (int i = 0; i < kMaxDim / kLanes; i++) {
        const int d = lane + i * kLanes;
        if (d >= dim) break;
        S sum = out[i] * factor;
        for (int j = 0; j < n; j++) {
          const S weight = weights[row * kKeys + j];
          // 0 times what was never written is not 0
          if (weight != 0) sum += weight * values[j * dim + d];
        }
        out[i] = sum;
      }
      __syncwarp();
    }
  }
  if (wanted >= rows) return;
  T* const to = static_cast<T*>(call.out.data) + batch * call.out.batch +
                query_head * call.out.head + node * call.out.row;
  for (int i = 0; i < kMaxDim / kLanes; i++) {
    const int d = lane + i * kLanes;
    if (d < dim) to[d] = narrow<T>(out[i] / total);
  }
}

template <class T>
cudaError_t start(const TreeAttention& call, void* stream) {
  const int64_t rows = call.heads / call.kv_heads * call.nodes;
  const size_t numbers = kRows * call.dim + kKeys * (call.dim + 1) + kKeys * call.dim + kRows * kKeys;
  const dim3 grid = grid_of((rows + kRows - 1) / kRows, call.batch * call.kv_heads);
  return launch(attend<T>, grid, kThreads, numbers * sizeof(Accumulator<T>), stream, call);
}

// A block moves one head's slots, in the order of cpu_commit.cpp. Slots that do not exist are left out.
template <class Word>
__global__ void move(CommitPath call) {
  const int64_t batch = blockIdx.x / call.heads, head = blockIdx.x % call.heads;
  Word* const data = static_cast<Word*>(call.cache.data) + batch * call.cache.batch +
                     head * call.cache.head;
  const int64_t count = clamp(call.count[batch], 0, call.longest);
  const int64_t length = clamp(call.kv_len[batch], -1, call.slots);
  const int64_t start = clamp(call.tree_start[batch], -call.slots, call.slots);
  const auto source = [&](int64_t j) {
    return start + clamp(call.path[batch * call.longest + j], -1, 2 * call.slots);
  };
  const auto copy = [&](int64_t d, int64_t j) {
    const int64_t from = source(j), to = length + j;
    if (from >= 0 && from < call.slots && length >= 0 && to < call.slots)
      data[to * call.cache.row + d] = data[from * call.cache.row + d];
  };
  for (int64_t d = threadIdx.x; d < call.dim; d += blockDim.x) {
    for (int64_t j = count - 1; j >= 0; j--)
      if (source(j) < length + j) copy(d, j);
    for (int64_t j = 0; j < count; j++)
      if (source(j) > length + j) copy(d, j);
  }
}

const char* outcome(cudaError_t error) {
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace

const char* tree_attention(const TreeAttention& call, void* stream) {
  switch (call.dtype) {
    case DType::kFloat32: return outcome(start<float>(call, stream));
    case DType::kBFloat16: return outcome(start<__nv_bfloat16>(call, stream));
    case DType::kFloat16: return outcome(start<__half>(call, stream));
    case DType::kFloat64: return outcome(start<double>(call, stream));
  }
  return "unknown dtype";
}

const char* commit_path(const CommitPath& call, void* stream) {
  if (call.batch * call.heads * call.longest == 0) return nullptr;
  const dim3 grid = grid_of(call.batch * call.heads);
  constexpr int kMovers = 128;
  switch (call.element_size) {
    case 1: return outcome(launch(move<uint8_t>, grid, kMovers, 0, stream, call));
    case 2: return outcome(launch(move<uint16_t>, grid, kMovers, 0, stream, call));
    case 4: return outcome(launch(move<uint32_t>, grid, kMovers, 0, stream, call));
    case 8: return outcome(launch(move<uint64_t>, grid, kMovers, 0, stream, call));
    default: return "elements of 1, 2, 4 or 8 bytes were expected";
  }
}

}  // namespace zoo::cuda
