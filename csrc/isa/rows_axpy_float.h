// Weighted sums of f32 and bf16 rows; see rows_axpy.h.
#pragma once

#include "rows_common.h"

namespace {

// Weights from `first` on, of f32 and bf16.
template <Codec C, int T>
inline void add_last(const RowLayout& layout, const Row* rows, int n, int first, const float* const* coefficients,
                     float* const* outputs) {
  for (int i = first; i < layout.d; ++i) {
    for (int r = 0; r < n; ++r) {
      const float w = load_weight<C>(rows[r].codes, i);
      for (int t = 0; t < T; ++t) outputs[t][i] += w * coefficients[t][r];
    }
  }
}

// outputs[t] += sum over r of coefficients[t][r] * rows[r]; f32 and bf16
template <Codec C, int R>
DEJAVU_NOINLINE void axpy_float(const RowLayout& layout, const Row* rows, const Row* next, const float* coefficients,
                                float* output) {
  // Copies, as what lies behind pointers might change with every store.
  const uint8_t *codes[R], *ahead[R];
  F a[R];
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
    codes[r] = rows[r].codes, ahead[r] = next[r].codes, a[r] = Vec::set1(coefficients[r]);
  }
  const int d = layout.d;
  int i = 0;
  for (; i + kFloatUnit <= d; i += kFloatUnit) {
    for (int h = 0; h < kFloatUnit / 2; h += W) {
      float* const at = output + i + h;
      F y[2] = {Vec::load(at), Vec::load(at + 16)};
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        prefetch_unit<C>(ahead[r], i, h);
        F w[2];
        load_unit<C>(codes[r], i, h, w);
        y[0] = Vec::fma(w[0], a[r], y[0]), y[1] = Vec::fma(w[1], a[r], y[1]);
      }
      Vec::store(at, y[0]), Vec::store(at + 16, y[1]);
    }
  }
  for (; i + W <= layout.d; i += W) {
    F y = Vec::load(output + i);
    for (int r = 0; r < R; ++r) y = Vec::fma(load_weights<C>(rows[r].codes, i), a[r], y);
    Vec::store(output + i, y);
  }
  add_last<C, 1>(layout, rows, R, i, &coefficients, &output);
}

// Columns of all rows for several tokens, whose sums stay in registers: two vectors of the unit at i (load_unit), or,
// of what is left, the vector at i.
template <Codec C, int T, int V>
inline void add_columns(const Row* rows, const Row* next, int n, const float (*by)[T], float* const* outputs, int i,
                        int h) {
  F y[T][V];
  DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
    DEJAVU_UNROLL for (int v = 0; v < V; ++v) y[t][v] = Vec::load(outputs[t] + i + h + v * 16);
  }
  for (int r = 0; r < n; ++r) {
    F w[V];
    if constexpr (V == 2) {
      prefetch_unit<C>(next[r].codes, i, h);
      load_unit<C>(rows[r].codes, i, h, w);
    } else {
      w[0] = load_weights<C>(rows[r].codes, i);
    }
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
      const F a = Vec::set1(by[r][t]);
      DEJAVU_UNROLL for (int v = 0; v < V; ++v) y[t][v] = Vec::fma(w[v], a, y[t][v]);
    }
  }
  DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
    DEJAVU_UNROLL for (int v = 0; v < V; ++v) Vec::store(outputs[t] + i + h + v * 16, y[t][v]);
  }
}

// The same as axpy_float for several tokens and all rows of a step; each token gets the same bits.
template <Codec C, int T>
DEJAVU_NOINLINE void axpy_columns(const RowLayout& layout, const Row* rows, const Row* next, int n,
                                  const float* const* coefficients, float* const* outputs) {
  float by[kSumSets * kSumRows][T];
  for (int r = 0; r < n; ++r) {
    for (int t = 0; t < T; ++t) by[r][t] = coefficients[t][r];
  }
  int i = 0;
  for (; i + kFloatUnit <= layout.d; i += kFloatUnit) {
    for (int h = 0; h < kFloatUnit / 2; h += W) add_columns<C, T, 2>(rows, next, n, by, outputs, i, h);
  }
  for (; i + W <= layout.d; i += W) add_columns<C, T, 1>(rows, next, n, by, outputs, i, 0);
  add_last<C, T>(layout, rows, n, i, coefficients, outputs);
}

}  // namespace
