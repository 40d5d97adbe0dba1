// The halves of int8 rows: the leading four bits of each code (high4) and the four that follow (low4), each a row of
// its own with the same scales, so that the leading bits of many rows can be read without the rest. The unsigned code
// is 128 + the int8 one. What a half does not know it takes to be in the middle:
//
//   high4  scale * (16 high + 7.5 - 128)      low4  scale * (low - 7.5)      their sum is the int8 weight
//
// Nibbles lie as those of int4 (layout.h). The specification is dejavu/nested.py.
#pragma once

#include "layout.h"

namespace dejavu {

// An MLP's neurons in two sections, made from rows of int8 or int4.
//   lead: per neuron the leading halves of gate and up (ungated: up); int4: these rows as they are
//   rest: per neuron the other halves (int4: nothing), then the down row
struct NestedMlp {
  Bundles lead;
  Bundles low;   // int8: rows = those of lead; int4: no bundles
  Bundles down;  // rows = 1

  NestedMlp() = default;
  NestedMlp(const RowLayout& layout, int dots, int count, const uint8_t* leading = nullptr,
            const uint8_t* rest = nullptr);
  size_t lead_bytes() const { return lead.bytes(); }
  size_t rest_bytes() const { return down.bytes(); }
};

// Cuts a packed bundle of int8 or int4 rows: its first rows go to bundle `bundle` of `mlp`'s sections, its last row
// becomes the down row. The memory behind the views must be zero.
void split_bundle(const Bundles& from, int bundle, const NestedMlp& mlp);
// The leading half of every row of bundle `bundle` of int8 rows.
void leading_halves(const Bundles& from, int bundle, const Bundles& to);
// The codes of an int8 row, stored order, from its halves; `padded` bytes.
void join_halves(const RowLayout& layout, const uint8_t* high, const uint8_t* low, uint8_t* codes);

}  // namespace dejavu
