// What the row kernels share: the prepared input, and how the weights of each codec are read. Included after math.h.
#pragma once

#include <type_traits>

#include "math.h"

namespace {

using dejavu::bf16_place;
using dejavu::Bundles;
using dejavu::Codec;
using dejavu::is_grouped;
using dejavu::is_planes;
using dejavu::kBlock;
using dejavu::kBlockGroups;
using dejavu::kFloatUnit;
using dejavu::kGroup;
using dejavu::kNibbleChunk;
using dejavu::Row;
using dejavu::RowLayout;
using dejavu::Streams;
using I = Vec::I;
using H = Vec::H;

// Loops over rows and tokens: accumulators must be registers.
#define DEJAVU_UNROLL _Pragma("GCC unroll 16")
// Kernels that ranges, lists and the MLP share: one copy for every codec and number of rows and tokens.
#define DEJAVU_NOINLINE __attribute__((noinline))

constexpr int kHalves = 16 / W;  // vectors that hold one value per group of a block
constexpr int kSumRows = 16;     // rows that an axpy adds at once: the unit of rounding
constexpr int kSumSets = 2;      // so many times these rows, where several tokens share them
// Tokens that share one pass over the weights.
constexpr int kTokens = Vec::kTokens;
// Accumulators that the registers hold beside weights and inputs.
constexpr int kAccumulators = kTokens > 1 ? 2 * kTokens : 4;

// body(Count<T>) with T = tokens, 1 <= tokens <= kTokens: the number of tokens as a constant.
template <int T>
struct Count {
  static constexpr int value = T;
};
template <int T = kTokens, typename Body>
inline void with_count(int tokens, Body body) {
  if constexpr (T > 1) {
    if (tokens < T) return with_count<T - 1>(tokens, body);
  }
  body(Count<T>());
}

// body(Count<T>, first token) for all tokens, Most at a time.
template <int Most = kTokens, typename Body>
inline void each_tokens(int tokens, Body body) {
  for (int t = 0; t < tokens; t += Most) {
    with_count<Most>(tokens - t < Most ? tokens - t : Most, [&](auto count) { body(count, t); });
  }
}

// The block's input for grouped codecs: int16 codes in stored order, scales and sums per group; and the codes taken
// apart, x = 256 high + low: in natural order, as tiles are multiplied with them, and as rows in planes are. Of a block
// these are four chunks of two vectors each of high and of low bytes: byte 2 i (2 i + 1) of a vector is of its element
// i (32 + i), as in layout.h. Of the tail the high bytes of all groups, then the low ones: of each group 0, 16, 1, 17
// ...; behind both a group of zeros, so that two can be read.
struct GroupedInput {
  const int16_t* codes = nullptr;
  const float *scales = nullptr, *sums = nullptr;
  const uint8_t *high = nullptr, *low = nullptr;
  const uint8_t *chunks = nullptr, *tail_high = nullptr, *tail_low = nullptr;
  GroupedInput() = default;
  GroupedInput(const RowLayout& layout, const void* input)
      : codes((const int16_t*)input),
        scales((const float*)((const char*)input + size_t(layout.padded) * 2)),
        sums(scales + layout.groups),
        high((const uint8_t*)input + layout.bytes_at()),
        low(high + layout.padded),
        chunks(low + layout.padded),
        tail_high(chunks + size_t(layout.blocks) * kBlock * 2),
        tail_low(tail_high + size_t(layout.tails() + 1) * kGroup) {}
};

inline float f16(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  return dejavu::half_to_float(h);
#endif
}

inline uint16_t to_f16(float x) {
#if defined(__F16C__)
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT);
#else
  return dejavu::float_to_half(x);
#endif
}

// Results stand in the order of their rows.
struct InOrder {
  int operator()(int r) const { return r; }
};

// out[r] = the sum of totals[r][t]
template <int R, int T>
inline void sum_rows(const F (*totals)[T], int t, float* out) {
  if constexpr (R == 4) {
    Vec::sum_four(totals[0][t], totals[1][t], totals[2][t], totals[3][t], out);
  } else {
    for (int r = 0; r < R; ++r) out[r] = Vec::sum(totals[r][t]);
  }
}

// f32 and bf16 are read in units of 32 weights; what is left of a row by vectors, and one by one.
template <Codec C>
constexpr int kWeightBytes = C == Codec::f32 ? 4 : 2;
// Of the unit that begins with weight i, those at [h, h + W) and [16 + h, 16 + h + W); h: 0, and 8 where W is 8.
template <Codec C>
inline void load_unit(const uint8_t* codes, int i, int h, F* w) {
  const uint8_t* p = codes + size_t(i) * kWeightBytes<C> + h * 4;
  if constexpr (C == Codec::bf16) {
    Vec::load_bf16_pairs(p, &w[0], &w[1]);
  } else {
    w[0] = Vec::load((const float*)p), w[1] = Vec::load((const float*)p + 16);
  }
}
template <Codec C>
inline void prefetch_unit(const uint8_t* codes, int i, int h) {
  for (int line = 0; h == 0 && line < kFloatUnit * kWeightBytes<C>; line += 64) {
    Vec::prefetch(codes + size_t(i) * kWeightBytes<C> + line);
  }
}
// Behind the units: weights [i, i + W) of a row, and the single weight i.
template <Codec C>
inline F load_weights(const uint8_t* codes, int i) {
  const uint8_t* p = codes + size_t(i) * kWeightBytes<C>;
  return C == Codec::f32 ? Vec::load((const float*)p) : Vec::load_bf16(p);
}
template <Codec C>
inline float load_weight(const uint8_t* codes, int i) {
  float w;
  if constexpr (C == Codec::f32) {
    memcpy(&w, codes + size_t(i) * 4, 4);
  } else {
    const uint32_t bits = uint32_t(((const uint16_t*)codes)[i]) << 16;
    memcpy(&w, &bits, 4);
  }
  return w;
}

// Rows without scales that lie one behind the other (f32 and bf16) are read as a processor's own prefetcher likes it,
// and fetched no further ahead than it goes: one that is misled reads half as fast (docs/kernels.md).
constexpr size_t kPrefetchAhead = 512;  // bytes
inline Row prefetch_place(Row row) { return {row.codes + kPrefetchAhead, row.scales}; }

// Fetches the scales (and minima) of the block or tail that begins with group g.
template <Codec C>
inline void prefetch_scales(const RowLayout& layout, const Row& row, int g) {
  Vec::prefetch(row.scales + g * 2);
  if constexpr (C == Codec::int4) Vec::prefetch(row.scales + (layout.groups + g) * 2);
}

}  // namespace
