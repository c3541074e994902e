// Checks the tensors of the recurrent cells and hands them to the kernels. The messages for users come from
// zoo/ops/recurrent_cell.py.
#include "common/checks.h"
#include "recurrent_cell/recurrent_cell.h"

namespace zoo {
namespace {

// Tensors here have up to five dimensions, which Sizes does not hold.
const void* five(const char* op, const Tensor& t, const char* name, const Tensor& main,
                 const std::vector<int64_t>& shape) {
  bool fits = t.dim() == 5 && t.scalar_type() == main.scalar_type() &&
              device_type(t) == device_type(main) && t.get_device() == main.get_device();
  for (int64_t dim = 0; fits && dim < 5; dim++) fits = t.size(dim) == shape[dim];
  ZOO_CHECK(fits, op, ": ", name, " is ", text_of(t), ", expected ", text_of(main.scalar_type()), " ",
            text_of_sizes(shape), " on ", text_of_device(main));
  ZOO_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
  ZOO_CHECK(has_memory(t), op, ": ", name, " has no memory behind it");
  return t.data_ptr();
}

// `main` is [., ., ., heads, channels]; what is left to find out are batch and length.
CellProblem problem(const char* op, const char* name, const Checks& checks, const Tensor& main,
                    const Tensor& R, const Tensor& initial_states, int64_t cell, int batch_at) {
  const ScalarType dtype = main.scalar_type();
  ZOO_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, op, ": ", name, " is ",
            text_of(main), ", expected float32 or float64");
  ZOO_CHECK(main.dim() == 5, op, ": ", name, " is ", text_of(main), ", expected 5 dimensions");
  ZOO_CHECK(cell >= 0 && cell < kCells, op, ": cell is ", cell, ", expected 0 to ", kCells - 1);
  checks.not_empty(main, name, {batch_at + 1, 3, 4});
  CellProblem p{};
  p.dtype = dtype_of(op, name, main);
  p.cell = static_cast<Cell>(cell);
  p.batch = main.size(batch_at);
  p.length = main.size(batch_at + 1);
  p.heads = main.size(3);
  p.channels = main.size(4);
  checks.counts("a batch", p.batch);
  checks.counts("a length", p.length);
  checks.counts("a number of channels", p.channels);
  const CellSizes& sizes = p.sizes();
  p.R = checks.plain(R, "R", {sizes.recurrent, p.heads, p.channels, p.channels}, dtype);
  p.initial_states = checks.plain(initial_states, "initial_states",
                                  {sizes.states, p.batch, p.heads, p.channels}, dtype);
  return p;
}

std::vector<int64_t> gates_of(const CellProblem& p, int gates) {
  return {p.batch, p.length, gates, p.heads, p.channels};
}

std::vector<int64_t> states_of(const CellProblem& p) {
  return {p.sizes().states, p.batch, p.length, p.heads, p.channels};
}

#ifdef ZOO_CUDA

void run(const CellForward& call, const Tensor& main) {
  const OnDevice device(main);
  check_cuda("recurrent_cell", cuda::cell_forward(call, device.stream));
}

void run(const CellBackward& call, const Tensor& main) {
  const OnDevice device(main);
  check_cuda("recurrent_cell_backward", cuda::cell_backward(call, device.stream));
}

#else

void run(const CellForward& call, const Tensor&) {
  ZOO_CHECK(ZOO_CPU_SELECT(cell_forward)(call, threads()), "recurrent_cell: not enough memory");
}

void run(const CellBackward& call, const Tensor&) {
  ZOO_CHECK(ZOO_CPU_SELECT(cell_backward)(call, threads()),
            "recurrent_cell_backward: not enough memory");
}

#endif

std::tuple<Tensor, Tensor> recurrent_cell(const Tensor& Wx, const Tensor& R, const Tensor& b,
                                          const Tensor& initial_states, int64_t cell,
                                          bool keep_gates) {
  const char* const op = "recurrent_cell";
  const Checks checks(op, "Wx", Wx);
  CellForward call{};
  call.problem = problem(op, "Wx", checks, Wx, R, initial_states, cell, 0);
  const CellProblem& p = call.problem;
  const CellSizes& sizes = p.sizes();
  call.Wx = five(op, Wx, "Wx", Wx, gates_of(p, sizes.inputs));
  call.b = checks.plain(b, "b", {sizes.biases, p.heads, p.channels}, Wx.scalar_type());
  Tensor states = new_empty(Wx, states_of(p), Wx.scalar_type());
  Tensor gates = new_empty(Wx, keep_gates ? gates_of(p, sizes.kept) : std::vector<int64_t>{0},
                           Wx.scalar_type());
  call.states = states.mutable_data_ptr();
  if (keep_gates) call.gates = gates.mutable_data_ptr();
  if (p.batch > 0) run(call, Wx);
  return {states, gates};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_cell_backward(
    const Tensor& dstates, const Tensor& states, const Tensor& gates, const Tensor& R,
    const Tensor& initial_states, int64_t cell) {
  const char* const op = "recurrent_cell_backward";
  const Checks checks(op, "states", states);
  CellBackward call{};
  call.problem = problem(op, "states", checks, states, R, initial_states, cell, 1);
  const CellProblem& p = call.problem;
  const CellSizes& sizes = p.sizes();
  call.states = five(op, states, "states", states, states_of(p));
  call.dstates = five(op, dstates, "dstates", states, states_of(p));
  call.gates = five(op, gates, "gates", states, gates_of(p, sizes.kept));
  const ScalarType dtype = states.scalar_type();
  Tensor dgates = new_empty(states, gates_of(p, sizes.kept), dtype);
  Tensor dR = new_zeros(states, {sizes.recurrent, p.heads, p.channels, p.channels}, dtype);
  Tensor db = new_zeros(states, {sizes.kept, p.heads, p.channels}, dtype);
  Tensor dinitial = new_empty(states, {sizes.states, p.batch, p.heads, p.channels}, dtype);
  call.dgates = dgates.mutable_data_ptr();
  call.dR = dR.mutable_data_ptr();
  call.db = db.mutable_data_ptr();
  call.dinitial_states = dinitial.mutable_data_ptr();
  if (p.batch > 0) run(call, states);
  return {dgates, dR, db, dinitial};
}

}  // namespace
}  // namespace zoo

ZOO_KERNELS(m) {
  m.impl("recurrent_cell", ZOO_BOX(zoo::recurrent_cell));
  m.impl("recurrent_cell_backward", ZOO_BOX(zoo::recurrent_cell_backward));
}
