// Checks the tensors of the single step and hands them to the kernels. The messages for users come from
// zoo/ops/selective_state_update.py; these checks only keep the kernels from reading what is not there.
#include "common/binding.h"
#include "selective_state_update/selective_state_update.h"
#ifdef ZOO_CUDA
#include "common/binding_cuda.h"
#endif

namespace zoo {
namespace {

using Optional = std::optional<Tensor>;

void check(const Tensor& t, const Tensor& x, const std::vector<int64_t>& shape, ScalarType dtype,
           const char* name) {
  bool fits = t.dim() == static_cast<int64_t>(shape.size()) && t.scalar_type() == dtype &&
              t.is_cpu() == x.is_cpu() && t.get_device() == x.get_device();
  for (size_t i = 0; fits && i < shape.size(); i++) fits = t.size(i) == shape[i];
  ZOO_CHECK(fits, "selective_state_update: ", name, " has the wrong shape, dtype or device");
}

// With the state [batch, head, channel, state]; [batch, dim, state] is taken as heads of one group each.
struct Sizes {
  bool has_heads;
  int64_t batch, heads, head_dim, state;

  std::vector<int64_t> per_channel(bool with_batch, bool with_state) const {
    std::vector<int64_t> shape;
    if (with_batch) shape.push_back(batch);
    if (has_heads) {
      shape.insert(shape.end(), {heads, head_dim});
    } else {
      shape.push_back(heads * head_dim);
    }
    if (with_state) shape.push_back(state);
    return shape;
  }

  // Strides of a head and of a channel, where the dimensions of channels begin at `first`.
  std::pair<int64_t, int64_t> strides(const Tensor& t, int64_t first) const {
    if (has_heads) return {t.stride(first), t.stride(first + 1)};
    return {t.stride(first) * head_dim, t.stride(first)};
  }
};

StateUpdate::Signal signal(const Optional& t, const Tensor& x, const Sizes& sizes, const char* name) {
  if (!t) return {nullptr, 0, 0, 0};
  check(*t, x, sizes.per_channel(true, false), x.scalar_type(), name);
  const auto [head, channel] = sizes.strides(*t, 1);
  return {t->mutable_data_ptr(), t->stride(0), head, channel};
}

StateUpdate::Parameter parameter(const Optional& t, const Tensor& x, const Sizes& sizes,
                                 bool with_state, const char* name) {
  if (!t) return {nullptr, 0, 0, 0};
  const ScalarType accumulator =
      x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(*t, x, sizes.per_channel(false, with_state), accumulator, name);
  const auto [head, channel] = sizes.strides(*t, 0);
  return {t->data_ptr(), head, channel, with_state ? t->stride(t->dim() - 1) : 0};
}

StateUpdate::Projection projection(const Tensor& t, const Tensor& x, const Sizes& sizes,
                                   int64_t groups, const char* name) {
  if (t.dim() == 2) {
    check(t, x, {sizes.batch, sizes.state}, x.scalar_type(), name);
    return {t.data_ptr(), t.stride(0), 0, t.stride(1)};
  }
  check(t, x, {sizes.batch, groups, sizes.state}, x.scalar_type(), name);
  return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
}

bool dtypes_fit(const Tensor& state, const Tensor& x) {
  const ScalarType s = state.scalar_type(), t = x.scalar_type();
  if (s == t) return true;
  return t != ScalarType::Double && s != ScalarType::Double &&
         (s == ScalarType::Float || t == ScalarType::Float);
}

Tensor selective_state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A,
                              const Tensor& B, const Tensor& C, const Optional& D, const Optional& z,
                              const Optional& dt_bias, bool dt_softplus) {
  ZOO_CHECK(state.dim() == 3 || state.dim() == 4,
            "selective_state_update: state must have 3 or 4 dimensions");
  ZOO_CHECK(dtypes_fit(state, x),
            "selective_state_update: the state must be in the dtype of x or in float32");
  const bool has_heads = state.dim() == 4;
  const int64_t groups = B.dim() == 3 ? B.size(1) : C.dim() == 3 ? C.size(1) : 1;
  ZOO_CHECK(groups > 0 && state.size(1) % groups == 0,
            "selective_state_update: the groups do not divide the channels");
  const Sizes sizes = {has_heads, state.size(0), has_heads ? state.size(1) : groups,
                       has_heads ? state.size(2) : state.size(1) / groups,
                       state.size(state.dim() - 1)};
  check(state, x, sizes.per_channel(true, true), state.scalar_type(), "state");
  Tensor out = new_empty(x, sizes.per_channel(true, false), x.scalar_type());
  const auto [states_head, states_channel] = sizes.strides(state, 1);
  const StateUpdate call{
      .dtype = dtype_of(x),
      .state_dtype = dtype_of(state),
      .batch = sizes.batch,
      .heads = sizes.heads,
      .head_dim = sizes.head_dim,
      .state = sizes.state,
      .groups = groups,
      .softplus = dt_softplus,
      .states = state.mutable_data_ptr(),
      .states_batch = state.stride(0),
      .states_head = states_head,
      .states_channel = states_channel,
      .states_state = state.stride(state.dim() - 1),
      .x = signal(x, x, sizes, "x"),
      .dt = signal(dt, x, sizes, "dt"),
      .z = signal(z, x, sizes, "z"),
      .out = signal(out, x, sizes, "out"),
      .B = projection(B, x, sizes, groups, "B"),
      .C = projection(C, x, sizes, groups, "C"),
      .A = parameter(A, x, sizes, true, "A"),
      .D = parameter(D, x, sizes, false, "D"),
      .dt_bias = parameter(dt_bias, x, sizes, false, "dt_bias"),
  };
  if (state.numel() == 0) return out;
#ifdef ZOO_CUDA
  const OnDevice device(x);
  check_cuda("selective_state_update", cuda::selective_state_update(call, device.stream));
#else
  ZOO_CPU_SELECT(selective_state_update)(call, threads());
#endif
  return out;
}

}  // namespace
}  // namespace zoo

#ifdef ZOO_CUDA
ZOO_LIBRARY_IMPL(CUDA, m) {
#else
ZOO_LIBRARY_IMPL(CPU, m) {
#endif
  m.impl("selective_state_update", ZOO_BOX(zoo::selective_state_update));
}
