// The form of the block's input that dot products take.
#pragma once

#include "rows_common.h"

namespace {

void prepare_f32(const RowLayout& layout, const float* x, void* input) { memcpy(input, x, size_t(layout.d) * 4); }

void prepare_grouped(const RowLayout& layout, const float* x, void* input) {
  int16_t* codes = (int16_t*)input;
  float* scales = (float*)((char*)input + size_t(layout.padded) * 2);
  float* sums = scales + layout.groups;
  for (int g = 0; g < layout.groups; ++g) {
    float v[kGroup] = {};
    const int left = layout.d - g * kGroup;
    memcpy(v, x + size_t(g) * kGroup, size_t(left < kGroup ? left : kGroup) * 4);
    F highest = Vec::zero(), total = Vec::zero();
    for (int i = 0; i < kGroup; i += W) highest = Vec::max(highest, Vec::abs(Vec::load(v + i)));
    const float reach = Vec::maximum(highest);
    scales[g] = reach / 32767.0f;
    // Below 1e-34 the reciprocal overflows, and the products vanish beside any other group's.
    const F inverse = Vec::set1(reach > 1e-34f ? 32767.0f / reach : 0.0f);
    for (int i = 0; i < kGroup; i += W) {
      const F code = Vec::round(Vec::mul(Vec::load(v + i), inverse));
      total = Vec::add(total, code);
      Vec::store(v + i, code);
    }
    sums[g] = Vec::sum(total) * scales[g];  // of the rounded values: its error must cancel that of the codes' product
    const int block = g / kBlockGroups, lane = g % kBlockGroups;
    if (block < layout.blocks) {
      int16_t* out = codes + block * kBlock + 2 * lane;
      for (int u = 0; u < kGroup / 2; ++u) {
        out[u * 32] = int16_t(v[2 * u]);
        out[u * 32 + 1] = int16_t(v[2 * u + 1]);
      }
    } else {
      for (int i = 0; i < kGroup; ++i) codes[g * kGroup + i] = int16_t(v[i]);
    }
  }
}

}  // namespace
