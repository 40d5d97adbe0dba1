// Dot products with bit planes. Included after rows.h.
//
// The int16 input is taken apart into high and low bytes, x = 256 high + low, so that codes are multiplied as the bytes
// that they unpack to; both sums are exact. Codes of up to six bits fit (Vec::dot_b).
#pragma once

#include "rows.h"

namespace {

using dejavu::kChunk;
using dejavu::kMaxPlanes;
using dejavu::Planes;
using B = Vec::B;

constexpr int kPlaneRows = 4;
constexpr int kChunksPerBlock = kBlock / kChunk;

struct PlaneRow {
  const uint8_t* planes[kMaxPlanes];
  const uint8_t* scales;
};

// Planes [First, Last) of one chunk: 4 W of its 64 bytes, the lowest bit of plane Last - 1 (of the leading planes: that
// of plane 2) being bit 0.
template <int First, int Last, int P = First>
inline B unpack(const PlaneRow& row, int chunk, int half, B x) {
  if constexpr (P == Last) {
    return x;
  } else {
    constexpr int bits = dejavu::plane_width(P), shift = dejavu::plane_bits(P + 1, Last > 3 ? Last : 3);
    return unpack<First, Last, P + 1>(row, chunk, half,
                                      Vec::or_plane<bits, shift>(x, row.planes[P] + chunk * bits * 8, half));
  }
}

// Fetches a chunk of the planes where it begins a cache line's worth.
template <int First, int Last>
inline void prefetch_planes(const PlaneRow& row, int chunk) {
  for (int p = First; p < Last; ++p) {
    const int bytes = 8 * dejavu::plane_width(p);
    if (chunk % (64 / bytes) == 0) Vec::prefetch(row.planes[p] + chunk * bytes);
  }
}

// What one pass needs besides the rows: out = sum over groups of scale * (unit * codes . x + offset * sum of x) (+
// min).
struct PlaneInput {
  GroupedInput x;
  const int16_t* last;  // words of the tail's last chunk, which may be half a one
  float unit, offset;
};

template <int First, int Last, int R>
inline void chunk_dot(const PlaneRow* rows, int chunk, int half, H x0, H x1, I* high, I* low) {
  const B xh = Vec::high_bytes(x0, x1), xl = Vec::low_bytes(x0, x1);
  for (int r = 0; r < R; ++r) {
    const B codes = unpack<First, Last>(rows[r], chunk, half, Vec::zero_b());
    high[r] = Vec::dot_b(high[r], codes, xh);
    low[r] = Vec::dot_b(low[r], xl, codes);
  }
}

template <int First, int Last, bool Minima, int R>
inline void dot_planes(const RowLayout& layout, const PlaneRow* rows, const PlaneRow* next, const PlaneInput& in,
                       float* out) {
  F total[R];
  for (int r = 0; r < R; ++r) total[r] = Vec::zero();
  const F unit = Vec::set1(in.unit), offset = Vec::set1(in.offset);
  for (int b = 0; b < layout.blocks; ++b) {
    for (int h = 0; h < kHalves; ++h) {
      I high[R], low[R];
      for (int r = 0; r < R; ++r) high[r] = low[r] = Vec::zero_i();
#pragma GCC unroll 8
      for (int v = 0; v < kChunksPerBlock; ++v) {
        const int chunk = b * kChunksPerBlock + v;
        const int16_t* x = in.x.codes + chunk * kChunk + h * 2 * W;
        for (int r = 0; h == 0 && r < R; ++r) prefetch_planes<First, Last>(next[r], chunk);
        chunk_dot<First, Last, R>(rows, chunk, h, Vec::load_h(x), Vec::load_h(x + 32), high, low);
      }
      const int g = b * kBlockGroups + h * W;
      const F sums = Vec::load(in.x.sums + g), shifted = Vec::mul(sums, offset);
      const F xs = Vec::mul(Vec::load(in.x.scales + g), unit);
      for (int r = 0; r < R; ++r) {
        if (h == 0) Vec::prefetch(next[r].scales + g * 2);
        if (Minima && h == 0) Vec::prefetch(next[r].scales + (layout.groups + g) * 2);
        const F codes = Vec::fma(Vec::to_float(Vec::join_bytes(high[r], low[r])), xs, shifted);
        total[r] = Vec::fma(codes, Vec::load_f16(rows[r].scales + g * 2), total[r]);
        if constexpr (Minima) {
          total[r] = Vec::fma(Vec::load_f16(rows[r].scales + (layout.groups + g) * 2), sums, total[r]);
        }
      }
    }
  }
  // The tail: W groups share a vector of scales, two a chunk.
  for (int g0 = layout.blocks * kBlockGroups; g0 < layout.groups; g0 += W) {
    const int n = layout.groups - g0 < W ? layout.groups - g0 : W;
    const F sums = Vec::load_n(in.x.sums + g0, n), shifted = Vec::mul(sums, offset);
    const F xs = Vec::mul(Vec::load_n(in.x.scales + g0, n), unit);
    F scales[R];
    for (int r = 0; r < R; ++r) {
      const F s = Vec::load_f16_n(rows[r].scales + g0 * 2, n);
      total[r] = Vec::fma(s, shifted, total[r]);
      scales[r] = Vec::mul(s, xs);
      if constexpr (Minima) {
        total[r] = Vec::fma(Vec::load_f16_n(rows[r].scales + (layout.groups + g0) * 2, n), sums, total[r]);
      }
    }
    for (int g = g0; g < g0 + n; g += 2) {
      const int16_t* words = g + 2 < layout.groups ? in.x.codes + g * kGroup : in.last;
      for (int r = 0; r < R; ++r) prefetch_planes<First, Last>(next[r], g / 2);
      for (int h = 0; h < kHalves && g + h < g0 + n; ++h) {
        const int16_t* x = words + h * kGroup;
        I high[R], low[R];
        for (int r = 0; r < R; ++r) high[r] = low[r] = Vec::zero_i();
        chunk_dot<First, Last, R>(rows, g / 2, h, Vec::load_split(x), Vec::load_split(x + 16), high, low);
        for (int r = 0; r < R; ++r) {
          const F codes = Vec::to_float(Vec::join_bytes(high[r], low[r]));
          total[r] = Vec::fma(codes, Vec::spread(scales[r], g - g0 + h), total[r]);
        }
      }
    }
  }
  for (int r = 0; r < R; ++r) out[r] = Vec::sum(total[r]);
}

// The leading half of an int8 code and the other one do not fit one pass.
template <int First, int Last, bool Minima, int R>
inline void dot_rows(const Planes& planes, const PlaneRow* rows, const PlaneRow* next, const GroupedInput& x,
                     const int16_t* tail, float* out) {
  if constexpr (First == 0 && Last == 4) {
    float rest[R];
    dot_rows<0, 3, Minima, R>(planes, rows, next, x, tail, out);
    dot_rows<3, 4, false, R>(planes, rows, next, x, tail, rest);
    for (int r = 0; r < R; ++r) out[r] += rest[r];
  } else {
    const int below = Last == 4 ? 0 : planes.rest(3);  // bits of the code below the leading planes
    const PlaneInput in = {x, tail, float(1 << below), planes.offset(First, Last)};
    dot_planes<First, Last, Minima, R>(planes.layout, rows, next, in, out);
  }
}

// The rows of units list[at], list[at + 1], ..., and after the last unit that one again, for prefetching.
template <int First, int Last>
struct RowCursor {
  const Planes& planes;
  const int32_t* units;
  int at, end, r;

  PlaneRow take() {
    const int unit = units ? units[at] : at;
    PlaneRow row;
    for (int p = First; p < Last; ++p) row.planes[p] = planes.row(p, unit, r);
    row.scales = planes.scale(unit, r);
    if (++r == planes.rows) r = 0, at += at + 1 < end;
    return row;
  }
};

template <int First, int Last, bool Minima>
void dot_units(const Planes& planes, const int32_t* units, int begin, int end, const void* input, float* out) {
  const RowLayout& layout = planes.layout;
  const GroupedInput x(layout, input);
  int16_t tail[kChunk] = {};
  const int left = layout.padded % kChunk ? kGroup : kChunk;
  memcpy(tail, x.codes + layout.padded - left, size_t(left) * 2);
  RowCursor<First, Last> cursor = {planes, units, begin, end, 0};
  PlaneRow rows[kPlaneRows], next[kPlaneRows];
  const int n = (end - begin) * planes.rows;
  if (n > 0) {
    for (int r = 0; r < kPlaneRows; ++r) next[r] = cursor.take();
  }
  int i = 0;
  for (; i + kPlaneRows <= n; i += kPlaneRows) {
    for (int r = 0; r < kPlaneRows; ++r) rows[r] = next[r], next[r] = cursor.take();
    dot_rows<First, Last, Minima, kPlaneRows>(planes, rows, next, x, tail, out + i);
  }
  for (int r = 0; i + r < n; ++r) {
    dot_rows<First, Last, Minima, 1>(planes, next + r, next + r, x, tail, out + i + r);
  }
}

void planes_dot(const Planes& planes, const int32_t* units, int begin, int end, int first, int last, const void* input,
                float* out) {
  using Dot = void (*)(const Planes&, const int32_t*, int, int, const void*, float*);
  static constexpr Dot int8[4][4] = {
      {dot_units<0, 1, false>, dot_units<0, 2, false>, dot_units<0, 3, false>, dot_units<0, 4, false>},
      {nullptr, dot_units<1, 2, false>, dot_units<1, 3, false>, dot_units<1, 4, false>},
      {nullptr, nullptr, dot_units<2, 3, false>, dot_units<2, 4, false>},
      {nullptr, nullptr, nullptr, dot_units<3, 4, false>}};
  static constexpr Dot int4[3] = {dot_units<0, 1, true>, dot_units<0, 2, true>, dot_units<0, 3, true>};
  const bool minima = planes.layout.codec == Codec::int4 && first == 0;
  (minima ? int4[last - 1] : int8[first][last - 1])(planes, units, begin, end, input, out);
}

// All planes of one chunk, weights in stored order.
template <Codec C>
inline void decode_chunk(const RowLayout& layout, const PlaneRow& row, int chunk, float* out) {
  constexpr int planes = dejavu::plane_count(C);
  const bool block = chunk < layout.blocks * kChunksPerBlock;
  const int g0 = block ? chunk / kChunksPerBlock * kBlockGroups : chunk * 2;
  float scales[kBlockGroups], minima[kBlockGroups] = {};
  for (int g = 0; g < (block ? kBlockGroups : 2); ++g) {
    const int at = g0 + g < layout.groups ? g0 + g : layout.groups - 1;
    scales[g] = f16(row.scales + at * 2);
    if constexpr (C == Codec::int4) minima[g] = f16(row.scales + (layout.groups + at) * 2);
  }
  for (int h = 0; h < kHalves; ++h) {
    const B codes = unpack<0, planes>(row, chunk, h, Vec::zero_b());
    for (int odd = 0; odd < 2; ++odd) {
      F values[2];
      Vec::words(odd ? Vec::odd_bytes(codes) : Vec::even_bytes(codes), &values[0], &values[1]);
      for (int v = 0; v < 2; ++v) {
        // Where these W weights begin, and the group of the first.
        const int at = block ? odd * 32 + h * 2 * W + v * W : W == 16 ? v * 32 + odd * 16 : h * 32 + odd * 16 + v * W;
        const int g = block ? (h * 2 + v) * W / 2 : at / kGroup;
        const F s = block ? Vec::pairs(scales + g) : Vec::set1(scales[g]);
        if constexpr (C == Codec::int8) {
          Vec::store(out + at, Vec::mul(Vec::sub(values[v], Vec::set1(128.0f)), s));
        } else {
          Vec::store(out + at, Vec::fma(values[v], s, block ? Vec::pairs(minima + g) : Vec::set1(minima[g])));
        }
      }
    }
  }
}

// Weights [begin, end) of a row in stored order, exactly as int8 or int4 have them.
void planes_decode(const Planes& planes, int unit, int row, int begin, int end, float* out) {
  PlaneRow from;
  for (int p = 0; p < planes.planes; ++p) from.planes[p] = planes.row(p, unit, row);
  from.scales = planes.scale(unit, row);
  for (int o = begin; o < end; o += kChunk) {
    float chunk[kChunk];
    float* to = end - o < kChunk ? chunk : out;
    if (planes.layout.codec == Codec::int8) {
      decode_chunk<Codec::int8>(planes.layout, from, o / kChunk, to);
    } else {
      decode_chunk<Codec::int4>(planes.layout, from, o / kChunk, to);
    }
    if (to == chunk) memcpy(out, chunk, size_t(end - o) * 4);
    out += kChunk;
  }
}

constexpr dejavu::PlaneKernels plane_kernels() { return {planes_dot, planes_decode}; }

}  // namespace
