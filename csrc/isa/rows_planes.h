// Dot products with rows of codes in planes (layout.h), for one token: int4, and the parts of int8 rows (parts.h).
//
// The int16 input comes as high and low bytes, x = 256 high + low (GroupedInput), so that codes are multiplied as the
// bytes that they unpack to; both sums are exact.
#pragma once

#include "rows_common.h"

namespace {

using dejavu::kVector;
using B = Vec::B;

// A weight is scale * (code + offset), of int4 plus the group's minimum.
struct Form {
  int mask;
  float offset;
};
constexpr Form form_of(Codec c) {
  return c == Codec::int4   ? Form{15, 0}
         : c == Codec::low3 ? Form{7, -4}
         : c == Codec::low4 ? Form{15, -8}
                            : Form{31, -16};
}
constexpr int bits_of(Codec c) { return dejavu::planes_of(c).bits; }

constexpr int kPlaneRows = 4;

// The codes of the two vectors of a chunk of a block that begins at `block`; of each, the lanes of half h.
template <Codec C, int Chunk>
inline void chunk_codes(const uint8_t* block, int h, B* first, B* second) {
  const uint8_t* at = block + h * 4 * W;
  if constexpr (C == Codec::low3) {
    const B four = Vec::load_b(at + Chunk / 2 * kVector), one = Vec::load_b(at + 2 * kVector);
    constexpr int shift = Chunk % 2 * 4;
    *first = Vec::either(Vec::field<shift, 3>(four), Vec::field<2 * Chunk - 2, 4>(one));
    *second = Vec::either(Vec::field<shift + 2, 3>(four), Vec::field<2 * Chunk - 1, 4>(one));
    return;
  }
  const B both = Vec::load_b(at + Chunk * kVector);
  *first = Vec::field<0, 15>(both), *second = Vec::field<4, 15>(both);
  if constexpr (C == Codec::low5) {  // and a plane of the highest bit
    const B one = Vec::load_b(at + 4 * kVector);
    *first = Vec::either(*first, Vec::field<2 * Chunk - 4, 16>(one));
    *second = Vec::either(*second, Vec::field<2 * Chunk - 3, 16>(one));
  }
}

// The codes of W / 8 groups from the t-th of a tail of `tails`; `alone`: of one, and anything.
template <Codec C>
inline B tail_codes(const uint8_t* tail, int tails, int t, bool alone) {
  constexpr int first = 4 * dejavu::planes_of(C).plane[0].bits;  // bytes of a group in the first plane
  const uint8_t *at = tail + first * t, *one = tail + first * tails + 4 * t;
  uint8_t copy[2 * first + 8] = {};
  if (alone) {
    if constexpr (bits_of(C) != 4) one = static_cast<uint8_t*>(memcpy(copy + 2 * first, one, 4));
    at = static_cast<uint8_t*>(memcpy(copy, at, first));
  }
  if constexpr (C == Codec::low3) {
    return Vec::either(Vec::field<0, 3>(Vec::two_bits(at)), Vec::field<-2, 4>(Vec::one_bit(one)));
  }
  const B found = Vec::both_fields<15>(at);
  if constexpr (C != Codec::low5) return found;
  return Vec::either(found, Vec::field<-4, 16>(Vec::one_bit(one)));
}

template <Codec C, int Chunk, int R>
inline void dot_chunk(const uint8_t* const* blocks, int h, const uint8_t* x, I* high, I* low) {
  x += Chunk * 4 * kVector + h * 4 * W;
  const B first_high = Vec::load_b(x), second_high = Vec::load_b(x + kVector);
  const B first_low = Vec::load_b(x + 2 * kVector), second_low = Vec::load_b(x + 3 * kVector);
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
    B first, second;
    chunk_codes<C, Chunk>(blocks[r], h, &first, &second);
    high[r] = Vec::dot_b(Vec::dot_b(high[r], first, first_high), second, second_high);
    low[r] = Vec::dot_b(Vec::dot_b(low[r], first_low, first), second_low, second);
  }
}

// total += the sums of W groups from g on of a row whose codes gave `codes`.
template <Codec C>
inline F add_groups(const RowLayout& layout, const Row& row, const GroupedInput& x, int g, I codes, F total) {
  constexpr Form form = form_of(C);
  const F s = Vec::load_f16(row.scales + g * 2), sums = Vec::load(x.sums + g), xs = Vec::load(x.scales + g);
  if constexpr (C == Codec::int4) {
    total = Vec::fma(Vec::to_float(codes), Vec::mul(s, xs), total);
    return Vec::fma(Vec::load_f16(row.scales + (layout.groups + g) * 2), sums, total);
  }
  return Vec::fma(Vec::fma(Vec::to_float(codes), xs, Vec::mul(sums, Vec::set1(form.offset))), s, total);
}

// total[r][t] += the groups after the last whole block: W groups share a vector of scales, W / 8 a vector of codes.
template <Codec C, int R, int T>
inline void add_tail(const RowLayout& layout, const Row* rows, const Row* next, const GroupedInput* in, F (*total)[T]) {
  constexpr Form form = form_of(C);
  const int whole = layout.blocks * kBlockGroups;
  const size_t before = size_t(whole) * 4 * bits_of(C);
  for (int g0 = whole; g0 < layout.groups; g0 += W) {
    const int n = layout.groups - g0 < W ? layout.groups - g0 : W;
    F scales[R];
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
      Vec::prefetch(next[r].codes + size_t(g0) * 4 * bits_of(C));
      scales[r] = Vec::load_f16_n(rows[r].scales + g0 * 2, n);
      const F offsets = C == Codec::int4 ? Vec::load_f16_n(rows[r].scales + (layout.groups + g0) * 2, n)
                                         : Vec::mul(scales[r], Vec::set1(form.offset));
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        total[r][t] = Vec::fma(offsets, Vec::load_n(in[t].sums + g0, n), total[r][t]);
      }
    }
    F xs[T];
    for (int t = 0; t < T; ++t) xs[t] = Vec::load_n(in[t].scales + g0, n);
    for (int g = g0; g < g0 + n; g += W / 8) {
      const bool alone = W == 16 && g == layout.groups - 1;  // an even one is never the first of two
      B w[R];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        w[r] = tail_codes<C>(rows[r].codes + before, layout.tails(), g - whole, alone);
      }
      DEJAVU_UNROLL for (int t = 0; t < T; ++t) {
        const size_t at = size_t(g - whole) * kGroup;
        const B x_high = Vec::load_b(in[t].tail_high + at), x_low = Vec::load_b(in[t].tail_low + at);
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
DEJAVU_NOINLINE void dot_planes(const RowLayout& layout, const Row* rows, const Row* next, const GroupedInput& in,
                                float* out) {
  F total[R][1];
  DEJAVU_UNROLL for (int r = 0; r < R; ++r) total[r][0] = Vec::zero();
  for (int b = 0; b < layout.blocks; ++b) {
    const size_t block = size_t(b) * kVector * bits_of(C);
    for (int h = 0; h < kHalves; ++h) {
      I high[R], low[R];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) high[r] = low[r] = Vec::zero_i();
      const uint8_t* blocks[R];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        blocks[r] = rows[r].codes + block;
        for (int line = 0; h == 0 && line < bits_of(C); ++line) Vec::prefetch(next[r].codes + block + line * 64);
      }
      const uint8_t* x = in.chunks + size_t(b) * kBlock * 2;
      dot_chunk<C, 0, R>(blocks, h, x, high, low);
      dot_chunk<C, 1, R>(blocks, h, x, high, low);
      dot_chunk<C, 2, R>(blocks, h, x, high, low);
      dot_chunk<C, 3, R>(blocks, h, x, high, low);
      const int g = b * kBlockGroups + h * W;
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        if (h == 0) prefetch_scales<C>(layout, next[r], g);
        total[r][0] = add_groups<C>(layout, rows[r], in, g, Vec::join_bytes(high[r], low[r]), total[r][0]);
      }
    }
  }
  add_tail<C, R, 1>(layout, rows, next, &in, total);
  sum_rows<R, 1>(total, 0, out);
}

// out[place(i)] = at(i) . input for i < n; meanwhile the rows ahead(i) are fetched.
template <Codec C, typename At, typename Ahead, typename Place>
inline void plane_rows(const RowLayout& layout, At at, Ahead ahead, Place place, int n, const void* input, float* out) {
  const GroupedInput x(layout, input);
  Row rows[kPlaneRows], next[kPlaneRows];
  float found[kPlaneRows];
  for (int i = 0; i < n;) {
    const int count = n - i < kPlaneRows ? 1 : kPlaneRows;
    for (int r = 0; r < count; ++r) rows[r] = at(i + r), next[r] = ahead(i + r);
    if (count == kPlaneRows) {
      dot_planes<C, kPlaneRows>(layout, rows, next, x, found);
    } else {
      dot_planes<C, 1>(layout, rows, next, x, found);
    }
    for (int r = 0; r < count; ++r) out[place(i + r)] = found[r];
    i += count;
  }
}

}  // namespace
