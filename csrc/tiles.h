// The leading bits of int8 rows, sixteen rows side by side. They are always read for all rows, so that nothing has to
// be found: lane l of a vector of 16 belongs to row l, and no sum goes across lanes.
//
// A tile holds, group by group, the codes of sixteen rows, then, group by group, their sixteen float16 scales; it is
// padded to 64 bytes. A group has eight quads of four weights. Those of sixteen rows are a vector of 64 codes: byte 4 l
// + i is weight i of row l. Of four bits, vector 2 v is in the lower halves of 64 bytes and 2 v + 1 in the upper ones;
// of three, the two higher bits of vectors 4 v to 4 v + 3 share 64 bytes, and then the lowest bits of all eight share
// 64; the first vector is in the lowest bits. Of five the four higher bits come as of four, and then the lowest ones.
//
// What the bits say of a weight is the middle of what they leave open: see parts.h. The specification is
// dejavu/nested.py.
#pragma once

#include "layout.h"

namespace dejavu {

inline constexpr int kTileRows = 16, kQuads = 8;

// Tiles of `count` neurons: of each sixteen neurons one tile per row (gate, then up), one after the other.
struct Tiles {
  RowLayout layout;  // of the int8 rows
  int bits = 0;      // 3, 4 or 5
  int rows = 0;
  int count = 0;  // neurons; those that are missing in the last tiles are zero
  size_t tile_bytes = 0;
  const uint8_t* base = nullptr;

  Tiles() = default;
  Tiles(int d, int bits_, int rows_, int count_, const uint8_t* base_ = nullptr)
      : layout(Codec::int8, d), bits(bits_), rows(rows_), count(count_), base(base_) {
    tile_bytes = (scales_at() + size_t(layout.groups) * kTileRows * 2 + 63) / 64 * 64;
  }
  int tiles() const { return (count + kTileRows - 1) / kTileRows; }
  size_t scales_at() const { return size_t(layout.groups) * size_t(bits) * 64; }
  size_t bytes() const { return tile_bytes * size_t(rows) * size_t(tiles()); }
  const uint8_t* tile(int number, int row) const {
    return base + tile_bytes * (size_t(number) * size_t(rows) + size_t(row));
  }
};

// Writes the leading bits of an int8 row as row `row` of neuron `neuron`; the memory behind must be zero.
void put_in_tile(const Tiles& to, int neuron, int row, const Row& from);
// The leading bits of row `row` of the first n neurons of a tile, at their place in unsigned codes, the other bits
// zero; stored order, each row `code_bytes` behind the one before.
void take_tile(const Tiles& from, int tile, int n, int row, uint8_t* codes);

}  // namespace dejavu
