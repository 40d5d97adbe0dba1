// Dot products with rows of nibbles, for one token: int4, and the halves of int8 rows (halves.h).
//
// The int16 input is taken apart into high and low bytes, x = 256 high + low, so that nibbles are multiplied as the
// bytes that they unpack to; both sums are exact.
#pragma once

#include "rows_common.h"

namespace {

using B = Vec::B;

// A weight is scale * (unit * (nibble & mask) + offset), of int4 plus the group's minimum: what is not known is taken
// to be in the middle.
struct NibbleForm {
  int mask;
  float unit, offset;
};
constexpr NibbleForm nibble_form(Codec c) {
  return c == Codec::int4    ? NibbleForm{15, 1, 0}
         : c == Codec::low4  ? NibbleForm{15, 1, -7.5f}
         : c == Codec::high4 ? NibbleForm{15, 16, 7.5f - 128}
         : c == Codec::high3 ? NibbleForm{14, 16, 15.5f - 128}
                             : NibbleForm{12, 16, 31.5f - 128};
}

constexpr int kNibbleRows = 4;

// The last group where it has no neighbour, so that reading two stays within bounds: zeros follow it.
struct Lone {
  int16_t words[2 * kGroup] = {};
  int group = -1;

  Lone() = default;
  Lone(const RowLayout& layout, const GroupedInput& x) {
    if ((layout.groups - layout.blocks * kBlockGroups) % 2 == 0) return;
    group = layout.groups - 1;
    memcpy(words, x.codes + group * kGroup, kGroup * 2);
  }
};

template <int Mask, int R>
inline void dot_chunk(const uint8_t* const* at, const int16_t* x, I* high, I* low) {
  const H a = Vec::load_h(x), b = Vec::load_h(x + 32), c = Vec::load_h(x + 64), d = Vec::load_h(x + 96);
  const B ab_high = Vec::high_bytes(a, b), ab_low = Vec::low_bytes(a, b);
  const B cd_high = Vec::high_bytes(c, d), cd_low = Vec::low_bytes(c, d);
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
    const B bytes = Vec::load_b(at[r]), ab = Vec::low_fields<Mask>(bytes), cd = Vec::high_fields<Mask>(bytes);
    high[r] = Vec::dot_b(Vec::dot_b(high[r], ab, ab_high), cd, cd_high);
    low[r] = Vec::dot_b(Vec::dot_b(low[r], ab_low, ab), cd_low, cd);
  }
}

// total += the sums of W groups from g on of a row whose codes gave `codes`.
template <Codec C>
inline F add_groups(const RowLayout& layout, const Row& row, const GroupedInput& x, int g, I codes, F total) {
  constexpr NibbleForm form = nibble_form(C);
  const F s = Vec::load_f16(row.scales + g * 2), sums = Vec::load(x.sums + g), xs = Vec::load(x.scales + g);
  if constexpr (C == Codec::int4) {
    total = Vec::fma(Vec::to_float(codes), Vec::mul(s, xs), total);
    return Vec::fma(Vec::load_f16(row.scales + (layout.groups + g) * 2), sums, total);
  }
  const F shifted = Vec::mul(sums, Vec::set1(form.offset)), unit = Vec::mul(xs, Vec::set1(form.unit));
  return Vec::fma(Vec::fma(Vec::to_float(codes), unit, shifted), s, total);
}

// total[r][t] += the groups after the last whole block: W groups share a vector of scales, W / 8 a vector of codes.
template <Codec C, int R, int T>
inline void add_tail(const RowLayout& layout, const Row* rows, const Row* next, const GroupedInput* in,
                     const Lone* lone, F (*total)[T]) {
  constexpr NibbleForm form = nibble_form(C);
  for (int g0 = layout.blocks * kBlockGroups; g0 < layout.groups; g0 += W) {
    const int n = layout.groups - g0 < W ? layout.groups - g0 : W;
    F scales[R];
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
      Vec::prefetch(next[r].codes + size_t(g0) * kGroup / 2);
      scales[r] = Vec::load_f16_n(rows[r].scales + g0 * 2, n);
      const F offsets = C == Codec::int4 ? Vec::load_f16_n(rows[r].scales + (layout.groups + g0) * 2, n)
                                         : Vec::mul(scales[r], Vec::set1(form.offset));
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        total[r][t] = Vec::fma(offsets, Vec::load_n(in[t].sums + g0, n), total[r][t]);
      }
    }
    F xs[T];
    for (int t = 0; t < T; ++t) xs[t] = Vec::mul(Vec::load_n(in[t].scales + g0, n), Vec::set1(form.unit));
    for (int g = g0; g < g0 + n; g += W / 8) {
      const bool alone = W == 16 && g == lone[0].group;
      B w[R];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        uint8_t copy[kGroup] = {};
        const uint8_t* at = rows[r].codes + g * kGroup / 2;
        if (alone) at = static_cast<uint8_t*>(memcpy(copy, at, kGroup / 2));
        w[r] = Vec::both_fields<form.mask>(at);
      }
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        const int16_t* x = alone ? lone[t].words : in[t].codes + g * kGroup;
        const H first = Vec::load_split(x), second = Vec::load_split(x + 16);
        const B x_high = Vec::high_bytes(first, second), x_low = Vec::low_bytes(first, second);
        DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
          const I codes =
              Vec::join_bytes(Vec::dot_b(Vec::zero_i(), w[r], x_high), Vec::dot_b(Vec::zero_i(), x_low, w[r]));
          const F step = Vec::spread(Vec::mul(scales[r], xs[t]), g - g0);
          total[r][t] = Vec::fma(Vec::to_float(codes), step, total[r][t]);
        }
      }
    }
  }
}

template <Codec C, int R>
DEJAVU_NOINLINE void dot_nibbles(const RowLayout& layout, const Row* rows, const Row* next, const GroupedInput& in,
                                 const Lone& lone, float* out) {
  F total[R][1];
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) total[r][0] = Vec::zero();
  for (int b = 0; b < layout.blocks; ++b) {
    for (int h = 0; h < kHalves; ++h) {
      I high[R], low[R];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) high[r] = low[r] = Vec::zero_i();
      for (int chunk = 0; chunk < kBlock / kNibbleChunk; ++chunk) {
        const size_t byte = size_t(b * kBlock + chunk * kNibbleChunk) / 2 + size_t(h * 4 * W);
        const uint8_t* at[R];
        DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
          at[r] = rows[r].codes + byte;
          if (h == 0) Vec::prefetch(next[r].codes + byte);
        }
        dot_chunk<nibble_form(C).mask, R>(at, in.codes + b * kBlock + chunk * kNibbleChunk + h * 2 * W, high, low);
      }
      const int g = b * kBlockGroups + h * W;
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        if (h == 0) prefetch_scales<C>(layout, next[r], g);
        total[r][0] = add_groups<C>(layout, rows[r], in, g, Vec::join_bytes(high[r], low[r]), total[r][0]);
      }
    }
  }
  add_tail<C, R, 1>(layout, rows, next, &in, &lone, total);
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) out[r] = Vec::sum(total[r][0]);
}

// out[place(i)] = at(i) . input for i < n; meanwhile the rows ahead(i) are fetched.
template <Codec C, typename At, typename Ahead, typename Place>
inline void nibble_rows(const RowLayout& layout, At at, Ahead ahead, Place place, int n, const void* input,
                        float* out) {
  const GroupedInput x(layout, input);
  const Lone lone(layout, x);
  Row rows[kNibbleRows], next[kNibbleRows];
  float found[kNibbleRows];
  for (int i = 0; i < n;) {
    const int count = n - i < kNibbleRows ? 1 : kNibbleRows;
    for (int r = 0; r < count; ++r) rows[r] = at(i + r), next[r] = ahead(i + r);
    if (count == kNibbleRows) {
      dot_nibbles<C, kNibbleRows>(layout, rows, next, x, lone, found);
    } else {
      dot_nibbles<C, 1>(layout, rows, next, x, lone, found);
    }
    for (int r = 0; r < count; ++r) out[place(i + r)] = found[r];
    i += count;
  }
}

}  // namespace
