// A whole MLP over a list of neurons, for one or several tokens.
#pragma once

#include "rows_axpy.h"
#include "rows_dot.h"

namespace {

using dejavu::kMaxTokens;
using dejavu::MlpManyArgs;

// Whether neurons are read where they lie, whole and one after the other.
template <Codec C>
inline bool in_place(const MlpManyArgs& a) {
  return !is_grouped(C) && !a.selected && a.tokens == 1;
}

// The neurons that come i-th and after in `order`, n <= rows_together: gate and up dots, activation, down axpys.
template <Codec C>
inline void mlp_step(const MlpManyArgs& a, const Streams& order, int i, int n) {
  const Bundles& bundles = *a.bundles;
  const int dots = a.gated ? 2 : 1;
  int places[kSumSets * kSumRows], ids[kSumSets * kSumRows], following[kSumSets * kSumRows];
  for (int r = 0; r < n; ++r) {
    places[r] = a.begin + order(i + r);
    const int next = i + n + r < a.end - a.begin ? a.begin + order(i + n + r) : places[r];
    ids[r] = a.selected ? a.selected[places[r]] : places[r];
    following[r] = a.selected ? a.selected[next] : next;
  }
  float h[2][kMaxTokens][kSumSets * kSumRows];  // gate (or fc1), up
  const auto ahead = [&](int r, int part) {
    return in_place<C>(a) ? prefetch_place(bundles.row(ids[r], part)) : bundles.row(following[r], part);
  };
  // The two rows of a neuron are neighbours: both are read before the next four neurons.
  for (int r0 = 0; r0 < n; r0 += 4) {
    for (int part = 0; part < dots; ++part) {
      float* outs[kMaxTokens];
      for (int t = 0; t < a.tokens; ++t) outs[t] = h[part][t] + r0;
      const int count = n - r0 < 4 ? n - r0 : 4;
      const auto row = [&](int r) { return bundles.row(ids[r0 + r], part); };
      const auto next = [&](int r) { return ahead(r0 + r, part); };
      if (is_planes(C) && a.tokens == 1) {
        plane_rows<C>(bundles.layout, row, next, InOrder(), count, a.inputs[0], outs[0]);
      } else {
        dot_rows<C>(bundles.layout, row, next, InOrder(), count, a.inputs, a.tokens, outs);
      }
    }
  }
  const float* hidden[kMaxTokens];
  for (int t = 0; t < a.tokens; ++t) {
    for (int part = 0; part < dots; ++part) {
      const float* bias = part == dots - 1 ? a.up_bias : a.gate_bias;
      for (int r = 0; bias && r < n; ++r) h[part][t][r] += bias[ids[r]];
    }
    activate(a.activation, h[0][t], a.gated ? h[1][t] : nullptr, n, h[0][t]);
    for (int r = 0; a.masks && r < n; ++r) {
      if (!(a.masks[places[r]] >> t & 1)) h[0][t][r] = 0.0f;
    }
    hidden[t] = h[0][t];
  }
  axpy_rows<C>(
      bundles.layout, [&](int r) { return bundles.row(ids[r], dots); }, [&](int r) { return ahead(r, dots); },
      InOrder(), n, hidden, a.tokens, a.outputs);
}

// Float rows of one token are added as soon as their coefficients are known, so that each sequence of neurons is read
// as it lies in memory; groups need as many rows as share a rounding step.
template <Codec C>
void mlp_many(const MlpManyArgs& a) {
  const int n = a.end - a.begin, most = in_place<C>(a) ? kDotRows : rows_together(a.tokens);
  const Streams order(n);
  for (int i = 0; i < n; i += most) mlp_step<C>(a, order, i, n - i < most ? n - i : most);
}

template <Codec C>
void mlp(const dejavu::MlpArgs& a) {
  mlp_many<C>({a.bundles, a.selected, nullptr, a.begin, a.end, a.gated, a.activation, a.gate_bias, a.up_bias, 1,
               &a.input, &a.output});
}

}  // namespace
