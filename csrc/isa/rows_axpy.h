// Weighted sums of rows, added to the outputs of one or several tokens. Every token's sum is rounded in the same way,
// however many tokens share the rows.
#pragma once

#include "rows_common.h"

namespace {

// outputs[t] += sum over r of coefficients[t][r] * rows[r]; f32 and bf16
template <Codec C, int R, int T>
DEJAVU_NOINLINE void axpy_float(const RowLayout& layout, const Row* rows, const Row* next,
                                const float* const* coefficients, float* const* outputs) {
  F a[T][R];
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) a[t][r] = Vec::set1(coefficients[t][r]);
  }
  int i = 0;
  for (; i + W <= layout.d; i += W) {
    F w[R];
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
      const size_t at = size_t(i) * kWeightBytes<C>;
      if (at % 64 == 0) Vec::prefetch(next[r].codes + at);
      w[r] = load_weights<C>(rows[r].codes, i);
    }
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
      F y = Vec::load(outputs[t] + i);
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) y = Vec::fma(w[r], a[t][r], y);
      Vec::store(outputs[t] + i, y);
    }
  }
  for (; i < layout.d; ++i) {
    for (int r = 0; r < R; ++r) {
      const float w = load_weight<C>(rows[r].codes, i);
      for (int t = 0; t < T; ++t) outputs[t][i] += w * coefficients[t][r];
    }
  }
}

// The coefficients of 2 P rows for one block (or vector of tail groups), times the scales of its groups, as int16
// pairs with a common step.
template <int P, bool Block>
struct Scaled {
  H low[P][kHalves], high[P][kHalves];  // spread to the lanes that unzip_pairs makes
  F step;
};
template <int P>
struct Scaled<P, false> {
  int32_t pairs[P][W];  // by group
  F step;
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
  bool apply(const float* by, Scaled<P, Block>* out) const {
    F products[vectors][2 * P], most = Vec::zero();
    const auto product = [&](int v, int r) { return Vec::mul(scales[v][r], Vec::set1(by[r])); };
    DEJAVU_UNROLL for (int v = 0; !Ranked && v < vectors; ++v) {
      DEJAVU_UNROLL for (int r = 0; r < 2 * P; ++r) {
        products[v][r] = product(v, r);
        most = Vec::max(most, Vec::abs(products[v][r]));
      }
    }
    float highest;
    if constexpr (Ranked)
      highest = reach(by);
    else
      highest = Vec::maximum(most);
    const bool any = highest > 1e-34f;
    const F inverse = Vec::set1(any ? 32767.0f / highest : 0.0f);
    out->step = Vec::set1(any ? highest / 32767.0f : 0.0f);
    DEJAVU_UNROLL for (int v = 0; v < vectors; ++v) {
      DEJAVU_UNROLL for (int p = 0; p < P; ++p) {
        const auto word = [&](int r) { return Vec::mul(Ranked ? product(v, r) : products[v][r], inverse); };
        const I pairs = Vec::pack_words(word(2 * p), word(2 * p + 1));
        if constexpr (Block) {
          Vec::spread_groups(pairs, &out->low[p][v], &out->high[p][v]);
        } else {
          Vec::store_i(out->pairs[p], pairs);
        }
      }
    }
    return any;
  }
};

// Coefficients of all tokens for one block, or `lanes` groups of the tail; false where none leaves a trace.
template <Codec C, int P, int T, bool Block>
inline bool scale_coefficients(const RowLayout& layout, const Row* rows, const float (*by)[2 * P], int g, int lanes,
                               float* const* outputs, Scaled<P, Block>* out) {
  constexpr bool ranked = T > 2 && 2 * P % W == 0;  // finding each row's highest pays with several tokens
  const GroupScales<C, P, Block> scales(layout, rows, g, lanes, ranked);
  bool any = false;
  for (int t = 0; t < T; ++t) {
    if constexpr (C == Codec::int4) scales.add_minima(by[t], lanes, outputs[t] + layout.padded + g);
    any |= scales.template apply<ranked>(by[t], &out[t]);
  }
  return any;
}

// y[0, 2 W) += step * (l, r), undoing the order of unzip_pairs
inline void add_unzipped(I l, I r, F step, float* y) {
  F a = Vec::to_float(l), b = Vec::to_float(r);
  Vec::zip_quads(&a, &b);
  Vec::store(y, Vec::fma(a, step, Vec::load(y)));
  Vec::store(y + W, Vec::fma(b, step, Vec::load(y + W)));
}

// 32 elements of int8 rows: sums over row pairs in int32, then into the outputs.
template <int P, int T>
inline void axpy_unit(const uint8_t* const* codes, const Scaled<P, true>* scaled, float* const* outputs, size_t at) {
  for (int h = 0; h < kHalves; ++h) {
    I acc[T][2];
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = Vec::zero_i();
    for (int p = 0; p < P; ++p) {
      H l, r;
      Vec::unzip_pairs(Vec::load_i8_h(codes[2 * p] + h * 2 * W), Vec::load_i8_h(codes[2 * p + 1] + h * 2 * W), &l, &r);
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        acc[t][0] = Vec::dot_h(acc[t][0], l, scaled[t].low[p][h]);
        acc[t][1] = Vec::dot_h(acc[t][1], r, scaled[t].high[p][h]);
      }
    }
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
      add_unzipped(acc[t][0], acc[t][1], scaled[t].step, outputs[t] + at + h * 2 * W);
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
inline void axpy_quarters(const uint8_t* const* codes, const Scaled<P, true>* scaled, float* const* outputs,
                          size_t at) {
  static_assert(P <= 8, "int32 sums could overflow");
  for (int h = 0; h < kHalves; ++h) {
    I acc[N][T][2];
    DEJAVU_UNROLL for (int q = 0; q < N; ++q) {
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[q][t][0] = acc[q][t][1] = Vec::zero_i();
    }
    for (int p = 0; p < P; ++p) {
      H l, r;
      Vec::unzip_pairs(Vec::load_h((const int16_t*)(codes[2 * p] + h * 4 * W)),
                       Vec::load_h((const int16_t*)(codes[2 * p + 1] + h * 4 * W)), &l, &r);
      const auto add = [&](auto quarter) {
        constexpr int q = decltype(quarter)::value;
        const H low = field<Q + q>(l), high = field<Q + q>(r);
        DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
          acc[q][t][0] = Vec::dot_h(acc[q][t][0], low, scaled[t].low[p][h]);
          acc[q][t][1] = Vec::dot_h(acc[q][t][1], high, scaled[t].high[p][h]);
        }
      };
      add(Count<0>());
      if constexpr (N > 1) add(Count<1>());
      if constexpr (N > 2) add(Count<2>()), add(Count<3>());
    }
    DEJAVU_UNROLL for (int q = 0; q < N; ++q) {
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        add_unzipped(acc[q][t][0], acc[q][t][1], Vec::mul(scaled[t].step, Vec::set1(kField[Q + q])),
                     outputs[t] + at + size_t((Q + q) * 32 + h * 2 * W));
      }
    }
  }
}

// 128 elements of int4 rows: as many quarters at once as the registers have room for their sums.
template <int P, int T>
inline void axpy_words(const uint8_t* const* codes, const Scaled<P, true>* scaled, float* const* outputs, size_t at) {
  constexpr int N = 8 * T <= kAccumulators ? 4 : 4 * T <= kAccumulators ? 2 : 1;
  axpy_quarters<0, N, P, T>(codes, scaled, outputs, at);
  if constexpr (N == 1) axpy_quarters<1, N, P, T>(codes, scaled, outputs, at);
  if constexpr (N <= 2) axpy_quarters<2, N, P, T>(codes, scaled, outputs, at);
  if constexpr (N == 1) axpy_quarters<3, N, P, T>(codes, scaled, outputs, at);
}

// One group of the tail: natural order, the same coefficient everywhere.
template <Codec C, int P, int T>
inline void axpy_tail(const uint8_t* const* codes, int g, const Scaled<P, false>* scaled, float* const* outputs,
                      size_t at) {
  for (int h = 0; h < kHalves; ++h) {
    I acc[T][2];
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = Vec::zero_i();
    for (int p = 0; p < P; ++p) {
      H l, r;
      if constexpr (C == Codec::int4) {
        const int byte = g * kGroup / 2 + h * W;
        const H both = Vec::zip_bytes(codes[2 * p] + byte, codes[2 * p + 1] + byte);
        l = Vec::nibble_h<0>(both), r = Vec::nibble_h<4>(both);
      } else {
        const int byte = g * kGroup + h * 2 * W;
        Vec::unzip_pairs(Vec::load_i8_h(codes[2 * p] + byte), Vec::load_i8_h(codes[2 * p + 1] + byte), &l, &r);
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
        add_unzipped(acc[t][0], acc[t][1], scaled[t].step, outputs[t] + at + h * 2 * W);
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
  const uint8_t* codes[2 * P];
  bool any[S];
  const int tail = layout.blocks * kBlockGroups;
  for (int g = 0; g < tail; g += kBlockGroups) {
    for (int r = 0; r < n; ++r) prefetch_scales<C>(layout, next[r], g);
    Scaled<P, true> scaled[S][T];
    for (int s = 0; s < S; ++s) any[s] = scale_coefficients<C, P, T>(layout, rows[s], by[s], g, W, outputs, scaled[s]);
    const size_t first = size_t(g) * kGroup, byte = first / (C == Codec::int4 ? 2 : 1);
    for (int u = 0; u < kBlock / step_elements; ++u) {
      const size_t at = byte + size_t(u * step_bytes);
      if (step_bytes == 64 || u % 2 == 0) {
        for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + at);
      }
      for (int s = 0; s < S; ++s) {
        if (!any[s]) continue;
        for (int r = 0; r < 2 * P; ++r) codes[r] = rows[s][r].codes + at;
        if constexpr (C == Codec::int4) {
          axpy_words<P, T>(codes, scaled[s], outputs, first + size_t(u * step_elements));
        } else {
          axpy_unit<P, T>(codes, scaled[s], outputs, first + size_t(u * step_elements));
        }
      }
    }
  }
  for (int g = tail; g < layout.groups; g += W) {
    const int groups = layout.groups - g < W ? layout.groups - g : W;
    const size_t first = size_t(g) * kGroup, byte = first / (C == Codec::int4 ? 2 : 1);
    for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + byte);
    for (int s = 0; s < S; ++s) {
      Scaled<P, false> scaled[T];
      if (!scale_coefficients<C, P, T>(layout, rows[s], by[s], g, groups, outputs, scaled)) continue;
      for (int r = 0; r < 2 * P; ++r) codes[r] = rows[s][r].codes + byte;
      for (int i = 0; i < groups; ++i) axpy_tail<C, P, T>(codes, i, scaled, outputs, first + size_t(i * kGroup));
    }
  }
}

// Rows that are worked on together.
inline int rows_together(int tokens) { return tokens > 1 ? kSumSets * kSumRows : kSumRows; }

// outputs[t] += sum over r < n of coefficients[t][r] * rows[r], n <= rows_together(T)
template <Codec C, int T>
inline void axpy_step(const RowLayout& layout, const Row* rows, const Row* next, int n, const float** coefficients,
                      float* const* outputs) {
  if constexpr (is_grouped(C)) {
    if (n > kSumRows) {
      axpy_grouped<C, kSumRows / 2, kSumSets, T>(layout, rows, next, n, coefficients, outputs);
    } else if (T > 1 || n > kSumRows / 4) {
      axpy_grouped<C, kSumRows / 2, 1, T>(layout, rows, next, n, coefficients, outputs);
    } else {
      axpy_grouped<C, kSumRows / 8, 1, 1>(layout, rows, next, n, coefficients, outputs);
    }
  } else {
    int r = 0;
    for (; r + 4 <= n; r += 4) {
      axpy_float<C, 4, T>(layout, rows + r, next + r, coefficients, outputs);
      for (int t = 0; t < T; ++t) coefficients[t] += 4;
    }
    for (; r < n; ++r) {
      axpy_float<C, 1, T>(layout, rows + r, next + r, coefficients, outputs);
      for (int t = 0; t < T; ++t) ++coefficients[t];
    }
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
