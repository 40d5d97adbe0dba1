// The form of the block's input that dot products take.
#pragma once

#include "rows_common.h"

namespace {

void prepare_f32(const RowLayout& layout, const float* x, void* input) { memcpy(input, x, size_t(layout.d) * 4); }

// The codes of blocks and tail as rows in planes are multiplied with them; see GroupedInput.
inline void take_apart(const RowLayout& layout, const GroupedInput& x) {
  uint8_t *to = const_cast<uint8_t*>(x.chunks), *high = const_cast<uint8_t*>(x.tail_high),
          *low = const_cast<uint8_t*>(x.tail_low);
  const int16_t* from = x.codes;
  for (int chunk = 0; chunk < layout.blocks * kBlock / kNibbleChunk; ++chunk, from += kNibbleChunk) {
    for (int pair = 0; pair < 2; ++pair, to += kVector) {
      for (int h = 0; h < kHalves; ++h) {
        const int16_t* at = from + pair * kVector + h * 2 * W;
        const H a = Vec::load_h(at), b = Vec::load_h(at + kVector / 2);
        Vec::store_b(to + h * 4 * W, Vec::high_bytes(a, b));
        Vec::store_b(to + 2 * kVector + h * 4 * W, Vec::low_bytes(a, b));
      }
    }
    to += 2 * kVector;
  }
  for (int g = 0; g < layout.tails(); ++g, from += kGroup, high += kGroup, low += kGroup) {
    for (int i = 0; i < kGroup / 2; ++i) {
      const int16_t one = from[i], other = from[i + kGroup / 2];
      high[2 * i] = uint8_t(one >> 8), high[2 * i + 1] = uint8_t(other >> 8);
      low[2 * i] = uint8_t(one), low[2 * i + 1] = uint8_t(other);
    }
  }
  memset(high, 0, kGroup);
  memset(low, 0, kGroup);
}

void prepare_grouped(const RowLayout& layout, const float* x, void* input) {
  const GroupedInput to(layout, input);
  int16_t* codes = const_cast<int16_t*>(to.codes);
  float *scales = const_cast<float*>(to.scales), *sums = const_cast<float*>(to.sums);
  uint8_t *high = const_cast<uint8_t*>(to.high), *low = const_cast<uint8_t*>(to.low);
  for (int g = 0; g < layout.groups; ++g, high += kGroup, low += kGroup) {
    alignas(64) float v[kGroup];
    alignas(64) int16_t words[kGroup];
    const float* group = x + size_t(g) * kGroup;
    if (const int left = layout.d - g * kGroup; left < kGroup) {
      memset(v, 0, sizeof v);
      memcpy(v, group, size_t(left) * 4);
      group = v;
    }
    F highest = Vec::zero(), total = Vec::zero();
    for (int i = 0; i < kGroup; i += W) highest = Vec::max(highest, Vec::abs(Vec::load(group + i)));
    const float reach = Vec::maximum(highest);
    scales[g] = reach / 32767.0f;
    // Below 1e-34 the reciprocal overflows, and the products vanish beside any other group's.
    const F inverse = Vec::set1(reach > 1e-34f ? 32767.0f / reach : 0.0f);
    for (int i = 0; i < kGroup; i += W) {
      const F code = Vec::round(Vec::mul(Vec::load(group + i), inverse));
      total = Vec::add(total, code);
      Vec::store(v + i, code);
    }
    sums[g] = Vec::sum(total) * scales[g];  // of the rounded values: its error must cancel that of the codes' product
    for (int i = 0; i < kGroup; ++i) words[i] = int16_t(v[i]);
    for (int i = 0; i < kGroup; ++i) high[i] = uint8_t(words[i] >> 8), low[i] = uint8_t(words[i]);
    const int block = g / kBlockGroups, lane = g % kBlockGroups;
    if (block < layout.blocks) {
      int16_t* out = codes + block * kBlock + 2 * lane;
      for (int u = 0; u < kGroup / 2; ++u) memcpy(out + u * 32, words + 2 * u, 4);
    } else {
      memcpy(codes + g * kGroup, words, sizeof words);
    }
  }
  take_apart(layout, to);
}

}  // namespace
