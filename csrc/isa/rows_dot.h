// Dot products of rows with the inputs of one or several tokens. Every (row, token) pair is summed in the same order,
// however many rows and tokens are worked on together.
#pragma once

#include "rows_planes.h"

namespace {

// Rows that are worked on together: their chains of additions hide each other's latency and share loads of x. The
// addresses of eight, and of the eight that are fetched, would not fit the registers.
constexpr int kDotRows = 4;
// Tokens at once: four rows by four tokens load half as often as two by eight, and four inputs stay in the cache.
constexpr int kDotTokens = 4;
constexpr int rows_at_once(int tokens) {
  int rows = kDotRows;
  while (rows * tokens > kAccumulators) rows /= 2;
  return rows;
}

template <Codec C, int R, int T>
DEJAVU_NOINLINE void dot_float(const RowLayout& layout, const Row* rows, const Row* next, const void* const* inputs,
                               float (*out)[R]) {
  F total[R][T];
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) { DEJAVU_UNROLL for (int t = 0; t < T; ++t) total[r][t] = Vec::zero(); }
  int i = 0;
  for (; i + kFloatUnit <= layout.d; i += kFloatUnit) {
    for (int h = 0; h < kFloatUnit / 2; h += W) {
      F x[T][2];
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        x[t][0] = Vec::load((const float*)inputs[t] + i + h), x[t][1] = Vec::load((const float*)inputs[t] + i + 16 + h);
      }
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        prefetch_unit<C>(next[r].codes, i, h);
        F w[2];
        load_unit<C>(rows[r].codes, i, h, w);
        DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
          total[r][t] = Vec::fma(w[1], x[t][1], Vec::fma(w[0], x[t][0], total[r][t]));
        }
      }
    }
  }
  for (; i + W <= layout.d; i += W) {
    for (int r = 0; r < R; ++r) {
      const F w = load_weights<C>(rows[r].codes, i);
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        total[r][t] = Vec::fma(w, Vec::load((const float*)inputs[t] + i), total[r][t]);
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    sum_rows<R, T>(total, t, out[t]);
    for (int r = 0; r < R; ++r) {
      for (int j = i; j < layout.d; ++j) out[t][r] += load_weight<C>(rows[r].codes, j) * ((const float*)inputs[t])[j];
    }
  }
}

// acc[r][t] += the products of the units from u on that share bytes (int4: four of 32 elements; int8: one), lanes
// [h W, h W + W), `at` codes into the rows.
template <Codec C, int R, int T>
inline void dot_units(const Row* rows, const int16_t* const* x, size_t at, int u, int h, I (*acc)[T]) {
  constexpr bool nibbles = C == Codec::int4;
  const size_t byte = nibbles ? (at + size_t(u * 32)) / 2 + size_t(h * 4 * W) : at + size_t(u * 32 + h * 2 * W);
  H packed[R];
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
    packed[r] = nibbles ? Vec::load_h((const int16_t*)(rows[r].codes + byte)) : Vec::load_i8_h(rows[r].codes + byte);
  }
  DEJAVU_UNROLL for (int v = 0; v < (nibbles ? 4 : 1); ++v) {
    H xv[T];
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) xv[t] = Vec::load_h(x[t] + at + size_t((u + v) * 32 + h * 2 * W));
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
      const H w = !nibbles ? packed[r]
                  : v == 0 ? Vec::nibble_h<0>(packed[r])
                  : v == 1 ? Vec::nibble_h<8>(packed[r])
                  : v == 2 ? Vec::nibble_h<4>(packed[r])
                           : Vec::nibble_h<12>(packed[r]);
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[r][t] = Vec::dot_h(acc[r][t], w, xv[t]);
    }
  }
}

// The products of half a block: lanes [h W, h W + W) of its 16 groups.
template <Codec C, int R, int T>
inline void dot_block(const Row* rows, const Row* next, const int16_t* const* x, size_t at, int h, I (*acc)[T]) {
  constexpr int units = C == Codec::int4 ? 4 : 1, line = C == Codec::int4 ? 4 : 2;  // that share bytes; a cache line
  for (int u0 = 0; u0 < 16; u0 += line) {
    if (h == 0) {
      const size_t byte = (at + size_t(u0 * 32)) / (C == Codec::int4 ? 2 : 1);
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) Vec::prefetch(next[r].codes + byte);
    }
    DEJAVU_UNROLL for (int u = u0; u < u0 + line; u += units) dot_units<C, R, T>(rows, x, at, u, h, acc);
  }
}

// total[r][t] += the tail of int8 rows: groups in natural order, W at a time share a vector of scales.
template <int R, int T>
inline void dot_tail(const RowLayout& layout, const Row* rows, const Row* next, const GroupedInput* x, F (*total)[T]) {
  for (int g0 = layout.blocks * kBlockGroups; g0 < layout.groups; g0 += W) {
    const int n = layout.groups - g0 < W ? layout.groups - g0 : W;
    for (int r = 0; r < R; ++r) {
      Vec::prefetch(next[r].codes + size_t(g0) * kGroup);
      const F s = Vec::load_f16_n(rows[r].scales + g0 * 2, n);
      F step[T];
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) step[t] = Vec::mul(s, Vec::load_n(x[t].scales + g0, n));
      for (int g = g0; g < g0 + n; ++g) {
        H w[kHalves];
        for (int h = 0; h < kHalves; ++h) w[h] = Vec::load_i8_h(rows[r].codes + g * kGroup + h * 2 * W);
        DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
          I acc = Vec::zero_i();
          for (int h = 0; h < kHalves; ++h) {
            acc = Vec::dot_h(acc, w[h], Vec::load_h(x[t].codes + g * kGroup + h * 2 * W));
          }
          total[r][t] = Vec::fma(Vec::to_float(acc), Vec::broadcast(step[t], g - g0), total[r][t]);
        }
      }
    }
  }
}

template <Codec C, int R, int T>
DEJAVU_NOINLINE void dot_grouped(const RowLayout& layout, const Row* rows, const Row* next, const void* const* inputs,
                                 float (*out)[R]) {
  GroupedInput x[T];
  const int16_t* codes[T];
  for (int t = 0; t < T; ++t) {
    x[t] = GroupedInput(layout, inputs[t]);
    codes[t] = x[t].codes;
  }
  F total[R][T];
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) { DEJAVU_UNROLL for (int t = 0; t < T; ++t) total[r][t] = Vec::zero(); }
  for (int b = 0; b < layout.blocks; ++b) {
    for (int h = 0; h < kHalves; ++h) {
      I acc[R][T];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) { DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[r][t] = Vec::zero_i(); }
      dot_block<C, R, T>(rows, next, codes, size_t(b) * kBlock, h, acc);
      const int g = b * kBlockGroups + h * W;
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        if (h == 0) prefetch_scales<C>(layout, next[r], g);
        const F s = Vec::load_f16(rows[r].scales + g * 2);
        DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
          total[r][t] = Vec::fma(Vec::to_float(acc[r][t]), Vec::mul(s, Vec::load(x[t].scales + g)), total[r][t]);
        }
        if constexpr (C == Codec::int4) {
          const F m = Vec::load_f16(rows[r].scales + (layout.groups + g) * 2);
          DEJAVU_UNROLL for (int t = 0; t < T; ++t) total[r][t] = Vec::fma(m, Vec::load(x[t].sums + g), total[r][t]);
        }
      }
    }
  }
  if constexpr (C == Codec::int4) {
    add_tail<C, R, T>(layout, rows, next, x, total);
  } else {
    dot_tail<R, T>(layout, rows, next, x, total);
  }
  for (int t = 0; t < T; ++t) sum_rows<R, T>(total, t, out[t]);
}

// outs[t][place(at + r)] = rows[r] . inputs[t] for r < n, R rows at a time, then fewer
template <Codec C, int R, int T, typename Place>
inline void dot_steps(const RowLayout& layout, const Row* rows, const Row* next, int n, const void* const* inputs,
                      float* const* outs, Place place, int at) {
  for (; n >= R; n -= R, rows += R, next += R, at += R) {
    float out[T][R];
    if constexpr (is_grouped(C)) {
      dot_grouped<C, R, T>(layout, rows, next, inputs, out);
    } else {
      dot_float<C, R, T>(layout, rows, next, inputs, out);
    }
    if constexpr (std::is_same_v<Place, InOrder>) {  // whole, as it will be loaded
      for (int t = 0; t < T; ++t) memcpy(outs[t] + at, out[t], sizeof out[t]);
    } else {
      for (int r = 0; r < R; ++r) {
        const int to = place(at + r);
        for (int t = 0; t < T; ++t) outs[t][to] = out[t][r];
      }
    }
  }
  if constexpr (R > 1) dot_steps<C, R / 2, T>(layout, rows, next, n, inputs, outs, place, at);
}

// outs[t][place(i)] = at(i) . inputs[t] for i < n; meanwhile the rows ahead(i) are fetched.
template <Codec C, int Most = kTokens, typename At, typename Ahead, typename Place>
inline void dot_rows(const RowLayout& layout, At at, Ahead ahead, Place place, int n, const void* const* inputs,
                     int tokens, float* const* outs) {
  constexpr int most = Most < kDotTokens ? Most : kDotTokens;
  const int passes = (tokens + most - 1) / most;
  Row rows[kDotRows], next[kDotRows], fetched[kDotRows];
  for (int i = 0; i < n; i += kDotRows) {
    const int count = n - i < kDotRows ? n - i : kDotRows;
    for (int r = 0; r < count; ++r) rows[r] = at(i + r), next[r] = ahead(i + r);
    each_tokens<most>(tokens, [&](auto together, int t) {
      constexpr int T = decltype(together)::value;
      const Row* ahead_of = next;
      if (passes > 1) {  // each pass fetches some of the rows: all of them in the first would come too fast
        for (int r = 0; r < count; ++r) fetched[r] = r % passes == t / most ? next[r] : rows[r];
        ahead_of = fetched;
      }
      dot_steps<C, rows_at_once(T), T>(layout, rows, ahead_of, count, inputs + t, outs + t, place, i);
    });
  }
}

}  // namespace
