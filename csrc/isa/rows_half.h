// Dot products with halves of int8 rows (halves.h), for one token.
//
// The int16 input is taken apart into high and low bytes, x = 256 high + low, so that nibbles are multiplied as the
// bytes that they unpack to; both sums are exact.
#pragma once

#include "rows_common.h"

namespace {

using dejavu::kHalfChunk;
using B = Vec::B;

// A weight is scale * (unit * (nibble & mask) + offset): what is not known is taken to be in the middle.
struct HalfForm {
  int mask;
  float unit, offset;
};
constexpr HalfForm half_form(Codec c) {
  return c == Codec::low4    ? HalfForm{15, 1, -7.5f}
         : c == Codec::high4 ? HalfForm{15, 16, 7.5f - 128}
         : c == Codec::high3 ? HalfForm{14, 16, 15.5f - 128}
                             : HalfForm{12, 16, 31.5f - 128};
}

constexpr int kHalfRows = 4;

// The last group where it has no neighbour, so that reading two stays within bounds: zeros follow it.
struct Lone {
  int16_t words[2 * kGroup] = {};
  int group = -1;

  Lone(const RowLayout& layout, const GroupedInput& x) {
    if ((layout.groups - layout.blocks * kBlockGroups) % 2 == 0) return;
    group = layout.groups - 1;
    memcpy(words, x.codes + group * kGroup, kGroup * 2);
  }
};

template <int Mask, int R>
inline void half_chunk(const uint8_t* const* at, const int16_t* x, I* high, I* low) {
  const H a = Vec::load_h(x), b = Vec::load_h(x + 32), c = Vec::load_h(x + 64), d = Vec::load_h(x + 96);
  const B ab_high = Vec::high_bytes(a, b), ab_low = Vec::low_bytes(a, b);
  const B cd_high = Vec::high_bytes(c, d), cd_low = Vec::low_bytes(c, d);
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
    const B bytes = Vec::load_b(at[r]), ab = Vec::low_fields<Mask>(bytes), cd = Vec::high_fields<Mask>(bytes);
    high[r] = Vec::dot_b(Vec::dot_b(high[r], ab, ab_high), cd, cd_high);
    low[r] = Vec::dot_b(Vec::dot_b(low[r], ab_low, ab), cd_low, cd);
  }
}

template <Codec C, int R>
DEJAVU_NOINLINE void dot_half(const RowLayout& layout, const Row* rows, const Row* next, const GroupedInput& in,
                              const Lone& lone, float* out) {
  constexpr HalfForm form = half_form(C);
  F total[R];
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) total[r] = Vec::zero();
  const F unit = Vec::set1(form.unit), offset = Vec::set1(form.offset);
  for (int b = 0; b < layout.blocks; ++b) {
    for (int h = 0; h < kHalves; ++h) {
      I high[R], low[R];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) high[r] = low[r] = Vec::zero_i();
      for (int chunk = 0; chunk < kBlock / kHalfChunk; ++chunk) {
        const size_t byte = size_t(b * kBlock + chunk * kHalfChunk) / 2 + size_t(h * 4 * W);
        const uint8_t* at[R];
        DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
          at[r] = rows[r].codes + byte;
          if (h == 0) Vec::prefetch(next[r].codes + byte);
        }
        half_chunk<form.mask, R>(at, in.codes + b * kBlock + chunk * kHalfChunk + h * 2 * W, high, low);
      }
      const int g = b * kBlockGroups + h * W;
      const F shifted = Vec::mul(Vec::load(in.sums + g), offset), xs = Vec::mul(Vec::load(in.scales + g), unit);
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        const F codes = Vec::fma(Vec::to_float(Vec::join_bytes(high[r], low[r])), xs, shifted);
        total[r] = Vec::fma(codes, Vec::load_f16(rows[r].scales + g * 2), total[r]);
      }
    }
  }
  // The tail: W groups share a vector of scales; W / 8 groups fill a vector of codes.
  for (int g0 = layout.blocks * kBlockGroups; g0 < layout.groups; g0 += W) {
    const int n = layout.groups - g0 < W ? layout.groups - g0 : W;
    const F shifted = Vec::mul(Vec::load_n(in.sums + g0, n), offset);
    const F xs = Vec::mul(Vec::load_n(in.scales + g0, n), unit);
    F scales[R];
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
      const F s = Vec::load_f16_n(rows[r].scales + g0 * 2, n);
      Vec::prefetch(next[r].codes + size_t(g0) * kGroup / 2);
      total[r] = Vec::fma(s, shifted, total[r]);
      scales[r] = Vec::mul(s, xs);
    }
    for (int g = g0; g < g0 + n; g += W / 8) {
      const bool alone = W == 16 && g == lone.group;
      const int16_t* x = alone ? lone.words : in.codes + g * kGroup;
      const H first = Vec::load_split(x), second = Vec::load_split(x + 16);
      const B x_high = Vec::high_bytes(first, second), x_low = Vec::low_bytes(first, second);
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        uint8_t copy[kGroup] = {};
        const uint8_t* at = rows[r].codes + g * kGroup / 2;
        if (alone) at = static_cast<uint8_t*>(memcpy(copy, at, kGroup / 2));
        const B w = Vec::both_fields<form.mask>(at);
        const I codes = Vec::join_bytes(Vec::dot_b(Vec::zero_i(), w, x_high), Vec::dot_b(Vec::zero_i(), x_low, w));
        total[r] = Vec::fma(Vec::to_float(codes), Vec::spread(scales[r], g - g0), total[r]);
      }
    }
  }
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) out[r] = Vec::sum(total[r]);
}

// out[place(i)] = at(i) . input for i < n; meanwhile the rows ahead(i) are fetched.
template <Codec C, typename At, typename Ahead, typename Place>
inline void half_rows(const RowLayout& layout, At at, Ahead ahead, Place place, int n, const void* input, float* out) {
  const GroupedInput x(layout, input);
  const Lone lone(layout, x);
  Row rows[kHalfRows], next[kHalfRows];
  float found[kHalfRows];
  for (int i = 0; i < n;) {
    const int count = n - i < kHalfRows ? 1 : kHalfRows;
    for (int r = 0; r < count; ++r) rows[r] = at(i + r), next[r] = ahead(i + r);
    if (count == kHalfRows) {
      dot_half<C, kHalfRows>(layout, rows, next, x, lone, found);
    } else {
      dot_half<C, 1>(layout, rows, next, x, lone, found);
    }
    for (int r = 0; r < count; ++r) out[place(i + r)] = found[r];
    i += count;
  }
}

}  // namespace
