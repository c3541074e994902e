// One block of states there and back over one chunk: the loops inside the backward pass, whose formulas
// stand in cpu_backward.h.
#pragma once

#include "selective_scan/cpu_links.h"

namespace zoo::ZOO_CPU::scan {

// NB states of one block, over one chunk. B, C as in the forward pass.
template <class V>
struct Span {
  using S = typename V::Scalar;

  const S *A, *B, *C;
  int64_t pitch;
  const S *delta, *du, *dy;  // [step][lane]
  S *h, *a;                  // [step][state][lane]; h begins with the state before the first step
  S* slope;                  // as a: its derivative to delta A, where that is not a itself
  S* y;                      // += C h, if wanted
  S *g, *dA;                 // [state][lane]; of the chunks behind, updated
  S *gB, *gA;                // [step][lane] += sum over the states of B g, of A a h g
  S *dB, *dC;                // += [state][lane] if constant, else [step][lane], as `collect` has it
};

// The states and their decays after each of the steps first ... first+count.
template <class V, int NB, bool kConstantB, bool kConstantC, bool kOutput, bool kNegative>
void replay(const Span<V>& x, int first, int count, bool reset) {
  constexpr int W = V::kSize;
  V state[NB], decay[NB];
  for (int j = 0; j < NB; j++) {
    state[j] = reset ? V::set(0) : load(x.h + (first * NB + j) * W);
    decay[j] = load(x.A + j * W);
  }
  for (int s = first; s < first + count; s++) {
    const V d = load(x.delta + s * W), du = load(x.du + s * W);
    V sum = kOutput ? load(x.y + s * W) : V::set(0);
    for (int j = 0; j < NB; j++) {
      const V b = kConstantB ? load(x.B + j * W) : V::set(x.B[j * x.pitch + s]);
      const V e = exp2(d * decay[j]), a = factor<kNegative>(e);
      state[j] = fma(a, state[j], b * du);
      store(x.a + (s * NB + j) * W, a);
      if (kNegative) store(x.slope + (s * NB + j) * W, e + e);
      store(x.h + ((s + 1) * NB + j) * W, state[j]);
      if (kOutput) {
        const V c = kConstantC ? load(x.C + j * W) : V::set(x.C[j * x.pitch + s]);
        sum = fma(c, state[j], sum);
      }
    }
    if (kOutput) store(x.y + s * W, sum);
  }
  if (reset) {
    for (int j = 0; j < NB; j++) {
      store(x.a + (first * NB + j) * W, V::set(0));
      if (kNegative) store(x.slope + (first * NB + j) * W, V::set(0));
    }
  }
}

// Adds one step's contributions to dB or dC; they are completed by `complete`.
template <class V, int NB>
ZOO_INLINE void collect(typename V::Scalar* to, const V (&x)[NB]) {
  if constexpr (NB == 4) {
    store(to, load(to) + reduce4(x[0], x[1], x[2], x[3]));
  } else {
    static_assert(NB == 1);
    store(to, load(to) + x[0]);
  }
}

template <class V, int NB>
ZOO_INLINE void complete(typename V::Scalar* to, const typename V::Scalar* collected) {
  if constexpr (NB == 4) {
    add_fold4(to, load(collected));
  } else {
    *to += sum(load(collected));
  }
}

template <class V, int NB, bool kConstantB, bool kConstantC, bool kNegative>
void retrace(const Span<V>& x, int steps) {
  constexpr int W = V::kSize;
  // Sums of their own for each chunk: a single one over a long sequence would lose digits.
  V g[NB], dA[NB], after[NB], decay[NB], dB[NB], dC[NB];
  for (int j = 0; j < NB; j++) {
    g[j] = load(x.g + j * W);
    after[j] = load(x.h + (steps * NB + j) * W);
    decay[j] = load(x.A + j * W);
    dA[j] = dB[j] = dC[j] = V::set(0);
  }
  for (int s = steps - 1; s >= 0; s--) {
    const V d = load(x.delta + s * W), du = load(x.du + s * W), dy = load(x.dy + s * W);
    V gB = load(x.gB + s * W), gA = load(x.gA + s * W);
    V dB_s[NB], dC_s[NB];
    for (int j = 0; j < NB; j++) {
      const V b = kConstantB ? load(x.B + j * W) : V::set(x.B[j * x.pitch + s]);
      const V c = kConstantC ? load(x.C + j * W) : V::set(x.C[j * x.pitch + s]);
      g[j] = fma(c, dy, g[j]);
      if (kConstantB) {
        dB[j] = fma(g[j], du, dB[j]);
      } else {
        dB_s[j] = g[j] * du;
      }
      if (kConstantC) {
        dC[j] = fma(after[j], dy, dC[j]);
      } else {
        dC_s[j] = after[j] * dy;
      }
      gB = fma(g[j], b, gB);
      const V before = load(x.h + (s * NB + j) * W), a = load(x.a + (s * NB + j) * W);
      const V slope = kNegative ? load(x.slope + (s * NB + j) * W) : a, gah = g[j] * slope * before;
      g[j] = g[j] * a;
      gA = fma(gah, decay[j], gA);
      dA[j] = fma(gah, d, dA[j]);
      after[j] = before;
    }
    if constexpr (!kConstantB) collect<V, NB>(x.dB + s * W, dB_s);
    if constexpr (!kConstantC) collect<V, NB>(x.dC + s * W, dC_s);
    store(x.gB + s * W, gB);
    store(x.gA + s * W, gA);
  }
  for (int j = 0; j < NB; j++) {
    store(x.g + j * W, g[j]);
    store(x.dA + j * W, load(x.dA + j * W) + dA[j]);
    if (kConstantB) store(x.dB + j * W, load(x.dB + j * W) + dB[j]);
    if (kConstantC) store(x.dC + j * W, load(x.dC + j * W) + dC[j]);
  }
}

}  // namespace zoo::ZOO_CPU::scan
