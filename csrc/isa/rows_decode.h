// Rows of weights as float32, for the batched products.
#pragma once

#include "rows_common.h"

namespace {

constexpr int kVectorsPerUnit = 32 / W;  // float vectors of the 32 elements of a unit

template <Codec C>
void decode(const RowLayout& layout, Row row, int begin, int end, float* out) {
  out -= begin;
  if constexpr (C == Codec::f32) {
    memcpy(out + begin, row.codes + size_t(begin) * 4, size_t(end - begin) * 4);
    return;
  } else if constexpr (C == Codec::bf16) {
    int i = begin;
    const auto single = [&] { out[i] = load_weight<C>(row.codes, bf16_place(layout.d, i)), ++i; };
    while (i < end && i % kFloatUnit) single();
    for (; i + kFloatUnit <= end; i += kFloatUnit) {
      for (int h = 0; h < kFloatUnit / 2; h += W) {
        F w[2];
        load_unit<C>(row.codes, i, h, w);
        Vec::store(out + i + h, w[0]), Vec::store(out + i + 16 + h, w[1]);
      }
    }
    while (i < end) single();
    return;
  } else {
    constexpr bool int4 = C == Codec::int4;
    int o = begin;
    while (o < end && o < layout.blocks * kBlock) {
      const int b = o / kBlock, stop = end < (b + 1) * kBlock ? end : (b + 1) * kBlock;
      F s[kVectorsPerUnit], m[kVectorsPerUnit];
      float scales[kBlockGroups], minima[kBlockGroups];
      for (int h = 0; h < kHalves; ++h) {
        const int g = b * kBlockGroups + h * W;
        Vec::store(scales + h * W, Vec::load_f16(row.scales + g * 2));
        if constexpr (int4) Vec::store(minima + h * W, Vec::load_f16(row.scales + (layout.groups + g) * 2));
      }
      for (int v = 0; v < kVectorsPerUnit; ++v) {
        s[v] = Vec::pairs(scales + v * W / 2);
        if constexpr (int4) m[v] = Vec::pairs(minima + v * W / 2);
      }
      for (; o < stop; o += 64) {
        for (int v = 0; v < kVectorsPerUnit; ++v) {
          if constexpr (int4) {  // the lower (upper) halves of 64 bytes
            const I w = Vec::load_u16(row.codes + o / kNibbleChunk * (kNibbleChunk / 2) + v * W * 2);
            const bool upper = o % kNibbleChunk != 0;
            const F a = upper ? Vec::nibble<4>(w) : Vec::nibble<0>(w);
            const F b = upper ? Vec::nibble<12>(w) : Vec::nibble<8>(w);
            Vec::store(out + o + v * W, Vec::fma(a, s[v], m[v]));
            Vec::store(out + o + 32 + v * W, Vec::fma(b, s[v], m[v]));
          } else {
            Vec::store(out + o + v * W, Vec::mul(Vec::load_i8(row.codes + o + v * W), s[v]));
            Vec::store(out + o + 32 + v * W, Vec::mul(Vec::load_i8(row.codes + o + 32 + v * W), s[v]));
          }
        }
      }
    }
    for (; o < end; o += kGroup) {
      const int g = o / kGroup;
      const F s = Vec::set1(f16(row.scales + g * 2));
      if constexpr (int4) {
        const F m = Vec::set1(f16(row.scales + (layout.groups + g) * 2));
        for (int i = 0; i < kGroup / 2; i += W) {
          const I w = Vec::load_u8(row.codes + o / 2 + i);
          Vec::store(out + o + i, Vec::fma(Vec::nibble<0>(w), s, m));
          Vec::store(out + o + 16 + i, Vec::fma(Vec::nibble<4>(w), s, m));
        }
      } else {
        for (int i = 0; i < kGroup; i += W) Vec::store(out + o + i, Vec::mul(Vec::load_i8(row.codes + o + i), s));
      }
    }
  }
}

}  // namespace
