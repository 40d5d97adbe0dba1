#include "halves.h"

#include <cstring>

namespace dejavu {
namespace {

// Where a view was made over memory that is being filled.
uint8_t* writable(const uint8_t* p) { return const_cast<uint8_t*>(p); }

// Element of a row, stored order, that the lower (upper) half of byte `i` of the row's nibbles holds.
struct Places {
  int lower, upper;
};
Places places(const RowLayout& layout, int i) {
  const int o = 2 * i;
  if (o >= layout.blocks * kBlock) {
    const int group = o / kGroup * kGroup, at = i % (kGroup / 2);
    return {group + at, group + kGroup / 2 + at};
  }
  const int at = i % 64, element = o / kNibbleChunk * kNibbleChunk + at % 2 * 32 + at / 2;
  return {element, element + kNibbleChunk / 2};
}

void split_row(const RowLayout& layout, const Row& from, const Row& high, const Row* low) {
  for (int i = 0; i < layout.padded / 2; ++i) {
    const Places at = places(layout, i);
    const unsigned a = from.codes[at.lower] ^ 128u, b = from.codes[at.upper] ^ 128u;
    writable(high.codes)[i] = uint8_t(a >> 4 | (b & 240u));
    if (low) writable(low->codes)[i] = uint8_t((a & 15u) | (b & 15u) << 4);
  }
  std::memcpy(writable(high.scales), from.scales, layout.scale_bytes);
  if (low) std::memcpy(writable(low->scales), from.scales, layout.scale_bytes);
}

void copy_row(const RowLayout& layout, const Row& from, const Row& to) {
  std::memcpy(writable(to.codes), from.codes, layout.code_bytes);
  std::memcpy(writable(to.scales), from.scales, layout.scale_bytes);
}

}  // namespace

NestedMlp::NestedMlp(const RowLayout& layout, int dots, int count, const uint8_t* leading, const uint8_t* rest) {
  const bool halved = layout.codec == Codec::int8;
  lead = Bundles(halved ? RowLayout(Codec::high4, layout.d) : layout, dots, count, leading);
  low = Bundles(RowLayout(Codec::low4, layout.d), dots, halved ? count : 0, rest);
  down = Bundles(layout, 1, count, rest);
  if (!halved) return;
  const size_t before = size_t(dots) * (low.layout.code_bytes + low.layout.scale_bytes);
  low.stride = down.stride = (before + layout.code_bytes + layout.scale_bytes + 63) / 64 * 64;
  if (rest) down.base = rest + before;
}

void split_bundle(const Bundles& from, int bundle, const NestedMlp& mlp) {
  for (int r = 0; r < mlp.lead.rows; ++r) {
    if (mlp.low.count) {
      const Row low = mlp.low.row(bundle, r);
      split_row(from.layout, from.row(bundle, r), mlp.lead.row(bundle, r), &low);
    } else {
      copy_row(from.layout, from.row(bundle, r), mlp.lead.row(bundle, r));
    }
  }
  copy_row(from.layout, from.row(bundle, mlp.lead.rows), mlp.down.row(bundle, 0));
}

void leading_halves(const Bundles& from, int bundle, const Bundles& to) {
  for (int r = 0; r < from.rows; ++r) split_row(from.layout, from.row(bundle, r), to.row(bundle, r), nullptr);
}

void join_halves(const RowLayout& layout, const uint8_t* high, const uint8_t* low, uint8_t* codes) {
  for (int i = 0; i < layout.padded / 2; ++i) {
    const Places at = places(layout, i);
    codes[at.lower] = uint8_t(((high[i] & 15u) << 4 | (low[i] & 15u)) ^ 128u);
    codes[at.upper] = uint8_t(((high[i] & 240u) | low[i] >> 4) ^ 128u);
  }
}

}  // namespace dejavu
