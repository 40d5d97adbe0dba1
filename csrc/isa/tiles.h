// Dot products of one token's input with tiles (../tiles.h).
//
// As in rows_planes.h the int16 input comes as high and low bytes; both sums are exact.
#pragma once

#include "../tiles.h"
#include "rows_planes.h"

namespace {

using dejavu::kQuads;
using dejavu::kTileRows;
using dejavu::Tiles;

// Tiles at once: from places of their own, as rows are read (Streams).
constexpr int kTilesTogether = Streams::kStreams;

// A weight is scale * (unit * code + offset), the middle of what the bits leave open.
template <int Stored, int Bits>
struct TileForm {
  static constexpr float unit = float(1 << (8 - Stored)), offset = float(1 << (7 - Bits)) - 128;
};

// The codes of quad Q of a group, those of lanes [W h, W h + W).
template <int Stored, int Bits, int Q>
inline B quad_codes(const uint8_t* group, int h) {
  const uint8_t* at = group + h * 4 * W;
  if constexpr (Stored == 4) return Vec::field<Q % 2 * 4, (15 << (4 - Bits)) & 15>(Vec::load_b(at + Q / 2 * 64));
  const B lowest = Vec::field<Q, 1>(Vec::load_b(at + (Stored - 1) * 64));
  if constexpr (Stored == 3) return Vec::either(Vec::field<Q % 4 * 2 - 1, 6>(Vec::load_b(at + Q / 4 * 64)), lowest);
  return Vec::either(Vec::field<Q % 2 * 4 - 1, 30>(Vec::load_b(at + Q / 2 * 64)), lowest);
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

// outs[r][0, left[r]) = the dots of the R tiles at `tiles` with x; meanwhile what lies `ahead` of each is fetched.
template <int Stored, int Bits, int R>
DEJAVU_NOINLINE void dot_tiles(const Tiles& t, size_t ahead, const uint8_t* const* tiles, const GroupedInput& x,
                               float* const* outs, const int* left) {
  using Form = TileForm<Stored, Bits>;
  const size_t scales_at = t.scales_at();
  alignas(64) float found[R][kTileRows];
  for (int h = 0; h < kHalves; ++h) {
    F total[R];
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) total[r] = Vec::zero();
    for (int g = 0; g < t.layout.groups; ++g) {
      const size_t codes = size_t(g) * Stored * 64, scales = scales_at + size_t(g) * kTileRows * 2;
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
        const F sum = Vec::to_float(Vec::join_bytes(by_high[r], by_low[r]));
        total[r] = Vec::fma(Vec::fma(sum, unit, shifted), s, total[r]);
      }
    }
    DEJAVU_UNROLL for (int r = 0; r < R; ++r) Vec::store(found[r] + h * W, total[r]);
  }
  for (int r = 0; r < R; ++r) memcpy(outs[r], found[r], size_t(left[r]) * sizeof(float));
}

template <int Stored, int Bits>
inline void all_tiles(const Tiles& t, int first, int rows, const int32_t* list, int begin, int n, const void* input,
                      float* const* outs) {
  const GroupedInput x(t.layout, input);
  const int tiles = (n + kTileRows - 1) / kTileRows;
  const Streams order(tiles);
  const size_t ahead = t.tile_bytes * size_t(rows == t.rows ? 1 : t.rows);  // the next tile that is read
  for (int i = 0; i < tiles;) {
    const int together = i < order.whole ? kTilesTogether : 1;
    for (int row = 0; row < rows; ++row) {
      const uint8_t* places[kTilesTogether];
      int left[kTilesTogether];
      float* to[kTilesTogether];
      for (int k = 0; k < together; ++k) {
        const int at = order(i + k), rest = n - at * kTileRows;
        places[k] = t.tile(list ? list[at] : begin + at, first + row);
        left[k] = rest < kTileRows ? rest : kTileRows;
        to[k] = outs[row] + size_t(at) * kTileRows;
      }
      if (together == kTilesTogether) {
        dot_tiles<Stored, Bits, kTilesTogether>(t, ahead, places, x, to, left);
      } else {
        dot_tiles<Stored, Bits, 1>(t, ahead, places, x, to, left);
      }
    }
    i += together;
  }
}

void tile_dot(const Tiles& t, int bits, int first, int rows, const int32_t* list, int begin, int n, const void* input,
              float* const* outs) {
  if (t.bits == 3) return all_tiles<3, 3>(t, first, rows, list, begin, n, input, outs);
  if (t.bits == 5) return all_tiles<5, 5>(t, first, rows, list, begin, n, input, outs);
  if (bits == 4) return all_tiles<4, 4>(t, first, rows, list, begin, n, input, outs);
  if (bits == 3) return all_tiles<4, 3>(t, first, rows, list, begin, n, input, outs);
  all_tiles<4, 2>(t, first, rows, list, begin, n, input, outs);
}

}  // namespace
