#include "ssd/cuda_output.cuh"

namespace zoo::cuda {
namespace ssd {
namespace {

template <class T>
struct Arguments {
  using F = Accumulator<T>;
  Problem<T> problem;
  Signal<const T> dy;
  Signal<T> dx;
  const F *states, *gradients;  // before and behind the chunks
  F *ddt, *db, *dc;             // [batch, position, head]; [batch, position, head, state]
  F *da, *dskip;                // [batch, chunk, head]; the same, channel: may be absent
};

template <class F>
struct Memory {
  Slabs<F> slabs;
  Decays<F> decays;
  F mixed[kSteps][kPitch];    // [t][j]; later m, which passes from step j to step t
  F dscores[kSteps][kPitch];  // [t][j]
  F direct[kSteps], entering[kSteps], leaving[kSteps], within[kSteps];
  F partial[kThreads / 32];
};

// Sum over the block of one value from each thread; valid in thread 0.
template <class F>
__device__ F block_sum(F value, F* partial) {
  for (int flip = 1; flip < 32; flip *= 2) value += __shfl_xor_sync(kFullWarp, value, flip);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  F sum = 0;
  for (int i = 0; i < kThreads / 32; ++i) sum += partial[i];
  return sum;
}

// Gradients of x and of what is under `direct` and `leaving`, channel tile by channel tile; returns the
// products dt_j x_j . dy_t as [t][j].
template <class T>
__device__ Tile<Accumulator<T>> gradient_of_x(const Arguments<T>& args, const Place<T>& place,
                                              Memory<Accumulator<T>>& memory) {
  using F = Accumulator<T>;
  const Problem<T>& p = args.problem;
  const Decays<F>& d = memory.decays;
  const auto dy = [&](int s, int64_t c) {
    return place.at(p, args.dy, place.head, s, c, p.channels);
  };
  Tile<F> products;
  for (int64_t c0 = 0; c0 < p.channels; c0 += kTile) {
    multiply<Along::kSum, Along::kSum>(
        products, memory.slabs, p.channels - c0 < kTile ? p.channels - c0 : kTile,
        [&](int64_t k, int m) { return dy(m, c0 + k); },
        [&](int64_t k, int m) { return place.x(p, m, c0 + k) * d.dt[m]; });
    Tile<F> v;  // [j][channel]
    multiply<Along::kSum, Along::kEdge>(
        v, memory.slabs, p.states, [&](int64_t n, int m) { return place.b(p, m, n) * d.leave[m]; },
        [&](int64_t n, int m) { return state_at(args.gradients, p, place, n, c0 + m); });
    F sums[kEdge] = {};
    v.each([&](F value, int j, int column) {
      sums[j % kEdge] += value * place.x(p, j, c0 + column) * d.dt[j];
    });
    add_row_sums(memory.leaving, sums);
    multiply<Along::kEdge, Along::kEdge>(
        v, memory.slabs, kSteps, [&](int64_t t, int m) { return memory.mixed[t][m]; },
        [&](int64_t t, int m) { return dy(static_cast<int>(t), c0 + m); });
    for (int i = 0; i < kEdge; ++i) sums[i] = 0;
    v.each([&](F value, int j, int column) {
      const int64_t c = c0 + column;
      sums[j % kEdge] += value * place.x(p, j, c);
      if (j >= place.count || c >= p.channels) return;
      args.dx.data[place.batch * args.dx.batch + place.position(p, j) * args.dx.step +
                   place.head * args.dx.head + c] =
          narrow<T>(d.dt[j] * value + skip_at(p, place, c) * dy(j, c));
    });
    add_row_sums(memory.direct, sums);
    if (args.dskip && static_cast<int>(threadIdx.x) < kTile) {
      const int64_t c = c0 + threadIdx.x;
      F sum = 0;
      for (int s = 0; s < place.count; ++s) sum += dy(s, c) * place.x(p, s, c);
      if (c < p.channels) args.dskip[place.row(p) * p.channels + c] = sum;
    }
  }
  return products;
}

// dB and dC of this head, and what is under `entering`.
template <class T>
__device__ void gradient_of_projections(const Arguments<T>& args, const Place<T>& place,
                                        Memory<Accumulator<T>>& memory) {
  using F = Accumulator<T>;
  const Problem<T>& p = args.problem;
  const Decays<F>& d = memory.decays;
  const auto put = [&](F* to, F value, int s, int64_t n) {
    if (s < place.count && n < p.states)
      to[((place.batch * p.length + place.position(p, s)) * p.heads + place.head) * p.states + n] =
          value;
  };
  for (int64_t n0 = 0; n0 < p.states; n0 += kTile) {
    Tile<F> dc;  // [t][state]
    multiply<Along::kSum, Along::kSum>(
        dc, memory.slabs, p.channels,
        [&](int64_t c, int m) {
          return place.at(p, args.dy, place.head, m, c, p.channels) * d.enter[m];
        },
        [&](int64_t c, int m) { return state_at(args.states, p, place, n0 + m, c); });
    F sums[kEdge] = {};
    dc.each([&](F value, int t, int column) {
      sums[t % kEdge] += value * place.c(p, t, n0 + column);
    });
    add_row_sums(memory.entering, sums);
    multiply<Along::kSum, Along::kEdge>(
        dc, memory.slabs, kSteps, [&](int64_t j, int m) { return memory.dscores[m][j]; },
        [&](int64_t j, int m) { return place.b(p, static_cast<int>(j), n0 + m); });
    dc.each([&](F value, int t, int column) { put(args.dc, value, t, n0 + column); });

    Tile<F> db;  // [j][state]
    multiply<Along::kSum, Along::kSum>(
        db, memory.slabs, p.channels,
        [&](int64_t c, int m) { return place.x(p, m, c) * (d.leave[m] * d.dt[m]); },
        [&](int64_t c, int m) { return state_at(args.gradients, p, place, n0 + m, c); });
    multiply<Along::kEdge, Along::kEdge>(
        db, memory.slabs, kSteps, [&](int64_t t, int m) { return memory.dscores[t][m]; },
        [&](int64_t t, int m) { return place.c(p, static_cast<int>(t), n0 + m); });
    db.each([&](F value, int j, int column) { put(args.db, value, j, n0 + column); });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const Arguments<T> args) {
  using F = Accumulator<T>;
  Memory<F>& memory = shared_memory<Memory<F>>();
  const Problem<T>& p = args.problem;
  const Place<T> place(p);
  const int thread = static_cast<int>(threadIdx.x);
  memory.decays.fill(p, place);
  if (thread < kSteps)
    memory.direct[thread] = memory.entering[thread] = memory.leaving[thread] = 0;
  mix(memory.mixed, memory.slabs, memory.decays, p, place);
  Tile<F> products = gradient_of_x(args, place, memory);
  __syncthreads();
  products.each([&](F value, int t, int j) {
    memory.dscores[t][j] = value * memory.decays.between(j, t);
    memory.mixed[t][j] *= value;
  });
  gradient_of_projections(args, place, memory);
  F through = 0;
  for (int64_t i = thread; i < p.states * p.channels; i += kThreads) {
    const int64_t at = place.row(p) * p.states * p.channels + i;
    through += args.states[at] * args.gradients[at];
  }
  through = block_sum(through, memory.partial) * memory.decays.keep;
  // within[i]: the sum of m over j < i <= t, first along j, then along t
  if (thread < kSteps) {
    F sum = 0;
    for (int j = 0; j < kSteps; ++j) {
      const F value = memory.mixed[thread][j];
      memory.mixed[thread][j] = sum;
      sum += value;
    }
  }
  __syncthreads();
  if (thread < kSteps) {
    F sum = 0;
    for (int t = thread; t < kSteps; ++t) sum += memory.mixed[t][thread];
    memory.within[thread] = sum;
  }
  __syncthreads();
  if (thread != 0) return;
  double into = 0, out_of = through, da = 0;
  for (int s = 0; s < place.count; ++s) into += memory.entering[s];
  for (int s = 0; s < place.count; ++s) {
    const double dl = memory.within[s] + into + out_of;
    da += memory.decays.dt[s] * dl;
    args.ddt[(place.batch * p.length + place.position(p, s)) * p.heads + place.head] =
        static_cast<F>(memory.direct[s] + p.a[place.head] * dl);
    into -= memory.entering[s];
    out_of += memory.leaving[s];
  }
  args.da[place.row(p)] = static_cast<F>(da);
}

// dout -> dy and dz, from the output before the gate. All are [row][channel].
template <class T>
__global__ void gate_kernel(const Problem<T> p, const Signal<const T> dout, const T* y, T* dy,
                            const Signal<T> dz) {
  using F = Accumulator<T>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.batch * p.length * p.heads * p.channels) return;
  const int64_t c = i % p.channels, row = i / p.channels, head = row % p.heads;
  const int64_t at = row / p.heads % p.length, batch = row / p.heads / p.length;
  const auto offset = [&](const auto& s) {
    return batch * s.batch + at * s.step + head * s.head + c;
  };
  const F d = dout.data ? widen(dout.data[offset(dout)]) : F(0), z = widen(p.z.data[offset(p.z)]);
  const F open = sigmoid(z);
  dy[i] = narrow<T>(d * z * open);
  dz.data[offset(dz)] = narrow<T>(d * widen(y[i]) * open * (1 + z * (1 - open)));
}

// Over the heads of each group. A thread has one state of one position.
template <class T>
__global__ void sum_heads_kernel(const Problem<T> p, const Accumulator<T>* in, const Signal<T> out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= p.batch * p.length * p.groups * p.states) return;
  const int64_t n = i % p.states, row = i / p.states, group = row % p.groups;
  const int64_t at = row / p.groups % p.length, batch = row / p.groups / p.length;
  const int64_t each = p.heads / p.groups;
  Accumulator<T> sum = 0;
  for (int64_t h = group * each; h < (group + 1) * each; ++h)
    sum += in[((batch * p.length + at) * p.heads + h) * p.states + n];
  out.data[batch * out.batch + at * out.step + group * out.head + n] = narrow<T>(sum);
}

// Pieces of the scratch memory.
template <class T>
struct BackwardScratch {
  using F = Accumulator<T>;
  F *gradients, *keeps, *db, *dc, *da, *dskip = nullptr;
  T *y = nullptr, *dy = nullptr;  // only where there is a gate
  int64_t bytes;

  BackwardScratch(const Problem<T>& p, void* workspace) {
    Scratch scratch(workspace);
    const int64_t rows = p.batch * p.length * p.heads, chunks = chunks_of_heads(p);
    gradients = scratch.take<F>(states_size(p));
    keeps = scratch.take<F>(chunks);
    db = scratch.take<F>(rows * p.states);
    dc = scratch.take<F>(rows * p.states);
    da = scratch.take<F>(chunks);
    if (p.skip) dskip = scratch.take<F>(chunks * p.channels);
    if (p.z.data) y = scratch.take<T>(rows * p.channels);
    if (p.z.data) dy = scratch.take<T>(rows * p.channels);
    bytes = scratch.size();
  }
};

template <class T>
cudaError_t gate(const Arguments<T>& args, const SsdBackward& call,
                 const BackwardScratch<T>& scratch, Signal<const T>& dy, void* stream) {
  const Problem<T>& p = args.problem;
  const int64_t row = p.channels, step = p.heads * row, batch = p.length * step;
  const Signal<T> y{scratch.y, batch, step, row};
  const cudaError_t error = find_outputs<T, false>(p, args.states, y, stream);
  if (error != cudaSuccess) return error;
  constexpr int kGateThreads = 256;
  const Signal<const T> dout = dy;
  dy = {scratch.dy, batch, step, row};
  return launch(gate_kernel<T>, blocks_for(p.batch * batch, kGateThreads), kGateThreads, 0, stream, p,
                dout, static_cast<const T*>(scratch.y), scratch.dy, signal<T>(call.dz));
}

template <class T>
cudaError_t backward(const SsdBackward& call, void* workspace, void* stream) {
  using F = Accumulator<T>;
  Arguments<T> args{};
  args.problem = describe<T>(call.problem);
  const Problem<T>& p = args.problem;
  const BackwardScratch<T> scratch(p, workspace);
  args.dy = signal<const T>(call.dout);
  args.dx = signal<T>(call.dx);
  args.states = static_cast<const F*>(call.borders.data);
  args.gradients = scratch.gradients;
  args.ddt = static_cast<F*>(call.ddt);
  args.db = scratch.db;
  args.dc = scratch.dc;
  args.da = scratch.da;
  args.dskip = scratch.dskip;

  FirstError run;
  if (p.z.data) run(gate(args, call, scratch, args.dy, stream));
  run(find_states<T, true>(p, args.dy, scratch.gradients, scratch.keeps,
                           static_cast<const F*>(call.dlast_state),
                           static_cast<F*>(call.dinitial_state), stream));
  run(launch(gradient_kernel<T>, chunk_grid(p, 1), kThreads, sizeof(Memory<F>), stream, args));
  const int64_t projections = p.batch * p.length * p.groups * p.states;
  const auto sum_heads = [&](const F* in, const SsdSignal& out) {
    run(launch(sum_heads_kernel<T>, blocks_for(projections, kSumThreads), kSumThreads, 0, stream, p,
               in, signal<T>(out)));
  };
  sum_heads(scratch.db, call.dB);
  sum_heads(scratch.dc, call.dC);
  const int64_t rows = p.batch * p.chunks;
  run(sum_rows(scratch.da, static_cast<F*>(call.dA), rows, p.heads, stream));
  if (call.dD)
    run(sum_rows(scratch.dskip, static_cast<F*>(call.dD), rows, p.heads * p.channels, stream));
  return run.first();
}

}  // namespace
}  // namespace ssd

int64_t ssd_workspace(const SsdBackward& call) {
  return with_type(call.problem.dtype, [&](auto t) {
    using T = decltype(t);
    return ssd::BackwardScratch<T>(ssd::describe<T>(call.problem), nullptr).bytes;
  });
}

const char* ssd_backward(const SsdBackward& call, void* workspace, void* stream) {
  return message(with_type(call.problem.dtype, [&](auto t) {
    return ssd::backward<decltype(t)>(call, workspace, stream);
  }));
}

}  // namespace zoo::cuda
