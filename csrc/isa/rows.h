// The row kernels of one codec, over ranges of rows and over lists of bundles.
#pragma once

#include "rows_decode.h"
#include "rows_half.h"
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
void axpy_list(const Bundles& bundles, int row, const int32_t* list, int n, const float* coefficients, float* output) {
  axpy_list_many<C>(bundles, row, list, n, &coefficients, 1, &output);
}

template <Codec C>
constexpr int kRowsAhead = is_half(C) ? 4 * kHalfRows : kDotRows;

template <Codec C, typename At, typename Ahead>
void one_token(const RowLayout& layout, At at, Ahead ahead, int n, const void* input, float* out) {
  if constexpr (is_half(C)) {
    half_rows<C>(layout, at, ahead, n, input, out);
  } else {
    dot_rows<C, 1>(layout, at, ahead, n, &input, 1, &out);
  }
}

template <Codec C>
void dot_all(const Bundles& bundles, int begin, int end, const void* input, float* out) {
  const int rows = bundles.rows, n = (end - begin) * rows;
  const uint8_t *codes = bundles.row(begin, 0).codes, *scales = bundles.row(begin, 0).scales;
  const size_t code_bytes = bundles.layout.code_bytes, scale_bytes = bundles.layout.scale_bytes;
  // Row by row without a division: at(i) is asked for ascending i.
  struct Cursor {
    const uint8_t *codes, *scales;
    int r;
  };
  Cursor here = {codes, scales, 0}, there = here;
  const auto take = [&](Cursor& c) {
    const Row row = {c.codes + size_t(c.r) * code_bytes, c.scales + size_t(c.r) * scale_bytes};
    if (++c.r == rows) c.r = 0, c.codes += bundles.stride, c.scales += bundles.stride;
    return row;
  };
  for (int i = 0; i < kRowsAhead<C>; ++i) take(there);  // beyond the last row: a harmless prefetch
  one_token<C>(bundles.layout, [&](int) { return take(here); }, [&](int) { return take(there); }, n, input, out);
}

template <Codec C>
void dot_list(const Bundles& bundles, int row, const int32_t* list, int n, const void* input, float* out) {
  auto at = [&](int i) { return bundles.row(list[i < n ? i : n - 1], row); };
  auto ahead = [&](int i) { return at(i + kRowsAhead<C>); };
  one_token<C>(bundles.layout, at, ahead, n, input, out);
}

// Halves of int8 rows have dots alone, with one token.
template <Codec C>
constexpr dejavu::RowKernels half_kernels() {
  dejavu::RowKernels kernels{};
  kernels.prepare = prepare_grouped;
  kernels.dot_all = dot_all<C>;
  kernels.dot_list = dot_list<C>;
  return kernels;
}

template <Codec C>
constexpr dejavu::RowKernels row_kernels() {
  return {is_grouped(C) ? prepare_grouped : prepare_f32,
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
          dot_all<C>,
          decode<C>};
}

}  // namespace
