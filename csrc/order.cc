#include "order.h"

#include <cstring>

namespace dejavu {
namespace {

// A block is sixteen groups of sixteen pairs of weights; stored, pair u of group g comes at place u * 16 + g.
void transpose_pairs(const float* from, float* to) {
  for (int i = 0; i < kBlockGroups; ++i) {
    for (int j = 0; j < kBlockGroups; ++j) {
      std::memcpy(to + 2 * (j * kBlockGroups + i), from + 2 * (i * kBlockGroups + j), 2 * sizeof(float));
    }
  }
}

// Blocks without padding; the last block has some if d is a little less than whole blocks.
int whole_blocks(const RowLayout& layout) {
  return layout.d / kBlock < layout.blocks ? layout.d / kBlock : layout.blocks;
}

}  // namespace

void to_stored_order(const RowLayout& layout, const float* natural, float* stored) {
  const int whole = whole_blocks(layout), tail = layout.blocks * kBlock;
  for (int b = 0; b < whole; ++b) transpose_pairs(natural + b * kBlock, stored + b * kBlock);
  for (int o = whole * kBlock; o < tail; ++o) {
    const int i = layout.natural(o);
    stored[o] = i < layout.d ? natural[i] : 0.0f;
  }
  if (layout.d <= tail) return;
  std::memcpy(stored + tail, natural + tail, size_t(layout.d - tail) * sizeof(float));
  std::memset(stored + layout.d, 0, size_t(layout.padded - layout.d) * sizeof(float));
}

void to_natural_order(const RowLayout& layout, const float* stored, float* natural) {
  const int whole = whole_blocks(layout), tail = layout.blocks * kBlock;
  for (int b = 0; b < whole; ++b) transpose_pairs(stored + b * kBlock, natural + b * kBlock);
  for (int o = whole * kBlock; o < tail; ++o) {
    const int i = layout.natural(o);
    if (i < layout.d) natural[i] = stored[o];
  }
  if (layout.d > tail) std::memcpy(natural + tail, stored + tail, size_t(layout.d - tail) * sizeof(float));
}

}  // namespace dejavu
