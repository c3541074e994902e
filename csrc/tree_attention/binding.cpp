#include "common/binding.h"
#include "tree_attention/tree_attention.h"
#ifdef ZOO_CUDA
#include "common/binding_cuda.h"
#endif

namespace zoo {
namespace {

TreeHeads heads_of(const Tensor& t) {
  ZOO_CHECK(t.dim() == 4 && (t.size(3) <= 1 || t.stride(3) == 1),
            "tree_attention: the last dimension must be contiguous");
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

const int64_t* numbers(const Tensor& t, int64_t count) {
  ZOO_CHECK(t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.numel() == count,
            "tree_attention: lengths, bits and tables must be contiguous int64 of the right size");
  return static_cast<const int64_t*>(t.data_ptr());
}

Tensor tree_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& kv_len,
                      const Tensor& anc_bits, const Tensor& tree_start,
                      const std::optional<Tensor>& block_table, double scale, int64_t window) {
  const int64_t batch = q.size(0), heads = q.size(1), nodes = q.size(2), dim = q.size(3);
  Tensor out = new_empty(q, {batch, heads, nodes, dim}, q.scalar_type());
  TreeAttention call{
      .dtype = dtype_of(q),
      .batch = batch,
      .heads = heads,
      .kv_heads = k.size(1),
      .nodes = nodes,
      .dim = dim,
      .slots = k.size(2),
      .words = anc_bits.size(2),
      .scale = scale,
      .window = window,
      .q = heads_of(q),
      .k = heads_of(k),
      .v = heads_of(v),
      .out = heads_of(out),
      .kv_len = numbers(kv_len, batch),
      .tree_start = numbers(tree_start, batch),
      .anc_bits = numbers(anc_bits, batch * nodes * anc_bits.size(2)),
      .block_table = nullptr,
      .pages = 0,
      .page_size = 0,
  };
  ZOO_CHECK(k.scalar_type() == q.scalar_type() && v.scalar_type() == q.scalar_type(),
            "tree_attention: q, k and v must have one dtype");
  if (block_table.has_value()) {
    call.pages = block_table->size(1);
    call.page_size = k.size(2);
    call.slots = call.pages * call.page_size;
    call.block_table = numbers(*block_table, batch * call.pages);
  }
  if (out.numel() == 0) return out;
#ifdef ZOO_CUDA
  const OnDevice device(q);
  check_cuda("tree_attention", cuda::tree_attention(call, device.stream));
#else
  ZOO_CHECK(ZOO_CPU_SELECT(tree_attention)(call, threads()), "no memory for tree_attention");
#endif
  return out;
}

void commit_path(const Tensor& cache, const Tensor& kv_len, const Tensor& path, const Tensor& count,
                 const Tensor& tree_start) {
  const int64_t batch = cache.size(0);
  const CommitPath call{
      .element_size = static_cast<int64_t>(cache.element_size()),
      .batch = batch,
      .heads = cache.size(1),
      .dim = cache.size(3),
      .longest = path.size(1),
      .cache = heads_of(cache),
      .kv_len = numbers(kv_len, batch),
      .tree_start = numbers(tree_start, batch),
      .path = numbers(path, batch * path.size(1)),
      .count = numbers(count, batch),
  };
#ifdef ZOO_CUDA
  const OnDevice device(cache);
  check_cuda("commit_path", cuda::commit_path(call, device.stream));
#else
  cpu::commit_path(call);
#endif
}

}  // namespace
}  // namespace zoo

#ifdef ZOO_CUDA
ZOO_LIBRARY_IMPL(CUDA, m) {
#else
ZOO_LIBRARY_IMPL(CPU, m) {
#endif
  m.impl("tree_attention", ZOO_BOX(zoo::tree_attention));
  m.impl("commit_path", ZOO_BOX(zoo::commit_path));
}
