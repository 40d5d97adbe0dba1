// Bit planes: rows of int8 or int4 codes, cut by significance, so that the leading bits of many rows can be read
// without the rest. The code of a weight is unsigned here (int8: plus 128); its bits are cut into planes of
// `plane_width` bits, the most significant first. Scales and minima are those of the whole code.
//
// A row of one plane is a sequence of chunks of 64 weights. A chunk's weights stand for 64 bytes, of which a plane of w
// bits keeps 8 w: byte i has those of places i, i + 8 w, i + 16 w, ..., w bits each, from the lowest bits on. Every
// plane then unpacks to the same vector of 64 bytes by shifts and masks alone. The specification is dejavu/nested.py.
#pragma once

#include "layout.h"

namespace dejavu {

inline constexpr int kChunk = 64;
inline constexpr int kMaxPlanes = 4;
inline constexpr int kLeadingPlanes = 3;  // 2, 1 and 1 bits; the fourth plane (int8) has 4

inline constexpr int plane_count(Codec codec) { return codec == Codec::int8 ? 4 : codec == Codec::int4 ? 3 : 0; }
inline constexpr int plane_width(int plane) { return plane == 0 ? 2 : plane == 3 ? 4 : 1; }
// Bits of the planes [first, last).
inline constexpr int plane_bits(int first, int last) {
  int bits = 0;
  for (int p = first; p < last; ++p) bits += plane_width(p);
  return bits;
}

// Place of element `i` of a chunk in stored order among the chunk's 64 bytes. Two int16 vectors of the prepared input
// are interleaved byte by byte: units 2v and 2v + 1 of a block, or (in the tail) the halves of both groups. Any four
// neighbouring bytes belong to one group.
inline constexpr int chunk_place(bool block, int i) {
  return block ? i % 32 * 2 + i / 32 : i / 32 * 32 + i % 16 * 2 + i % 32 / 16;
}

// `count` units (a neuron, a row of the head) of `rows` rows each. A view.
struct Planes {
  RowLayout layout;
  int rows = 0;  // per unit: gate and up, or one
  int count = 0;
  int planes = 0;
  const uint8_t* base[kMaxPlanes] = {};
  size_t stride[kMaxPlanes] = {};  // from unit to unit
  size_t row_bytes[kMaxPlanes] = {};
  const uint8_t* scales = nullptr;
  size_t scale_stride = 0;
  size_t bytes = 0;  // of the section that holds the streamed planes and the scales

  Planes() = default;
  // A section: `streamed` planes one after the other, each contiguous over all units, then the scales; every part
  // begins at a multiple of 64 bytes.
  Planes(RowLayout layout_, int rows_, int count_, int streamed, const uint8_t* section = nullptr)
      : layout(layout_), rows(rows_), count(count_), planes(plane_count(layout_.codec)) {
    const size_t chunks = size_t(layout.padded + kChunk - 1) / kChunk;
    for (int p = 0; p < planes; ++p) {
      row_bytes[p] = chunks * size_t(plane_width(p)) * 8;
      if (p >= streamed) continue;
      base[p] = section ? section + bytes : nullptr;
      stride[p] = row_bytes[p] * size_t(rows);
      bytes += aligned(stride[p] * size_t(count));
    }
    scales = section ? section + bytes : nullptr;
    scale_stride = layout.scale_bytes * size_t(rows);
    bytes += aligned(scale_stride * size_t(count));
  }

  int bits(int first, int last) const { return plane_bits(first, last); }
  int rest(int last) const { return plane_bits(last, planes); }  // bits after the first `last` planes
  const uint8_t* row(int plane, int unit, int r) const {
    return base[plane] + stride[plane] * size_t(unit) + row_bytes[plane] * size_t(r);
  }
  const uint8_t* scale(int unit, int r) const {
    return scales + scale_stride * size_t(unit) + layout.scale_bytes * size_t(r);
  }
  // estimate(last) - estimate(first) is scale * (code bits of the planes, in place, + this) (+ min where first is 0).
  float offset(int first, int last) const { return middle(last) - (first ? middle(first) : 0.0f); }

 private:
  static size_t aligned(size_t n) { return (n + 63) / 64 * 64; }
  float middle(int last) const {
    return float((1 << rest(last)) - 1) * 0.5f - (layout.codec == Codec::int8 ? 128.0f : 0.0f);
  }
};

// An MLP's neurons as two sections: the leading planes of gate and up (ungated: up) of all neurons, and a bundle per
// neuron: the fourth plane of these rows (int8), codes and scales of the down row, padded to 64 bytes.
struct NestedMlp {
  Planes planes;
  Bundles down;  // rows = 1; bytes() are those of the section of bundles

  NestedMlp() = default;
  NestedMlp(RowLayout layout, int dots, int count, const uint8_t* leading = nullptr, const uint8_t* bundles = nullptr)
      : planes(layout, dots, count, kLeadingPlanes, leading), down(layout, 1, count) {
    const size_t rest = layout.codec == Codec::int8 ? planes.row_bytes[kLeadingPlanes] * size_t(dots) : 0;
    down.stride = (rest + layout.code_bytes + layout.scale_bytes + 63) / 64 * 64;
    down.base = bundles ? bundles + rest : nullptr;
    if (rest) {
      planes.base[kLeadingPlanes] = bundles;
      planes.stride[kLeadingPlanes] = down.stride;
    }
  }
};

// Cuts a packed bundle: its first rows go to unit `bundle` of `planes`, the row after them (where `down` is given) to
// bundle `bundle` of `down`. The memory behind both views must be zero.
void split_bundle(const Bundles& from, int bundle, const Planes& planes, const Bundles* down);

}  // namespace dejavu
