// The parts of int8 rows: the leading bits of each code and the bits that follow, each a row of its own with the same
// scales, so that the leading bits of many rows can be read without the rest. The unsigned code is 128 + the int8 one.
// What a part does not know it takes to be in the middle; with four leading bits of a code, or three:
//
//   high4  scale * (16 high + 8 - 128)      low4  scale * (low - 8)      their sum is the int8 weight
//   top3   scale * (32 high + 16 - 128)     low5  scale * (low - 16)
//
// Parts lie in planes of bits (layout.h). The specification is dejavu/nested.py.
#pragma once

#include "layout.h"

namespace dejavu {

// The parts of int8 rows that are cut behind so many leading bits: 3 or 4.
inline constexpr Codec leading_part(int bits) { return bits == 3 ? Codec::top3 : Codec::high4; }
inline constexpr Codec other_part(int bits) { return bits == 3 ? Codec::low5 : Codec::low4; }

// An MLP's neurons in two sections, made from rows of int8 or int4.
//   lead: per neuron the leading bits of gate and up (ungated: up); int4: these rows as they are
//   rest: per neuron the other bits (int4: nothing), then the down row
struct NestedMlp {
  Bundles lead;
  Bundles low;   // int8: rows = those of lead; int4: no bundles
  Bundles down;  // rows = 1

  NestedMlp() = default;
  NestedMlp(const RowLayout& layout, int dots, int count, int bits, const uint8_t* leading = nullptr,
            const uint8_t* rest = nullptr);
  size_t lead_bytes() const { return lead.bytes(); }
  size_t rest_bytes() const { return down.bytes(); }
};

// Cuts a packed bundle of int8 or int4 rows: its first rows go to bundle `bundle` of `mlp`'s sections, its last row
// becomes the down row. The memory behind the views must be zero.
void split_bundle(const Bundles& from, int bundle, const NestedMlp& mlp);
// The leading bits of every row of bundle `bundle` of int8 rows.
void leading_parts(const Bundles& from, int bundle, const Bundles& to);
// The codes of an int8 row, stored order, from its parts, of the codecs `high` and `low`; `padded` bytes.
void join_parts(const RowLayout& layout, Codec high, const uint8_t* leading, Codec low, const uint8_t* rest,
                uint8_t* codes);

// Of the codes of an int8 row its leading bits, and the middle of what these leave open.
void keep_leading(const RowLayout& layout, int bits, uint8_t* codes);

}  // namespace dejavu
