// Checks the tensors of the single step and hands them to the kernels. The messages for users come from
// zoo/ops/selective_state_update.py.
#include "common/checks.h"
#include "selective_state_update/selective_state_update.h"

namespace zoo {
namespace {

// With the state [batch, head, channel, state]; [batch, dim, state] is taken as heads of one group each.
struct Arguments {
  Checks checks;
  ScalarType dtype, accumulator;  // of the signals, of the parameters
  bool has_heads;
  int64_t batch, heads, head_dim, state;

  void fits(const Tensor& t, const char* name, bool with_batch, bool with_state,
            ScalarType dtype) const {
    Sizes shape = {};
    if (with_batch) shape.push_back(batch);
    if (has_heads) shape.push_back(heads);
    shape.push_back(has_heads ? head_dim : heads * head_dim);
    if (with_state) shape.push_back(state);
    checks.fits(t, name, shape, dtype);
  }

  // Strides of a head and of a channel, where the dimensions of channels begin at `first`.
  std::pair<int64_t, int64_t> strides(const Tensor& t, int64_t first) const {
    if (has_heads) return {t.stride(first), t.stride(first + 1)};
    return {t.stride(first) * head_dim, t.stride(first)};
  }

  StateUpdate::Signal signal(const Optional& t, const char* name) const {
    if (!t) return {nullptr, 0, 0, 0};
    fits(*t, name, true, false, dtype);
    const auto [head, channel] = strides(*t, 1);
    return {t->mutable_data_ptr(), t->stride(0), head, channel};
  }

  StateUpdate::Parameter parameter(const Optional& t, bool with_state, const char* name) const {
    if (!t) return {nullptr, 0, 0, 0};
    fits(*t, name, false, with_state, accumulator);
    const auto [head, channel] = strides(*t, 0);
    return {t->data_ptr(), head, channel, with_state ? t->stride(t->dim() - 1) : 0};
  }

  StateUpdate::Projection projection(const Tensor& t, int64_t groups, const char* name) const {
    if (t.dim() == 2) {
      checks.fits(t, name, {batch, state}, dtype);
      return {t.data_ptr(), t.stride(0), 0, t.stride(1)};
    }
    checks.fits(t, name, {batch, groups, state}, dtype);
    return {t.data_ptr(), t.stride(0), t.stride(1), t.stride(2)};
  }
};

bool dtypes_fit(const Tensor& state, const Tensor& x) {
  const ScalarType s = state.scalar_type(), t = x.scalar_type();
  if (s == t) return true;
  return t != ScalarType::Double && s != ScalarType::Double &&
         (s == ScalarType::Float || t == ScalarType::Float);
}

Tensor selective_state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A,
                              const Tensor& B, const Tensor& C, const Optional& D, const Optional& z,
                              const Optional& dt_bias, bool dt_softplus, bool negative) {
  constexpr const char* op = "selective_state_update";
  dtype_of(op, "x", x);
  dtype_of(op, "state", state);
  ZOO_CHECK(state.dim() == 3 || state.dim() == 4, op, ": state is ", text_of(state),
            ", expected [batch, dim, state] or [batch, heads, head_dim, state]");
  ZOO_CHECK(dtypes_fit(state, x), op, ": state is ", text_of(state), " and x ", text_of(x),
            "; the state must be in the dtype of x or one of them in float32");
  const bool has_heads = state.dim() == 4;
  const int64_t groups = B.dim() == 3 ? B.size(1) : C.dim() == 3 ? C.size(1) : 1;
  ZOO_CHECK(groups > 0 && state.size(1) % groups == 0, op, ": ", groups,
            " groups of B and C do not divide ", state.size(1), has_heads ? " heads" : " channels");
  const Arguments a = {
      .checks = Checks(op, "x", x),
      .dtype = x.scalar_type(),
      .accumulator = accumulator_of(x),
      .has_heads = has_heads,
      .batch = state.size(0),
      .heads = has_heads ? state.size(1) : groups,
      .head_dim = has_heads ? state.size(2) : state.size(1) / groups,
      .state = state.size(state.dim() - 1),
  };
  a.fits(state, "state", true, true, state.scalar_type());
  for (int64_t dim = 1; dim < state.dim(); dim++) a.checks.not_empty(state, "state", {dim});
  a.checks.counts("a state", a.state);
  Tensor out =
      has_heads ? new_empty(x, {a.batch, a.heads, a.head_dim}, x.scalar_type())
                : new_empty(x, {a.batch, a.heads * a.head_dim}, x.scalar_type());
  const auto [states_head, states_channel] = a.strides(state, 1);
  const StateUpdate call{
      .dtype = dtype_of(op, "x", x),
      .state_dtype = dtype_of(op, "state", state),
      .batch = a.batch,
      .heads = a.heads,
      .head_dim = a.head_dim,
      .state = a.state,
      .groups = groups,
      .softplus = dt_softplus,
      .negative = negative,
      .states = state.mutable_data_ptr(),
      .states_batch = state.stride(0),
      .states_head = states_head,
      .states_channel = states_channel,
      .states_state = state.stride(state.dim() - 1),
      .x = a.signal(x, "x"),
      .dt = a.signal(dt, "dt"),
      .z = a.signal(z, "z"),
      .out = a.signal(out, "out"),
      .B = a.projection(B, groups, "B"),
      .C = a.projection(C, groups, "C"),
      .A = a.parameter(A, true, "A"),
      .D = a.parameter(D, false, "D"),
      .dt_bias = a.parameter(dt_bias, false, "dt_bias"),
  };
  a.checks.will_change(state, "state",
                       {&x, &dt, &A, &B, &C, address_of(D), address_of(z), address_of(dt_bias)});
  if (a.batch == 0) return out;
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

ZOO_KERNELS(m) {
  m.impl("selective_state_update", ZOO_BOX(zoo::selective_state_update));
}
