// The row kernels of one codec, over ranges of rows and over lists of bundles.
#pragma once

#include "rows_decode.h"
#include "rows_mlp.h"
#include "rows_prepare.h"

namespace {

template <Codec C>
void dot_many(const Bundles& bundles, int bundle, int first, int n, const void* const* inputs, int tokens,
              float* const* outs) {
  auto at = [&](int i) { return bundles.row(bundle, first + i); };
  auto ahead = [&](int i) { return at(i + kDotRows); };  // beyond the last row: a harmless prefetch
  dot_rows<C>(bundles.layout, at, ahead, n, inputs, tokens, outs);
}

template <Codec C>
void axpy_many(const Bundles& bundles, int bundle, int first, int n, const float* const* coefficients, int tokens,
               float* const* outputs) {
  auto at = [&](int i) { return bundles.row(bundle, first + i); };
  auto ahead = [&](int i) { return at(i + kSumRows); };
  axpy_rows<C>(bundles.layout, at, ahead, n, coefficients, tokens, outputs);
}

template <Codec C>
void dot_list_many(const Bundles& bundles, int row, const int32_t* list, int n, const void* const* inputs, int tokens,
                   float* const* outs) {
  auto at = [&](int i) { return bundles.row(list[i < n ? i : n - 1], row); };
  auto ahead = [&](int i) { return at(i + kDotRows); };
  dot_rows<C>(bundles.layout, at, ahead, n, inputs, tokens, outs);
}

template <Codec C>
void axpy_list_many(const Bundles& bundles, int row, const int32_t* list, int n, const float* const* coefficients,
                    int tokens, float* const* outputs) {
  auto at = [&](int i) { return bundles.row(list[i < n ? i : n - 1], row); };
  auto ahead = [&](int i) { return at(i + kSumRows); };
  axpy_rows<C>(bundles.layout, at, ahead, n, coefficients, tokens, outputs);
}

template <Codec C>
void dot(const Bundles& bundles, int bundle, int first, int n, const void* input, float* out) {
  dot_many<C>(bundles, bundle, first, n, &input, 1, &out);
}

template <Codec C>
void axpy(const Bundles& bundles, int bundle, int first, int n, const float* coefficients, float* output) {
  axpy_many<C>(bundles, bundle, first, n, &coefficients, 1, &output);
}

template <Codec C>
void dot_list(const Bundles& bundles, int row, const int32_t* list, int n, const void* input, float* out) {
  dot_list_many<C>(bundles, row, list, n, &input, 1, &out);
}

template <Codec C>
void axpy_list(const Bundles& bundles, int row, const int32_t* list, int n, const float* coefficients, float* output) {
  axpy_list_many<C>(bundles, row, list, n, &coefficients, 1, &output);
}

template <Codec C>
constexpr dejavu::RowKernels row_kernels() {
  return {is_grouped<C>() ? prepare_grouped : prepare_f32,
          dot<C>,
          axpy<C>,
          mlp<C>,
          dot_many<C>,
          axpy_many<C>,
          mlp_many<C>,
          dot_list<C>,
          axpy_list<C>,
          dot_list_many<C>,
          axpy_list_many<C>,
          decode<C>};
}

}  // namespace
