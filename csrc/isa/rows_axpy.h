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
template <int P>
struct Scaled {
  H low[P][kHalves], high[P][kHalves];  // block: spread to the lanes that unzip_pairs makes
  int32_t pairs[P][W];                  // tail: by group
  F step;
};

// The step and the pairs of `a`; false where all are zero, or too small to leave a trace. Adds the minima's share.
template <Codec C, int P>
inline bool scale_coefficients(const RowLayout& layout, const Row* rows, int n, int g, int lanes, bool block,
                               const float* coefficients, float* y, Scaled<P>* out) {
  const int vectors = block ? kHalves : 1;
  F products[2 * P][kHalves], highest = Vec::zero();
  for (int v = 0; v < vectors; ++v) {
    const int at = g + v * W;
    F minima = C == Codec::int4 ? get(y + layout.padded + at, lanes) : Vec::zero();
    for (int r = 0; r < 2 * P; ++r) {
      if (r >= n) {
        products[r][v] = Vec::zero();
        continue;
      }
      const F a = Vec::set1(coefficients[r]);
      products[r][v] = Vec::mul(Vec::load_f16_n(rows[r].scales + at * 2, lanes), a);
      highest = Vec::max(highest, Vec::abs(products[r][v]));
      if constexpr (C == Codec::int4) {
        minima = Vec::fma(Vec::load_f16_n(rows[r].scales + (layout.groups + at) * 2, lanes), a, minima);
      }
    }
    if constexpr (C == Codec::int4) put(y + layout.padded + at, minima, lanes);
  }
  const float reach = Vec::maximum(highest);
  const bool any = reach > 1e-34f;
  const F inverse = Vec::set1(any ? 32767.0f / reach : 0.0f);
  out->step = Vec::set1(any ? reach / 32767.0f : 0.0f);
  for (int p = 0; p < P; ++p) {
    for (int v = 0; v < vectors; ++v) {
      const I pairs = Vec::pack_words(Vec::mul(products[2 * p][v], inverse), Vec::mul(products[2 * p + 1][v], inverse));
      if (block) {
        Vec::spread_groups(pairs, &out->low[p][v], &out->high[p][v]);
      } else {
        Vec::store_i(out->pairs[p], pairs);
      }
    }
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

// One unit of 32 elements (int4: the two units that share bytes): sums over row pairs in int32, then into the outputs.
template <Codec C, int P, int T>
inline void axpy_unit(const uint8_t* const* codes, const Scaled<P>* scaled, float* const* outputs, size_t at) {
  constexpr int units = C == Codec::int4 ? 2 : 1;
  constexpr int together = 2 * units * T <= kAccumulators ? units : 1;  // units whose sums fit the registers
  for (int h = 0; h < kHalves; ++h) {
    for (int u0 = 0; u0 < units; u0 += together) {
      I acc[together][T][2];
      DEJAVU_UNROLL for (int u = 0; u < together; ++u) {
        DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[u][t][0] = acc[u][t][1] = Vec::zero_i();
      }
      for (int p = 0; p < P; ++p) {
        const uint8_t *a = codes[2 * p] + h * 2 * W, *b = codes[2 * p + 1] + h * 2 * W;
        const H x = C == Codec::int4 ? Vec::load_u8_h(a) : Vec::load_i8_h(a);
        const H z = C == Codec::int4 ? Vec::load_u8_h(b) : Vec::load_i8_h(b);
        DEJAVU_UNROLL for (int u = 0; u < together; ++u) {
          H l, r;
          if constexpr (C == Codec::int8) {
            Vec::unzip_pairs(x, z, &l, &r);
          } else if (u0 + u == 0) {
            Vec::unzip_pairs(Vec::low_nibble_h(x), Vec::low_nibble_h(z), &l, &r);
          } else {
            Vec::unzip_pairs(Vec::high_nibble_h(x), Vec::high_nibble_h(z), &l, &r);
          }
          DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
            acc[u][t][0] = Vec::dot_h(acc[u][t][0], l, scaled[t].low[p][h]);
            acc[u][t][1] = Vec::dot_h(acc[u][t][1], r, scaled[t].high[p][h]);
          }
        }
      }
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        DEJAVU_UNROLL for (int u = 0; u < together; ++u) {
          add_unzipped(acc[u][t][0], acc[u][t][1], scaled[t].step, outputs[t] + at + (u0 + u) * 32 + h * 2 * W);
        }
      }
    }
  }
}

// One group of the tail: natural order, the same coefficient everywhere.
template <Codec C, int P, int T>
inline void axpy_tail(const uint8_t* const* codes, int g, const Scaled<P>* scaled, float* const* outputs, size_t at) {
  for (int h = 0; h < kHalves; ++h) {
    I acc[T][2];
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = Vec::zero_i();
    for (int p = 0; p < P; ++p) {
      H a[kHalves], b[kHalves], l, r;
      load_tail<C>(codes[2 * p], g, a);
      load_tail<C>(codes[2 * p + 1], g, b);
      Vec::unzip_pairs(a[h], b[h], &l, &r);
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        const H c = Vec::set1_i(scaled[t].pairs[p][g]);
        acc[t][0] = Vec::dot_h(acc[t][0], l, c);
        acc[t][1] = Vec::dot_h(acc[t][1], r, c);
      }
    }
    DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
      add_unzipped(acc[t][0], acc[t][1], scaled[t].step, outputs[t] + at + h * 2 * W);
    }
  }
}

// int8 and int4: up to 2 P rows at once. Within a block (or a vector of tail groups), coefficients times scales are
// rounded to int16 with one step, rows are interleaved in pairs, and products are summed in int32:
// 2 P * 127 * 32767 stays below 2^31.
template <Codec C, int P, int T>
DEJAVU_NOINLINE void axpy_grouped(const RowLayout& layout, const Row* rows, const Row* next, int n,
                                  const float* const* coefficients, float* const* outputs) {
  static_assert(P <= 64, "int32 sums could overflow");
  constexpr int step_elements = C == Codec::int4 ? 64 : 32;  // of 32 bytes of codes
  for (int g = 0; g < layout.groups;) {
    const bool block = g / kBlockGroups < layout.blocks;
    const int groups = block ? kBlockGroups : layout.groups - g < W ? layout.groups - g : W;
    for (int r = 0; r < n; ++r) prefetch_scales<C>(layout, next[r], g);
    Scaled<P> scaled[T];
    bool any = false;
    for (int t = 0; t < T; ++t) {
      any |= scale_coefficients<C, P>(layout, rows, n, g, block ? W : groups, block, coefficients[t], outputs[t],
                                      &scaled[t]);
    }
    const size_t first = size_t(g) * kGroup;
    if (any) {
      const uint8_t* codes[2 * P];
      const size_t byte = first / (C == Codec::int4 ? 2 : 1);
      for (int r = 0; r < 2 * P; ++r) codes[r] = rows[r < n ? r : 0].codes + byte;
      if (block) {
        for (int o = 0; o < kBlock; o += step_elements) {
          if (o / step_elements % 2 == 0) {
            for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + (codes[r] - rows[r].codes));
          }
          axpy_unit<C, P, T>(codes, scaled, outputs, first + size_t(o));
          for (int r = 0; r < 2 * P; ++r) codes[r] += 32;
        }
      } else {
        for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + byte);
        for (int i = 0; i < groups; ++i) axpy_tail<C, P, T>(codes, i, scaled, outputs, first + size_t(i * kGroup));
      }
    }
    g += groups;
  }
}

// outputs[t] += sum over r < n of coefficients[t][r] * rows[r], n <= kSumRows
template <Codec C, int T>
inline void axpy_step(const RowLayout& layout, const Row* rows, const Row* next, int n, const float** coefficients,
                      float* const* outputs) {
  if constexpr (is_grouped(C)) {
    if (T > 1 || n > kSumRows / 4) {
      axpy_grouped<C, kSumRows / 2, T>(layout, rows, next, n, coefficients, outputs);
    } else {
      axpy_grouped<C, kSumRows / 8, 1>(layout, rows, next, n, coefficients, outputs);
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
  Row rows[kSumRows], next[kSumRows];
  float by[dejavu::kMaxTokens][kSumRows];
  for (int i = 0; i < n; i += kSumRows) {
    const int count = n - i < kSumRows ? n - i : kSumRows;
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
