// The parts of int8 rows: the leading bits of each code, in tiles, and the bits that follow, in rows; both with the
// same scales, so that the leading bits of many rows can be read without the rest. The unsigned code is 128 + the int8
// one. What a part does not know it takes to be in the middle; with five leading bits of a code, four, or three:
//
//   scale * (8 high + 4 - 128)       low3  scale * (low - 4)      their sum is the int8 weight
//   scale * (16 high + 8 - 128)      low4  scale * (low - 8)
//   scale * (32 high + 16 - 128)     low5  scale * (low - 16)
//
// The later bits lie in planes (layout.h). The specification is dejavu/nested.py.
#pragma once

#include "tiles.h"

namespace dejavu {

// How many leading bits can lie apart, and what follows them.
inline constexpr int kFewestApart = 3, kMostApart = 5;
inline constexpr Codec other_part(int bits) { return bits == 3 ? Codec::low5 : bits == 4 ? Codec::low4 : Codec::low3; }

// An MLP's neurons in two sections, made from rows of int8 or int4.
//   lead: the leading bits of gate and up (ungated: up); int4: of each neuron these rows as they are
//   rest: the other bits of all neurons (int4: nothing), then all down rows, near each other: of many that are chosen
//         neighbours are read as one stretch
struct NestedMlp {
  Tiles lead;     // int8
  Bundles whole;  // int4: in the place of lead
  Bundles low;    // int8: rows = those of lead
  Bundles down;   // rows = 1

  NestedMlp() = default;
  NestedMlp(const RowLayout& layout, int dots, int count, int bits, const uint8_t* leading = nullptr,
            const uint8_t* rest = nullptr);
  bool cut() const { return lead.count > 0; }
  int dots() const { return cut() ? lead.rows : whole.rows; }
  size_t lead_bytes() const { return cut() ? lead.bytes() : whole.bytes(); }
  size_t rest_bytes() const { return low.bytes() + down.bytes(); }
};

// Cuts packed bundle `bundle` of int8 or int4 rows, a neuron: its first rows go to `mlp`'s sections, its last row
// becomes the down row. The memory behind the views must be zero.
void split_bundle(const Bundles& from, int bundle, const NestedMlp& mlp);
// The leading bits of every row of bundle `bundle` of int8 rows; the rows of `to` are those of all bundles.
void leading_parts(const Bundles& from, int bundle, const Tiles& to);
// The codes of row `row` of the first n int8 neurons of a tile, stored order, from their parts; n <= kTileRows, each
// row `code_bytes` behind the one before.
void join_parts(const NestedMlp& mlp, int tile, int n, int row, uint8_t* codes);

// Of the codes of an int8 row its leading bits, and the middle of what these leave open.
void keep_leading(const RowLayout& layout, int bits, uint8_t* codes);

}  // namespace dejavu
