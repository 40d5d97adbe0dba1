// Dot products of one token's input with tiles (../tiles.h).
//
// As in rows_planes.h the int16 input is taken apart into bytes, x = 256 high + low; both sums are exact.
#pragma once

#include "../tiles.h"
#include "rows_planes.h"

namespace {

using dejavu::kQuads;
using dejavu::kTileRows;
using dejavu::Tiles;

// Groups whose input is in reach at a time.
constexpr int kTileGroups = 128;
// Tiles at once: from places of their own, as rows are read (Streams).
constexpr int kTilesTogether = Streams::kStreams;

struct TileInput {
  alignas(64) uint8_t high[kTileGroups * kGroup], low[kTileGroups * kGroup];  // natural order
  const float *scales, *sums;

  void take(const RowLayout& layout, const GroupedInput& x, int first, int n) {
    scales = x.scales + first, sums = x.sums + first;
    for (int i = 0; i < n; ++i) {
      const int g = first + i, block = g / kBlockGroups;
      const bool permuted = block < layout.blocks;
      const int16_t* from = x.codes + (permuted ? block * kBlock + g % kBlockGroups * 2 : g * kGroup);
      const int apart = permuted ? 32 : 2;
      for (int u = 0; u < kGroup / 2; ++u) {
        for (int e = 0; e < 2; ++e) {
          const int16_t code = from[u * apart + e];
          high[i * kGroup + 2 * u + e] = uint8_t(code >> 8);
          low[i * kGroup + 2 * u + e] = uint8_t(code);
        }
      }
    }
  }
};

// How the bits of a tile are read: what is left of a code, the weight of its unit and the offset of the middle.
template <int Stored, int Bits>
struct TileForm {
  static constexpr int mask = Stored == 3 ? 7 : (15 << (4 - Bits)) & 15;
  static constexpr float unit = Stored == 3 ? 32 : 16, offset = float(1 << (7 - Bits)) - 128;
};

// The codes of quad Q of a group, those of lanes [W h, W h + W).
template <int Stored, int Bits, int Q>
inline B quad_codes(const uint8_t* group, int h) {
  const uint8_t* at = group + h * 4 * W;
  if constexpr (Stored == 4) {
    return Vec::field<Q % 2 * 4, TileForm<4, Bits>::mask>(Vec::load_b(at + Q / 2 * 64));
  } else {
    const B two = Vec::load_b(at + Q / 4 * 64), one = Vec::load_b(at + 128);
    return Vec::either(Vec::field<Q % 4 * 2 - 1, 6>(two), Vec::field<Q, 1>(one));
  }
}

template <int Stored, int Bits, int R, int Q = 0>
inline void add_quads(const uint8_t* const* groups, int h, const uint8_t* high, const uint8_t* low, I* by_high,
                      I* by_low) {
  if constexpr (Q < kQuads) {
    const B x_high = Vec::spread_b(high + 4 * Q), x_low = Vec::spread_b(low + 4 * Q);
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
      const B codes = quad_codes<Stored, Bits, Q>(groups[r], h);
      by_high[r] = Vec::dot_b(by_high[r], codes, x_high);
      by_low[r] = Vec::dot_b(by_low[r], x_low, codes);
    }
    add_quads<Stored, Bits, R, Q + 1>(groups, h, high, low, by_high, by_low);
  }
}

// sums[r][lane] += groups [first, first + n) of tile r . x; meanwhile the bytes `ahead` behind those that are read are
// fetched.
template <int Stored, int Bits, int R>
DEJAVU_NOINLINE void add_tiles(const uint8_t* const* tiles, size_t scales_at, size_t ahead, int first, int n,
                               const TileInput& x, float (*sums)[kTileRows]) {
  using Form = TileForm<Stored, Bits>;
  for (int h = 0; h < kHalves; ++h) {
    F total[R];
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) total[r] = Vec::load(sums[r] + h * W);
    for (int g = 0; g < n; ++g) {
      const size_t codes = size_t(first + g) * Stored * 64, scales = scales_at + size_t(first + g) * kTileRows * 2;
      const uint8_t* groups[R];
      I by_high[R], by_low[R];
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        groups[r] = tiles[r] + codes;
        for (int line = 0; h == 0 && line < Stored; ++line) Vec::prefetch(groups[r] + ahead + line * 64);
        if (h == 0 && g % 2 == 0) Vec::prefetch(tiles[r] + ahead + scales);
        by_high[r] = by_low[r] = Vec::zero_i();
      }
      add_quads<Stored, Bits, R>(groups, h, x.high + g * kGroup, x.low + g * kGroup, by_high, by_low);
      const F unit = Vec::set1(x.scales[g] * Form::unit), shifted = Vec::set1(x.sums[g] * Form::offset);
      DEJAVU_UNROLL for (int r = 0; r < R; ++r) {
        const F s = Vec::load_f16(tiles[r] + scales + h * W * 2);
        const F found = Vec::to_float(Vec::join_bytes(by_high[r], by_low[r]));
        total[r] = Vec::fma(Vec::fma(found, unit, shifted), s, total[r]);
      }
    }
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) Vec::store(sums[r] + h * W, total[r]);
  }
}

// R tiles of row `row`, the first of which gives outs[0], outs[1] ... of `left` values each.
template <int Stored, int Bits, int R>
inline void tile_dots(const Tiles& t, const int* numbers, int row, int first, int n, const TileInput& x,
                      float* const* outs, const int* left) {
  const uint8_t* tiles[R];
  alignas(64) float sums[R][kTileRows] = {};
  for (int r = 0; r < R; ++r) {
    tiles[r] = t.tile(numbers[r], row);
    if (first) memcpy(sums[r], outs[r], size_t(left[r]) * sizeof(float));
  }
  add_tiles<Stored, Bits, R>(tiles, t.scales_at(), t.tile_bytes, first, n, x, sums);
  for (int r = 0; r < R; ++r) memcpy(outs[r], sums[r], size_t(left[r]) * sizeof(float));
}

template <int Stored, int Bits>
inline void all_tiles(const Tiles& t, const int32_t* list, int begin, int n, const void* input, float* const* outs) {
  const GroupedInput grouped(t.layout, input);
  const int tiles = (n + kTileRows - 1) / kTileRows;
  const Streams order(tiles);
  TileInput x;
  for (int first = 0; first < t.layout.groups; first += kTileGroups) {
    const int groups = t.layout.groups - first < kTileGroups ? t.layout.groups - first : kTileGroups;
    x.take(t.layout, grouped, first, groups);
    for (int i = 0; i < tiles;) {
      const int together = i < order.whole ? kTilesTogether : 1;
      for (int row = 0; row < t.rows; ++row) {
        int numbers[kTilesTogether], left[kTilesTogether];
        float* to[kTilesTogether];
        for (int k = 0; k < together; ++k) {
          const int at = order(i + k), rest = n - at * kTileRows;
          numbers[k] = list ? list[at] : begin + at;
          left[k] = rest < kTileRows ? rest : kTileRows;
          to[k] = outs[row] + size_t(at) * kTileRows;
        }
        if (together == kTilesTogether) {
          tile_dots<Stored, Bits, kTilesTogether>(t, numbers, row, first, groups, x, to, left);
        } else {
          tile_dots<Stored, Bits, 1>(t, numbers, row, first, groups, x, to, left);
        }
      }
      i += together;
    }
  }
}

void tile_dot(const Tiles& t, int bits, const int32_t* list, int begin, int n, const void* input, float* const* outs) {
  if (t.bits == 3) return all_tiles<3, 3>(t, list, begin, n, input, outs);
  if (bits == 4) return all_tiles<4, 4>(t, list, begin, n, input, outs);
  if (bits == 3) return all_tiles<4, 3>(t, list, begin, n, input, outs);
  all_tiles<4, 2>(t, list, begin, n, input, outs);
}

}  // namespace
