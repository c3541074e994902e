// The outputs of Mamba-2's scan from the states before its chunks; the backward pass needs them, too.
#pragma once

#include "ssd/cuda.cuh"

namespace zoo::cuda::ssd {

template <class F>
struct OutputMemory {
  Slabs<F> slabs;
  Decays<F> decays;
  F mixed[kSteps][kPitch];  // [t][j]: C_t . B_j times the decay between them
};

// mixed[t][j], by all threads of the block; the barrier behind it is left to who reads.
template <class T>
__device__ void mix(Accumulator<T> (*mixed)[kPitch], Slabs<Accumulator<T>>& slabs,
                    const Decays<Accumulator<T>>& decays, const Problem<T>& p,
                    const Place<T>& place) {
  using F = Accumulator<T>;
  Tile<F> scores;
  multiply<Along::kSum, Along::kSum>(
      scores, slabs, p.states,
      [&](int64_t n, int m) { return place.c(p, m, n); },
      [&](int64_t n, int m) { return place.b(p, m, n); });
  scores.each([&](F value, int t, int j) { mixed[t][j] = value * decays.between(j, t); });
}

template <class T>
__device__ Accumulator<T> skip_at(const Problem<T>& p, const Place<T>& place, int64_t channel) {
  if (!p.skip || channel >= p.channels) return 0;
  return p.skip[place.head * p.skip_head + channel * p.skip_channel];
}

// kGate: multiplied with silu(z), if there is one.
template <class T, bool kGate>
__global__ void __launch_bounds__(kThreads)
    output_kernel(const Problem<T> p, const Accumulator<T>* states, const Signal<T> out) {
  using F = Accumulator<T>;
  OutputMemory<F>& memory = shared_memory<OutputMemory<F>>();
  const Place<T> place(p);
  memory.decays.fill(p, place);
  mix(memory.mixed, memory.slabs, memory.decays, p, place);
  const int64_t c0 = static_cast<int64_t>(blockIdx.y) * kTile;
  Tile<F> y;
  multiply<Along::kSum, Along::kEdge>(
      y, memory.slabs, p.states,
      [&](int64_t n, int m) { return place.c(p, m, n) * memory.decays.enter[m]; },
      [&](int64_t n, int m) { return state_at(states, p, place, n, c0 + m); });
  multiply<Along::kSum, Along::kEdge>(
      y, memory.slabs, kSteps, [&](int64_t j, int m) { return memory.mixed[m][j]; },
      [&](int64_t j, int m) {
        const int s = static_cast<int>(j);
        return place.x(p, s, c0 + m) * memory.decays.dt[s];
      });
  y.each([&](F value, int t, int column) {
    const int64_t c = c0 + column;
    if (t >= place.count || c >= p.channels) return;
    value += skip_at(p, place, c) * place.x(p, t, c);
    if (kGate && p.z.data) {
      const F z = place.at(p, p.z, place.head, t, c, p.channels);
      value *= z * sigmoid(z);
    }
    out.data[place.batch * out.batch + place.position(p, t) * out.step + place.head * out.head + c] =
        narrow<T>(value);
  });
}

template <class T, bool kGate>
cudaError_t find_outputs(const Problem<T>& p, const Accumulator<T>* states, const Signal<T>& out,
                         void* stream) {
  return launch(output_kernel<T, kGate>, chunk_grid(p, p.channel_tiles), kThreads,
                sizeof(OutputMemory<Accumulator<T>>), stream, p, states, out);
}

}  // namespace zoo::cuda::ssd
