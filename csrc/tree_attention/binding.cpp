// Checks the tensors of tree attention and hands them to the kernels. The messages for users come from
// zoo/ops/tree_attention.py.
#include "common/checks.h"
#include "tree_attention/tree_attention.h"
#include "tree_attention/values.h"

namespace zoo {
namespace {

constexpr int64_t kMostDim = 256;

TreeHeads heads_of(const Checks& checks, const char* op, const Tensor& t, const char* name,
                   const Sizes& shape, ScalarType dtype) {
  checks.fits(t, name, shape, dtype);
  ZOO_CHECK(t.size(3) <= 1 || t.numel() == 0 || t.stride(3) == 1, op, ": the last dimension of ", name,
            " must have stride 1");
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

const int64_t* numbers(const Checks& checks, const Tensor& t, const char* name, const Sizes& shape) {
  return static_cast<const int64_t*>(checks.plain(t, name, shape, ScalarType::Long));
}

void check_values(const char* op, const std::string& wrong) {
  ZOO_CHECK(wrong.empty(), op, ": ", wrong);
}

#if defined(ZOO_CUDA) && defined(ZOO_DEBUG_KERNELS)
// Copies of index tensors where the CPU can read them. It waits for the device, hence not in every build.
class OnCpu {
 public:
  const int64_t* operator()(const Tensor& t) {
    copies_.push_back(on_cpu(t));
    return static_cast<const int64_t*>(copies_.back().data_ptr());
  }

 private:
  std::vector<Tensor> copies_;
};
#endif

Tensor tree_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv_len,
                      const Tensor& anc_bits, const Tensor& tree_start, const Optional& block_table,
                      double scale, int64_t window) {
  constexpr const char* op = "tree_attention";
  dtype_of(op, "q", q);
  ZOO_CHECK(q.dim() == 4 && k.dim() == 4 && anc_bits.dim() == 3, op, ": q is ", text_of(q), ", k ",
            text_of(k), " and anc_bits ", text_of(anc_bits),
            ", expected [batch, heads, nodes, dim], [batch, key heads, slots, dim] and [batch, nodes, "
            "words]");
  const Checks checks(op, "q", q);
  const ScalarType dtype = q.scalar_type();
  const int64_t batch = q.size(0), heads = q.size(1), nodes = q.size(2), dim = q.size(3);
  const int64_t kv_heads = k.size(1), slots = k.size(2), words = anc_bits.size(2);
  const int64_t pool = block_table ? k.size(0) : batch;
  ZOO_CHECK(kv_heads > 0 && heads % kv_heads == 0, op, ": ", heads, " query heads are not a multiple of ",
            kv_heads, " key heads");
  ZOO_CHECK(dim <= kMostDim, op, ": a head dimension of ", dim, " is above ", kMostDim);
  ZOO_CHECK(words > 0, op, ": anc_bits has no words, but every query is its own ancestor");
  checks.counts("batch * heads * nodes", batch * heads * nodes);
  checks.counts("64 * words", 64 * words);
  TreeAttention call{
      .dtype = dtype_of(op, "q", q),
      .batch = batch,
      .heads = heads,
      .kv_heads = kv_heads,
      .nodes = nodes,
      .dim = dim,
      .slots = slots,
      .words = words,
      .scale = scale,
      .window = window,
      .q = heads_of(checks, op, q, "q", {batch, heads, nodes, dim}, dtype),
      .k = heads_of(checks, op, k, "k", {pool, kv_heads, slots, dim}, dtype),
      .v = heads_of(checks, op, v, "v", {pool, kv_heads, slots, dim}, dtype),
      .out = {},
      .kv_len = numbers(checks, kv_len, "kv_len", {batch}),
      .tree_start = numbers(checks, tree_start, "tree_start", {batch}),
      .anc_bits = numbers(checks, anc_bits, "anc_bits", {batch, nodes, words}),
      .block_table = nullptr,
      .pages = 0,
      .page_size = 0,
      .pool_pages = pool,
  };
  if (block_table) {
    call.block_table = numbers(checks, *block_table, "block_table", {batch, kAnySize});
    call.pages = block_table->size(1);
    call.page_size = slots;
    checks.counts("a table", call.pages);
    checks.counts("a page", call.page_size);
    ZOO_CHECK(pool > 0 && slots > 0, op, ": k is ", text_of(k), ", but needs pages, and slots in them");
    call.slots = call.pages * call.page_size;
  }
#ifndef ZOO_CUDA
  check_values(op, wrong_values(call));
#elif defined(ZOO_DEBUG_KERNELS)
  OnCpu copy;
  TreeAttention seen = call;
  seen.kv_len = copy(kv_len);
  seen.tree_start = copy(tree_start);
  seen.anc_bits = copy(anc_bits);
  if (block_table) seen.block_table = copy(*block_table);
  check_values(op, wrong_values(seen));
#endif
  Tensor out = new_empty(q, {batch, heads, nodes, dim}, dtype);
  call.out = heads_of(checks, op, out, "out", {batch, heads, nodes, dim}, dtype);
  if (out.numel() == 0) return out;
#ifdef ZOO_CUDA
  const OnDevice device(q);
  check_cuda(op, cuda::tree_attention(call, device.stream));
#else
  ZOO_CHECK(ZOO_CPU_SELECT(tree_attention)(call, threads()), op, ": not enough memory");
#endif
  return out;
}

void commit_path(const Tensor& cache, const Tensor& kv_len, const Tensor& path, const Tensor& count,
                 const Tensor& tree_start) {
  constexpr const char* op = "commit_path";
  ZOO_CHECK(cache.dim() == 4 && path.dim() == 2, op, ": the cache is ", text_of(cache), " and path ",
            text_of(path), ", expected [batch, heads, slots, dim] and [batch, places]");
  const Checks checks(op, "the cache", cache);
  const int64_t batch = cache.size(0), longest = path.size(1);
  const CommitPath call{
      .element_size = static_cast<int64_t>(cache.element_size()),
      .batch = batch,
      .heads = cache.size(1),
      .slots = cache.size(2),
      .dim = cache.size(3),
      .longest = longest,
      .cache = heads_of(checks, op, cache, "the cache",
                        {batch, cache.size(1), cache.size(2), cache.size(3)}, cache.scalar_type()),
      .kv_len = numbers(checks, kv_len, "kv_len", {batch}),
      .tree_start = numbers(checks, tree_start, "tree_start", {batch}),
      .path = numbers(checks, path, "path", {batch, longest}),
      .count = numbers(checks, count, "n", {batch}),
  };
#ifndef ZOO_CUDA
  check_values(op, wrong_values(call));
#elif defined(ZOO_DEBUG_KERNELS)
  OnCpu copy;
  CommitPath seen = call;
  seen.kv_len = copy(kv_len);
  seen.tree_start = copy(tree_start);
  seen.path = copy(path);
  seen.count = copy(count);
  check_values(op, wrong_values(seen));
#endif
  checks.will_change(cache, "the cache", {&kv_len, &path, &count, &tree_start});
#ifdef ZOO_CUDA
  const OnDevice device(cache);
  check_cuda(op, cuda::commit_path(call, device.stream));
#else
  cpu::commit_path(call);
#endif
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("tree_attention", ZOO_BOX(zoo::tree_attention));
  m.impl("commit_path", ZOO_BOX(zoo::commit_path));
}
