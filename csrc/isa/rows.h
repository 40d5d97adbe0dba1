// Dot products with rows of weights and weighted sums of rows, for every codec. Included after math.h.
#pragma once

#include "math.h"

namespace {

using dejavu::Bundles;
using dejavu::Codec;
using dejavu::kBlock;
using dejavu::kBlockGroups;
using dejavu::kGroup;
using dejavu::Row;
using dejavu::RowLayout;
using I = Vec::I;
using H = Vec::H;

// Rows that are worked on together: their chains of additions hide each other's latency and share loads of x and y.
constexpr int kDotRows = W == 16 ? 8 : 4;
constexpr int kSumRows = 16;
constexpr int kVectorsPerUnit = 32 / W;  // float vectors of the 32 elements of a unit
constexpr int kHalves = 16 / W;          // vectors that hold one value per group of a block

// The block's input for int8 and int4: int16 codes in stored order, scales and sums per group.
struct GroupedInput {
  const int16_t* codes;
  const float* scales;
  const float* sums;
  GroupedInput(const RowLayout& layout, const void* input)
      : codes((const int16_t*)input),
        scales((const float*)((const char*)input + size_t(layout.padded) * 2)),
        sums(scales + layout.groups) {}
};

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

inline float f16(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
#if defined(__F16C__)
  return _cvtsh_ss(h);
#else
  return dejavu::half_to_float(h);
#endif
}

// Fetches the scales (and minima) of the block or tail that begins with group g.
template <Codec C>
inline void prefetch_scales(const RowLayout& layout, const Row& row, int g) {
  Vec::prefetch(row.scales + g * 2);
  if constexpr (C == Codec::int4) Vec::prefetch(row.scales + (layout.groups + g) * 2);
}

// The codes of tail group g, natural order.
template <Codec C>
inline void load_tail(const uint8_t* codes, int g, H* w) {
  if constexpr (C == Codec::int8) {
    for (int h = 0; h < kHalves; ++h) w[h] = Vec::load_i8_h(codes + g * kGroup + h * 2 * W);
  } else {
    Vec::load_u4_h(codes + g * kGroup / 2, w);
  }
}

// out[r] = rows[r] . x; `next` are the rows that will be read after these, fetched meanwhile.
template <Codec C, int R>
inline void dot(const RowLayout& layout, const Row* rows, const Row* next, const void* input, float* out) {
  F total[R];
  for (int r = 0; r < R; ++r) total[r] = Vec::zero();
  if constexpr (C == Codec::f32 || C == Codec::bf16) {
    constexpr int size = C == Codec::f32 ? 4 : 2;
    const float* x = (const float*)input;
    int i = 0;
    for (; i + W <= layout.d; i += W) {
      const F xi = Vec::load(x + i);
      for (int r = 0; r < R; ++r) {
        const uint8_t* p = rows[r].codes + size_t(i) * size;
        if (i * size % 64 == 0) Vec::prefetch(next[r].codes + size_t(i) * size);
        total[r] = Vec::fma(C == Codec::f32 ? Vec::load((const float*)p) : Vec::load_bf16(p), xi, total[r]);
      }
    }
    for (int r = 0; r < R; ++r) out[r] = Vec::sum(total[r]);
    for (; i < layout.d; ++i) {
      for (int r = 0; r < R; ++r) {
        float w;
        if constexpr (C == Codec::f32) {
          memcpy(&w, rows[r].codes + size_t(i) * 4, 4);
        } else {
          const uint32_t bits = uint32_t(((const uint16_t*)rows[r].codes)[i]) << 16;
          memcpy(&w, &bits, 4);
        }
        out[r] += w * x[i];
      }
    }
    return;
  } else {
    const GroupedInput x(layout, input);
    for (int b = 0; b < layout.blocks; ++b) {
      for (int h = 0; h < kHalves; ++h) {  // lanes [h W, h W + W) of the block's 16 groups
        I acc[R];
        for (int r = 0; r < R; ++r) acc[r] = Vec::zero_i();
        const int16_t* xb = x.codes + b * kBlock + h * 2 * W;
        if constexpr (C == Codec::int8) {
          for (int u = 0; u < 16; ++u) {
            const H xu = Vec::load_h(xb + u * 32);
            for (int r = 0; r < R; ++r) {
              const size_t at = size_t(b) * kBlock + size_t(u * 32 + h * 2 * W);
              if (u % 2 == 0 && h == 0) Vec::prefetch(next[r].codes + at);
              acc[r] = Vec::dot_h(acc[r], Vec::load_i8_h(rows[r].codes + at), xu);
            }
          }
        } else {
          for (int u = 0; u < 16; u += 2) {
            const H x0 = Vec::load_h(xb + u * 32), x1 = Vec::load_h(xb + u * 32 + 32);
            for (int r = 0; r < R; ++r) {
              const size_t at = size_t(b) * kBlock / 2 + size_t(u * 16 + h * 2 * W);
              if (u % 4 == 0 && h == 0) Vec::prefetch(next[r].codes + at);
              const H w = Vec::load_u8_h(rows[r].codes + at);
              acc[r] = Vec::dot_h(acc[r], Vec::low_nibble_h(w), x0);
              acc[r] = Vec::dot_h(acc[r], Vec::high_nibble_h(w), x1);
            }
          }
        }
        const int g = b * kBlockGroups + h * W;
        const F xs = Vec::load(x.scales + g), sums = Vec::load(x.sums + g);
        for (int r = 0; r < R; ++r) {
          if (h == 0) prefetch_scales<C>(layout, next[r], g);
          const F s = Vec::mul(Vec::load_f16(rows[r].scales + g * 2), xs);
          total[r] = Vec::fma(Vec::to_float(acc[r]), s, total[r]);
          if constexpr (C == Codec::int4) {
            total[r] = Vec::fma(Vec::load_f16(rows[r].scales + (layout.groups + g) * 2), sums, total[r]);
          }
        }
      }
    }
    // The tail: groups in natural order, W at a time share a vector of scales.
    for (int g0 = layout.blocks * kBlockGroups; g0 < layout.groups; g0 += W) {
      const int n = layout.groups - g0 < W ? layout.groups - g0 : W;
      const F xs = Vec::load_n(x.scales + g0, n), sums = Vec::load_n(x.sums + g0, n);
      F s[R];
      for (int r = 0; r < R; ++r) {
        Vec::prefetch(next[r].codes + size_t(g0) * kGroup / (C == Codec::int4 ? 2 : 1));
        s[r] = Vec::mul(Vec::load_f16_n(rows[r].scales + g0 * 2, n), xs);
        if constexpr (C == Codec::int4) {
          total[r] = Vec::fma(Vec::load_f16_n(rows[r].scales + (layout.groups + g0) * 2, n), sums, total[r]);
        }
      }
      for (int g = g0; g < g0 + n; ++g) {
        for (int r = 0; r < R; ++r) {
          I acc = Vec::zero_i();
          H w[kHalves];
          load_tail<C>(rows[r].codes, g, w);
          for (int h = 0; h < kHalves; ++h) acc = Vec::dot_h(acc, w[h], Vec::load_h(x.codes + g * kGroup + h * 2 * W));
          total[r] = Vec::fma(Vec::to_float(acc), Vec::broadcast(s[r], g - g0), total[r]);
        }
      }
    }
    for (int r = 0; r < R; ++r) out[r] = Vec::sum(total[r]);
  }
}

// y += sum over r of coefficients[r] * rows[r]; f32 and bf16
template <Codec C, int R>
inline void axpy_float(const RowLayout& layout, const Row* rows, const Row* next, const float* coefficients, float* y) {
  constexpr int size = C == Codec::f32 ? 4 : 2;
  F a[R];
  for (int r = 0; r < R; ++r) a[r] = Vec::set1(coefficients[r]);
  int i = 0;
  for (; i + W <= layout.d; i += W) {
    F yi = Vec::load(y + i);
    for (int r = 0; r < R; ++r) {
      const uint8_t* p = rows[r].codes + size_t(i) * size;
      if (i * size % 64 == 0) Vec::prefetch(next[r].codes + size_t(i) * size);
      yi = Vec::fma(C == Codec::f32 ? Vec::load((const float*)p) : Vec::load_bf16(p), a[r], yi);
    }
    Vec::store(y + i, yi);
  }
  for (; i < layout.d; ++i) {
    for (int r = 0; r < R; ++r) {
      float w;
      if constexpr (C == Codec::f32) {
        memcpy(&w, rows[r].codes + size_t(i) * 4, 4);
      } else {
        const uint32_t bits = uint32_t(((const uint16_t*)rows[r].codes)[i]) << 16;
        memcpy(&w, &bits, 4);
      }
      y[i] += w * coefficients[r];
    }
  }
}

// One unit of 32 elements (int4: the two units that share bytes): sums over row pairs in int32, then into y.
template <Codec C, int P>
inline void axpy_unit(const uint8_t* const* codes, const H (*low)[kHalves], const H (*high)[kHalves], F step,
                      float* y) {
  constexpr int units = C == Codec::int4 ? 2 : 1;
  for (int h = 0; h < kHalves; ++h) {
    I acc[units][2];
    for (int u = 0; u < units; ++u) acc[u][0] = acc[u][1] = Vec::zero_i();
    for (int p = 0; p < P; ++p) {
      H a[units], b[units];
      if constexpr (C == Codec::int8) {
        a[0] = Vec::load_i8_h(codes[2 * p] + h * 2 * W);
        b[0] = Vec::load_i8_h(codes[2 * p + 1] + h * 2 * W);
      } else {
        const H x = Vec::load_u8_h(codes[2 * p] + h * 2 * W), z = Vec::load_u8_h(codes[2 * p + 1] + h * 2 * W);
        a[0] = Vec::low_nibble_h(x), a[1] = Vec::high_nibble_h(x);
        b[0] = Vec::low_nibble_h(z), b[1] = Vec::high_nibble_h(z);
      }
      for (int u = 0; u < units; ++u) {
        H l, r;
        Vec::unzip_pairs(a[u], b[u], &l, &r);
        acc[u][0] = Vec::dot_h(acc[u][0], l, low[p][h]);
        acc[u][1] = Vec::dot_h(acc[u][1], r, high[p][h]);
      }
    }
    for (int u = 0; u < units; ++u) {
      F l = Vec::to_float(acc[u][0]), r = Vec::to_float(acc[u][1]);
      Vec::zip_quads(&l, &r);
      float* out = y + u * 32 + h * 2 * W;
      Vec::store(out, Vec::fma(l, step, Vec::load(out)));
      Vec::store(out + W, Vec::fma(r, step, Vec::load(out + W)));
    }
  }
}

// One group of the tail: natural order, the same coefficient everywhere.
template <Codec C, int P>
inline void axpy_tail(const uint8_t* const* codes, int g, const int32_t (*pairs)[W], F step, float* y) {
  I acc[kHalves][2];
  for (int h = 0; h < kHalves; ++h) acc[h][0] = acc[h][1] = Vec::zero_i();
  for (int p = 0; p < P; ++p) {
    H a[kHalves], b[kHalves];
    load_tail<C>(codes[2 * p], g, a);
    load_tail<C>(codes[2 * p + 1], g, b);
    const H c = Vec::set1_i(pairs[p][g]);
    for (int h = 0; h < kHalves; ++h) {
      H l, r;
      Vec::unzip_pairs(a[h], b[h], &l, &r);
      acc[h][0] = Vec::dot_h(acc[h][0], l, c);
      acc[h][1] = Vec::dot_h(acc[h][1], r, c);
    }
  }
  for (int h = 0; h < kHalves; ++h) {
    F l = Vec::to_float(acc[h][0]), r = Vec::to_float(acc[h][1]);
    Vec::zip_quads(&l, &r);
    float* out = y + h * 2 * W;
    Vec::store(out, Vec::fma(l, step, Vec::load(out)));
    Vec::store(out + W, Vec::fma(r, step, Vec::load(out + W)));
  }
}

// int8 and int4: up to 2 P rows at once. Within a block (or a vector of tail groups), coefficients times scales are
// rounded to int16 with one step, rows are interleaved in pairs, and products are summed in int32:
// 2 P * 127 * 32767 stays below 2^31.
template <Codec C, int P>
void axpy_grouped(const RowLayout& layout, const Row* rows, const Row* next, int n, const float* coefficients,
                  float* y) {
  static_assert(P <= 64, "int32 sums could overflow");
  constexpr int step_elements = C == Codec::int4 ? 64 : 32;  // of 32 bytes of codes
  for (int g = 0; g < layout.groups;) {
    const bool block = g / kBlockGroups < layout.blocks;
    const int groups = block ? kBlockGroups : layout.groups - g < W ? layout.groups - g : W;
    const int vectors = block ? kHalves : 1;
    F products[2 * P][kHalves], highest = Vec::zero();
    for (int v = 0; v < vectors; ++v) {
      const int at = g + v * W, lanes = block ? W : groups;
      F minima = C == Codec::int4 ? get(y + layout.padded + at, lanes) : Vec::zero();
      for (int r = 0; r < 2 * P; ++r) {
        if (r >= n) {
          products[r][v] = Vec::zero();
          continue;
        }
        if (v == 0) prefetch_scales<C>(layout, next[r], g);
        const F a = Vec::set1(coefficients[r]);
        products[r][v] = Vec::mul(Vec::load_f16_n(rows[r].scales + at * 2, lanes), a);
        highest = Vec::max(highest, Vec::abs(products[r][v]));
        if constexpr (C == Codec::int4) {
          minima = Vec::fma(Vec::load_f16_n(rows[r].scales + (layout.groups + at) * 2, lanes), a, minima);
        }
      }
      if constexpr (C == Codec::int4) put(y + layout.padded + at, minima, lanes);
    }
    const float reach = Vec::maximum(highest);
    if (!(reach > 1e-34f)) {  // all coefficients zero, or too small to leave a trace
      g += groups;
      continue;
    }
    const F inverse = Vec::set1(32767.0f / reach), step = Vec::set1(reach / 32767.0f);
    const uint8_t* codes[2 * P];
    const size_t at = size_t(g) * kGroup / (C == Codec::int4 ? 2 : 1);
    for (int r = 0; r < 2 * P; ++r) codes[r] = rows[r < n ? r : 0].codes + at;
    float* out = y + size_t(g) * kGroup;
    if (block) {
      H low[P][kHalves], high[P][kHalves];
      for (int p = 0; p < P; ++p) {
        for (int v = 0; v < kHalves; ++v) {
          const I pairs =
              Vec::pack_words(Vec::mul(products[2 * p][v], inverse), Vec::mul(products[2 * p + 1][v], inverse));
          Vec::spread_groups(pairs, &low[p][v], &high[p][v]);
        }
      }
      for (int o = 0; o < kBlock; o += step_elements) {
        if (o / step_elements % 2 == 0) {
          for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + (codes[r] - rows[r].codes));
        }
        axpy_unit<C, P>(codes, low, high, step, out + o);
        for (int r = 0; r < 2 * P; ++r) codes[r] += 32;
      }
    } else {
      for (int r = 0; r < n; ++r) Vec::prefetch(next[r].codes + at);
      int32_t pairs[P][W];
      for (int p = 0; p < P; ++p) {
        Vec::store_i(pairs[p],
                     Vec::pack_words(Vec::mul(products[2 * p][0], inverse), Vec::mul(products[2 * p + 1][0], inverse)));
      }
      for (int i = 0; i < groups; ++i) axpy_tail<C, P>(codes, i, pairs, step, out + i * kGroup);
    }
    g += groups;
  }
}

// Any number of rows up to kSumRows.
template <Codec C>
inline void axpy(const RowLayout& layout, const Row* rows, const Row* next, int n, const float* coefficients,
                 float* y) {
  if constexpr (C == Codec::int8 || C == Codec::int4) {
    if (n > kSumRows / 4) {
      axpy_grouped<C, kSumRows / 2>(layout, rows, next, n, coefficients, y);
    } else {
      axpy_grouped<C, kSumRows / 8>(layout, rows, next, n, coefficients, y);
    }
  } else {
    int r = 0;
    for (; r + 4 <= n; r += 4) axpy_float<C, 4>(layout, rows + r, next + r, coefficients + r, y);
    for (; r < n; ++r) axpy_float<C, 1>(layout, rows + r, next + r, coefficients + r, y);
  }
}

template <Codec C>
void dot_range(const Bundles& bundles, int bundle, int first, int n, const void* input, float* out) {
  int i = 0;
  Row rows[kDotRows], next[kDotRows];
  for (; i + kDotRows <= n; i += kDotRows) {
    for (int r = 0; r < kDotRows; ++r) {
      rows[r] = bundles.row(bundle, first + i + r);
      next[r] = bundles.row(bundle, first + i + kDotRows + r);  // beyond the last row: a harmless prefetch
    }
    dot<C, kDotRows>(bundles.layout, rows, next, input, out + i);
  }
  for (; i < n; ++i) {
    rows[0] = bundles.row(bundle, first + i);
    dot<C, 1>(bundles.layout, rows, rows, input, out + i);
  }
}

template <Codec C>
void axpy_range(const Bundles& bundles, int bundle, int first, int n, const float* coefficients, float* y) {
  Row rows[kSumRows], next[kSumRows];
  for (int i = 0; i < n; i += kSumRows) {
    const int count = n - i < kSumRows ? n - i : kSumRows;
    for (int r = 0; r < count; ++r) {
      rows[r] = bundles.row(bundle, first + i + r);
      next[r] = bundles.row(bundle, first + i + kSumRows + r);
    }
    axpy<C>(bundles.layout, rows, next, count, coefficients + i, y);
  }
}

// The neurons at list indices [i, i + n), n <= kSumRows: gate and up dots, activation, down axpys.
template <Codec C>
inline void mlp_step(const dejavu::MlpArgs& a, int i, int n) {
  const Bundles& bundles = *a.bundles;
  const int dots = a.gated ? 2 : 1;
  int ids[kSumRows], following[kSumRows];
  for (int r = 0; r < n; ++r) {
    const int ahead = i + n + r < a.end ? i + n + r : a.end - 1;
    ids[r] = a.selected ? a.selected[i + r] : i + r;
    following[r] = a.selected ? a.selected[ahead] : ahead;
  }
  Row rows[kSumRows], next[kSumRows];
  float h[2][kSumRows];  // gate (or fc1), up
  for (int r = 0; r < n;
       r += 4) {  // the two rows of a neuron are neighbours: both are read before the next four neurons
    for (int part = 0; part < dots; ++part) {
      const int count = n - r < 4 ? n - r : 4;
      for (int j = 0; j < count; ++j) {
        rows[j] = bundles.row(ids[r + j], part);
        next[j] = bundles.row(following[r + j], part);
      }
      if (count == 4) {
        dot<C, 4>(bundles.layout, rows, next, a.input, h[part] + r);
      } else {
        for (int j = 0; j < count; ++j) dot<C, 1>(bundles.layout, rows + j, next + j, a.input, h[part] + r + j);
      }
    }
  }
  for (int part = 0; part < dots; ++part) {
    const float* bias = part == dots - 1 ? a.up_bias : a.gate_bias;
    for (int r = 0; bias && r < n; ++r) h[part][r] += bias[ids[r]];
  }
  activate(a.activation, h[0], a.gated ? h[1] : nullptr, n, h[0]);
  for (int r = 0; r < n; ++r) {
    rows[r] = bundles.row(ids[r], dots);
    next[r] = bundles.row(following[r], dots);
  }
  axpy<C>(bundles.layout, rows, next, n, h[0], a.output);
}

template <Codec C>
void mlp(const dejavu::MlpArgs& a) {
  for (int i = a.begin; i < a.end; i += kSumRows) mlp_step<C>(a, i, a.end - i < kSumRows ? a.end - i : kSumRows);
}

template <Codec C>
void decode(const RowLayout& layout, Row row, int begin, int end, float* out) {
  out -= begin;
  if constexpr (C == Codec::f32) {
    memcpy(out + begin, row.codes + size_t(begin) * 4, size_t(end - begin) * 4);
    return;
  } else if constexpr (C == Codec::bf16) {
    int i = begin;
    for (; i + W <= end; i += W) Vec::store(out + i, Vec::load_bf16(row.codes + size_t(i) * 2));
    for (; i < end; ++i) {
      const uint32_t bits = uint32_t(((const uint16_t*)row.codes)[i]) << 16;
      memcpy(out + i, &bits, 4);
    }
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
          if constexpr (int4) {
            const I w = Vec::load_u8(row.codes + o / 2 + v * W);
            Vec::store(out + o + v * W, Vec::fma(Vec::low_nibble(w), s[v], m[v]));
            Vec::store(out + o + 32 + v * W, Vec::fma(Vec::high_nibble(w), s[v], m[v]));
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
          Vec::store(out + o + i, Vec::fma(Vec::low_nibble(w), s, m));
          Vec::store(out + o + 16 + i, Vec::fma(Vec::high_nibble(w), s, m));
        }
      } else {
        for (int i = 0; i < kGroup; i += W) Vec::store(out + o + i, Vec::mul(Vec::load_i8(row.codes + o + i), s));
      }
    }
  }
}

template <Codec C>
void dot_many(const Bundles& b, int bundle, int first, int n, const void* const* in, int tokens, float* const* outs) {
  for (int t = 0; t < tokens; ++t) dot_range<C>(b, bundle, first, n, in[t], outs[t]);
}
template <Codec C>
void axpy_many(const Bundles& b, int bundle, int first, int n, const float* const* co, int tokens, float* const* outs) {
  for (int t = 0; t < tokens; ++t) axpy_range<C>(b, bundle, first, n, co[t], outs[t]);
}
template <Codec C>
void mlp_many(const dejavu::MlpManyArgs& a) {
  for (int i = a.begin; i < a.end; ++i)
    for (int t = 0; t < a.tokens; ++t) {
      if (a.masks && !(a.masks[i] >> t & 1)) continue;
      mlp<C>(
          {a.bundles, a.selected, i, i + 1, a.gated, a.activation, a.gate_bias, a.up_bias, a.inputs[t], a.outputs[t]});
    }
}
template <Codec C>
void dot_list(const Bundles& b, int row, const int32_t* list, int n, const void* in, float* out) {
  for (int i = 0; i < n; ++i) dot_range<C>(b, list[i], row, 1, in, out + i);
}
template <Codec C>
void axpy_list(const Bundles& b, int row, const int32_t* list, int n, const float* co, float* out) {
  for (int i = 0; i < n; ++i) axpy_range<C>(b, list[i], row, 1, co + i, out);
}
template <Codec C>
constexpr dejavu::RowKernels row_kernels() {
  constexpr bool grouped = C == Codec::int8 || C == Codec::int4;
  return {grouped ? prepare_grouped : prepare_f32,
          dot_range<C>,
          axpy_range<C>,
          mlp<C>,
          dot_many<C>,
          axpy_many<C>,
          mlp_many<C>,
          dot_list<C>,
          axpy_list<C>,
          nullptr,
          nullptr,
          decode<C>};
}

}  // namespace
