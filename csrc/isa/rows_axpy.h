// Weighted sums of rows, added to the outputs of one or several tokens. Every token's sum is rounded in the same way,
// however many tokens share the rows.
#pragma once

#include "rows_axpy_float.h"

namespace {

// The coefficients of 2 P rows times the scales of the groups of one block (or of a vector of tail groups), as int16
// with a common step: one lane per group, those of two rows in it.
template <int P>
struct Scaled {
  alignas(64) int32_t pairs[P][kBlockGroups];
  F step;
  H coefficients(int p, int half) const { return Vec::load_h((const int16_t*)(pairs[p] + half * W)); }
};

// Scales (int4: and minima) of 2 P rows, for a block or for `lanes` groups of the tail.
template <Codec C, int P, bool Block>
struct GroupScales {
  static constexpr int vectors = Block ? kHalves : 1;
  F scales[vectors][2 * P], minima[C == Codec::int4 ? vectors : 1][2 * P];
  float largest[2 * P];  // scale of each row, if it was asked for

  GroupScales(const RowLayout& layout, const Row* rows, int g, int lanes, bool rank) {
    const auto load = [&](const uint8_t* from) { return Block ? Vec::load_f16(from) : Vec::load_f16_n(from, lanes); };
    DEJAVU_UNROLL for (int r = 0; r < 2 * P; ++r) {
      F most = Vec::zero();
      DEJAVU_UNROLL for (int v = 0; v < vectors; ++v) {
        scales[v][r] = load(rows[r].scales + (g + v * W) * 2);
        if constexpr (C == Codec::int4) minima[v][r] = load(rows[r].scales + (layout.groups + g + v * W) * 2);
        most = Vec::max(most, Vec::abs(scales[v][r]));
      }
      if (rank) largest[r] = Vec::maximum(most);
    }
  }

  // The largest product of `by` with a scale, in absolute value: the largest of the rows' largest, as rounding is
  // monotonic.
  float reach(const float* by) const {
    F most = Vec::zero();
    for (int r = 0; r < 2 * P; r += W) {
      most = Vec::max(most, Vec::abs(Vec::mul(Vec::load(by + r), Vec::load(largest + r))));
    }
    return Vec::maximum(most);
  }

  // y[0, lanes of all vectors) += the minima's share
  void add_minima(const float* by, int lanes, float* y) const {
    DEJAVU_UNROLL for (int v = 0; v < vectors; ++v, y += W) {
      F even = Block ? Vec::load(y) : Vec::load_n(y, lanes), odd = Vec::zero();
      DEJAVU_UNROLL for (int r = 0; r < 2 * P; r += 2) {
        even = Vec::fma(minima[v][r], Vec::set1(by[r]), even);
        odd = Vec::fma(minima[v][r + 1], Vec::set1(by[r + 1]), odd);
      }
      put(y, Vec::add(even, odd), Block ? W : lanes);
    }
  }

  // The step and the pairs of `by`; false where all are zero, or too small to leave a trace.
  template <bool Ranked>
  bool apply(const float* by, Scaled<P>* out) const {
    float highest;
    if constexpr (Ranked) {
      highest = reach(by);
    } else {
      F most = Vec::zero();
      DEJAVU_UNROLL for (int v = 0; v < vectors; ++v) {
        DEJAVU_UNROLL for (int r = 0; r < 2 * P; ++r) {
          most = Vec::max(most, Vec::abs(Vec::mul(scales[v][r], Vec::set1(by[r]))));
        }
      }
      highest = Vec::maximum(most);
    }
    const bool any = highest > 1e-28f;  // a large coefficient times `inverse` must not overflow
    const float inverse = any ? 32767.0f / highest : 0.0f;
    out->step = Vec::set1(any ? highest / 32767.0f : 0.0f);
    alignas(64) float steps[2 * P];
    for (int r = 0; r < 2 * P; ++r) steps[r] = by[r] * inverse;
    DEJAVU_UNROLL for (int v = 0; v < vectors; ++v) {
      DEJAVU_UNROLL for (int p = 0; p < P; ++p) {
        const auto word = [&](int r) { return Vec::mul(scales[v][r], Vec::set1(steps[r])); };
        Vec::store_i(out->pairs[p] + v * W, Vec::pack_words(word(2 * p), word(2 * p + 1)));
      }
    }
    return any;
  }
};

// Coefficients of all tokens for one block, or `lanes` groups of the tail; false where none leaves a trace.
template <Codec C, bool Block, int P, int T>
inline bool scale_coefficients(const RowLayout& layout, const Row* rows, const float (*by)[2 * P], int g, int lanes,
                               float* const* outputs, Scaled<P>* out) {
  constexpr bool ranked = T > 2 && 2 * P % W == 0;  // finding each row's highest pays with several tokens
  const GroupScales<C, P, Block> scales(layout, rows, g, lanes, ranked);
  bool any = false;
  for (int t = 0; t < T; ++t) {
    if constexpr (C == Codec::int4) scales.add_minima(by[t], lanes, outputs[t] + layout.padded + g);
    any |= scales.template apply<ranked>(by[t], &out[t]);
  }
  return any;
}

// y[0, 2 W) += step * (even and odd in turn)
inline void add_in_turn(I even, I odd, F step, float* y) {
  F a = Vec::to_float(even), b = Vec::to_float(odd);
  Vec::interleave(&a, &b);
  Vec::store(y, Vec::fma(a, step, Vec::load(y)));
  Vec::store(y + W, Vec::fma(b, step, Vec::load(y + W)));
}

// 32 elements of int8 rows: sums over row pairs in int32, then into the outputs.
template <int P, int T>
inline void axpy_unit(const Row* rows, size_t byte, const Scaled<P>* scaled, float* const* outputs, size_t at) {
  for (int h = 0; h < kHalves; ++h) {
    I acc[T][2];
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = Vec::zero_i();
    DEJAVU_UNROLL for (int p = 0; p < P; ++p) {
      const auto row = [&](int r) { return Vec::load_i8_h(rows[r].codes + byte + h * 2 * W); };
      H even, odd;
      Vec::pair_words(row(2 * p), row(2 * p + 1), &even, &odd);
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        const H c = Vec::keep(scaled[t].coefficients(p, h));
        acc[t][0] = Vec::dot_h(acc[t][0], even, c);
        acc[t][1] = Vec::dot_h(acc[t][1], odd, c);
      }
    }
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
      add_in_turn(acc[t][0], acc[t][1], scaled[t].step, outputs[t] + at + h * 2 * W);
    }
  }
}

// A word of int4 codes holds four elements (layout.h). All but the last are multiplied where they are, as so many times
// the code: 2 P * 15 * 256 * 32767 stays below 2^31.
template <int Q>
inline H field(H words) {
  return Q == 0   ? Vec::masked_h<0x000f>(words)
         : Q == 1 ? Vec::masked_h<0x0f00>(words)
         : Q == 2 ? Vec::masked_h<0x00f0>(words)
                  : Vec::nibble_h<12>(words);
}
constexpr float kField[4] = {1.0f, 1.0f / 256, 1.0f / 16, 1.0f};

// Quarters [Q, Q + N) of 128 elements of int4 rows.
template <int Q, int N, int P, int T>
inline void axpy_quarters(const Row* rows, size_t byte, const Scaled<P>* scaled, float* const* outputs, size_t at) {
  static_assert(P <= 8, "int32 sums could overflow");
  for (int h = 0; h < kHalves; ++h) {
    I acc[N][T][2];
    DEJAVU_UNROLL for (int q = 0; q < N; ++q) {
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[q][t][0] = acc[q][t][1] = Vec::zero_i();
    }
    DEJAVU_UNROLL for (int p = 0; p < P; ++p) {
      const auto row = [&](int r) { return Vec::load_h((const int16_t*)(rows[r].codes + byte + h * 4 * W)); };
      H evens, odds;
      Vec::pair_words(row(2 * p), row(2 * p + 1), &evens, &odds);
      const auto add = [&](auto quarter) {
        constexpr int q = decltype(quarter)::value;
        const H even = field<Q + q>(evens), odd = field<Q + q>(odds);
        DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
          const H c = Vec::keep(scaled[t].coefficients(p, h));
          acc[q][t][0] = Vec::dot_h(acc[q][t][0], even, c);
          acc[q][t][1] = Vec::dot_h(acc[q][t][1], odd, c);
        }
      };
      add(Count<0>());
      if constexpr (N > 1) add(Count<1>());
      if constexpr (N > 2) add(Count<2>()), add(Count<3>());
    }
    DEJAVU_UNROLL for (int q = 0; q < N; ++q) {
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        add_in_turn(acc[q][t][0], acc[q][t][1], Vec::mul(scaled[t].step, Vec::set1(kField[Q + q])),
                    outputs[t] + at + size_t((Q + q) * 32 + h * 2 * W));
      }
    }
  }
}

// 128 elements of int4 rows: as many quarters at once as the registers have room for their sums.
template <int P, int T>
inline void axpy_words(const Row* rows, size_t byte, const Scaled<P>* scaled, float* const* outputs, size_t at) {
  constexpr int N = 8 * T <= kAccumulators ? 4 : 4 * T <= kAccumulators ? 2 : 1;
  axpy_quarters<0, N, P, T>(rows, byte, scaled, outputs, at);
  if constexpr (N == 1) axpy_quarters<1, N, P, T>(rows, byte, scaled, outputs, at);
  if constexpr (N <= 2) axpy_quarters<2, N, P, T>(rows, byte, scaled, outputs, at);
  if constexpr (N == 1) axpy_quarters<3, N, P, T>(rows, byte, scaled, outputs, at);
}

// One group of the tail: natural order, the same coefficient everywhere.
template <Codec C, int P, int T>
inline void axpy_tail(const Row* rows, size_t group, int g, const Scaled<P>* scaled, float* const* outputs, size_t at) {
  for (int h = 0; h < kHalves; ++h) {
    I acc[T][2];
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = Vec::zero_i();
    for (int p = 0; p < P; ++p) {
      H l, r;
      if constexpr (C == Codec::int4) {
        const size_t byte = group + size_t(h * W);
        const H both = Vec::zip_bytes(rows[2 * p].codes + byte, rows[2 * p + 1].codes + byte);
        l = Vec::nibble_h<0>(both), r = Vec::nibble_h<4>(both);
      } else {
        const size_t byte = group + size_t(h * 2 * W);
        Vec::pair_words(Vec::load_i8_h(rows[2 * p].codes + byte), Vec::load_i8_h(rows[2 * p + 1].codes + byte), &l, &r);
      }
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        const H c = Vec::set1_i(scaled[t].pairs[p][g]);
        acc[t][0] = Vec::dot_h(acc[t][0], l, c);
        acc[t][1] = Vec::dot_h(acc[t][1], r, c);
      }
    }
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
      if constexpr (C == Codec::int4) {  // the first and the second half of the group
        float* y = outputs[t] + at + h * W;
        Vec::store(y, Vec::fma(Vec::to_float(acc[t][0]), scaled[t].step, Vec::load(y)));
        y += kGroup / 2;
        Vec::store(y, Vec::fma(Vec::to_float(acc[t][1]), scaled[t].step, Vec::load(y)));
      } else {
        add_in_turn(acc[t][0], acc[t][1], scaled[t].step, outputs[t] + at + h * 2 * W);
      }
    }
  }
}

// int8 and int4: up to S times 2 P rows at once. Within a block (or a vector of tail groups), coefficients times scales
// of 2 P rows are rounded to int16 with one step, rows are interleaved in pairs, and products are summed in int32:
// 2 P * 127 * 32767 stays below 2^31. What S sets are added to is in the first-level cache for all but the first.
template <Codec C, int P, int S, int T>
DEJAVU_NOINLINE void axpy_grouped(const RowLayout& layout, const Row* some, const Row* next, int n,
                                  const float* const* coefficients, float* const* outputs) {
  static_assert(P <= 64, "int32 sums could overflow");
  constexpr int step_elements = C == Codec::int4 ? kNibbleChunk : 32, step_bytes = C == Codec::int4 ? 64 : 32;
  Row rows[S][2 * P];  // those that are not there: the first, times zero
  float by[S][T][2 * P];
  for (int i = 0; i < S * 2 * P; ++i) {
    const int s = i / (2 * P), r = i % (2 * P);
    rows[s][r] = some[i < n ? i : 0];
    for (int t = 0; t < T; ++t) by[s][t][r] = i < n ? coefficients[t][i] : 0.0f;
  }
  bool any[S];
  const int tail = layout.blocks * kBlockGroups;
  for (int g = 0; g < tail; g += kBlockGroups) {
    for (int r = 0; r < n; ++r) prefetch_scales<C>(layout, next[r], g);
    Scaled<P> scaled[S][T];
    for (int s = 0; s < S; ++s)
      any[s] = scale_coefficients<C, true, P, T>(layout, rows[s], by[s], g, W, outputs, scaled[s]);
    const size_t first = size_t(g) * kGroup, byte = first / (C == Codec::int4 ? 2 : 1);
    for (int u = 0; u < kBlock / step_elements; ++u) {
      const size_t at = byte + size_t(u * step_bytes);
      if (step_bytes == 64 || u % 2 == 0) {
        for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + at);
      }
      for (int s = 0; s < S; ++s) {
        if (!any[s]) continue;
        if constexpr (C == Codec::int4) {
          axpy_words<P, T>(rows[s], at, scaled[s], outputs, first + size_t(u * step_elements));
        } else {
          axpy_unit<P, T>(rows[s], at, scaled[s], outputs, first + size_t(u * step_elements));
        }
      }
    }
  }
  for (int g = tail; g < layout.groups; g += W) {
    const int groups = layout.groups - g < W ? layout.groups - g : W;
    const size_t first = size_t(g) * kGroup, byte = first / (C == Codec::int4 ? 2 : 1);
    for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + byte);
    for (int s = 0; s < S; ++s) {
      Scaled<P> scaled[T];
      if (!scale_coefficients<C, false, P, T>(layout, rows[s], by[s], g, groups, outputs, scaled)) continue;
      for (int i = 0; i < groups; ++i) {
        const size_t at = first + size_t(i * kGroup);
        axpy_tail<C, P, T>(rows[s], C == Codec::int4 ? at / 2 : at, i, scaled, outputs, at);
      }
    }
  }
}

// Rows that are worked on together.
inline int rows_together(int tokens) { return tokens > 1 ? kSumSets * kSumRows : kSumRows; }

// outputs[t] += sum over r < n of coefficients[t][r] * rows[r], n <= rows_together(T)
template <Codec C, int T>
inline void axpy_step(const RowLayout& layout, const Row* rows, const Row* next, int n,
                      const float* const* coefficients, float* const* outputs) {
  if constexpr (is_grouped(C)) {
    if (n > kSumRows) {
      axpy_grouped<C, kSumRows / 2, kSumSets, T>(layout, rows, next, n, coefficients, outputs);
    } else if (T > 1 || n > kSumRows / 4) {
      axpy_grouped<C, kSumRows / 2, 1, T>(layout, rows, next, n, coefficients, outputs);
    } else {
      axpy_grouped<C, kSumRows / 8, 1, 1>(layout, rows, next, n, coefficients, outputs);
    }
  } else if constexpr (T > 1) {
    axpy_columns<C, T>(layout, rows, next, n, coefficients, outputs);
  } else {
    int r = 0;
    for (; r + 4 <= n; r += 4) axpy_float<C, 4>(layout, rows + r, next + r, coefficients[0] + r, outputs[0]);
    for (; r < n; ++r) axpy_float<C, 1>(layout, rows + r, next + r, coefficients[0] + r, outputs[0]);
  }
}

// outputs[t] += sum over i < n of coefficients[t][place(i)] * at(i); meanwhile the rows ahead(i) are fetched.
template <Codec C, typename At, typename Ahead, typename Place>
inline void axpy_rows(const RowLayout& layout, At at, Ahead ahead, Place place, int n, const float* const* coefficients,
                      int tokens, float* const* outputs) {
  Row rows[kSumSets * kSumRows], next[kSumSets * kSumRows];
  float by[dejavu::kMaxTokens][kSumSets * kSumRows];
  const int most = rows_together(tokens);
  for (int i = 0; i < n; i += most) {
    const int count = n - i < most ? n - i : most;
    for (int r = 0; r < count; ++r) {
      rows[r] = at(i + r), next[r] = ahead(i + r);
      const int from = place(i + r);
      for (int t = 0; t < tokens; ++t) by[t][r] = coefficients[t][from];
    }
    each_tokens(tokens, [&](auto together, int t) {
      constexpr int T = decltype(together)::value;
      const float* c[T];
      for (int s = 0; s < T; ++s) c[s] = by[t + s];
      axpy_step<C, T>(layout, rows, next, count, c, outputs + t);
    });
  }
}

}  // namespace
