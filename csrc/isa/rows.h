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
constexpr int kAxpyRows = 4;
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
          if (h == 0) Vec::prefetch(next[r].scales + g * 2);
          const F s = Vec::mul(Vec::load_f16(rows[r].scales + g * 2), xs);
          total[r] = Vec::fma(Vec::to_float(acc[r]), s, total[r]);
          if constexpr (C == Codec::int4) {
            total[r] = Vec::fma(Vec::load_f16(rows[r].scales + (layout.groups + g) * 2), sums, total[r]);
          }
        }
      }
    }
    float minima[R] = {};
    for (int g = layout.blocks * kBlockGroups; g < layout.groups; ++g) {
      for (int r = 0; r < R; ++r) {
        I acc = Vec::zero_i();
        if constexpr (C == Codec::int8) {
          for (int h = 0; h < kHalves; ++h) {
            const int o = g * kGroup + h * 2 * W;
            acc = Vec::dot_h(acc, Vec::load_i8_h(rows[r].codes + o), Vec::load_h(x.codes + o));
          }
        } else {
          H w[kHalves];
          Vec::load_u4_h(rows[r].codes + g * kGroup / 2, w);
          for (int h = 0; h < kHalves; ++h) {
            acc = Vec::dot_h(acc, w[h], Vec::load_h(x.codes + g * kGroup + h * 2 * W));
          }
          minima[r] += f16(rows[r].scales + (layout.groups + g) * 2) * x.sums[g];
        }
        total[r] = Vec::fma(Vec::to_float(acc), Vec::set1(f16(rows[r].scales + g * 2) * x.scales[g]), total[r]);
      }
    }
    for (int r = 0; r < R; ++r) out[r] = Vec::sum(total[r]) + minima[r];
  }
}

// y += sum over r of coefficient[r] * rows[r], in stored order
template <Codec C, int R>
inline void axpy(const RowLayout& layout, const Row* rows, const Row* next, const float* coefficients, float* y) {
  if constexpr (C == Codec::f32 || C == Codec::bf16) {
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
    return;
  } else {
    float* minima = y + layout.padded;
    for (int b = 0; b < layout.blocks; ++b) {
      F s[R][kVectorsPerUnit];
      for (int r = 0; r < R; ++r) {
        float scales[kBlockGroups];
        Vec::prefetch(next[r].scales + b * kBlockGroups * 2);
        for (int h = 0; h < kHalves; ++h) {
          const int g = b * kBlockGroups + h * W;
          const F a = Vec::set1(coefficients[r]);
          Vec::store(scales + h * W, Vec::mul(Vec::load_f16(rows[r].scales + g * 2), a));
          if constexpr (C == Codec::int4) {
            const F m = Vec::load_f16(rows[r].scales + (layout.groups + g) * 2);
            Vec::store(minima + g, Vec::fma(m, a, Vec::load(minima + g)));
          }
        }
        for (int v = 0; v < kVectorsPerUnit; ++v) s[r][v] = Vec::pairs(scales + v * W / 2);
      }
      float* yb = y + b * kBlock;
      if constexpr (C == Codec::int8) {
        for (int u = 0; u < 16; ++u) {
          for (int v = 0; v < kVectorsPerUnit; ++v) {
            const size_t at = size_t(b) * kBlock + size_t(u * 32 + v * W);
            F yv = Vec::load(yb + u * 32 + v * W);
            for (int r = 0; r < R; ++r) {
              if (u % 2 == 0 && v == 0) Vec::prefetch(next[r].codes + at);
              yv = Vec::fma(Vec::load_i8(rows[r].codes + at), s[r][v], yv);
            }
            Vec::store(yb + u * 32 + v * W, yv);
          }
        }
      } else {
        for (int u = 0; u < 16; u += 2) {
          for (int v = 0; v < kVectorsPerUnit; ++v) {
            const size_t at = size_t(b) * kBlock / 2 + size_t(u * 16 + v * W);
            float* p0 = yb + u * 32 + v * W;
            F y0 = Vec::load(p0), y1 = Vec::load(p0 + 32);
            for (int r = 0; r < R; ++r) {
              if (u % 4 == 0 && v == 0) Vec::prefetch(next[r].codes + at);
              const I w = Vec::load_u8(rows[r].codes + at);
              y0 = Vec::fma(Vec::low_nibble(w), s[r][v], y0);
              y1 = Vec::fma(Vec::high_nibble(w), s[r][v], y1);
            }
            Vec::store(p0, y0);
            Vec::store(p0 + 32, y1);
          }
        }
      }
    }
    for (int g = layout.blocks * kBlockGroups; g < layout.groups; ++g) {
      for (int r = 0; r < R; ++r) {
        const F s = Vec::set1(f16(rows[r].scales + g * 2) * coefficients[r]);
        float* yg = y + g * kGroup;
        if constexpr (C == Codec::int8) {
          for (int i = 0; i < kGroup; i += W) {
            Vec::store(yg + i, Vec::fma(Vec::load_i8(rows[r].codes + g * kGroup + i), s, Vec::load(yg + i)));
          }
        } else {
          for (int i = 0; i < kGroup / 2; i += W) {
            const I w = Vec::load_u8(rows[r].codes + g * kGroup / 2 + i);
            Vec::store(yg + i, Vec::fma(Vec::low_nibble(w), s, Vec::load(yg + i)));
            Vec::store(yg + 16 + i, Vec::fma(Vec::high_nibble(w), s, Vec::load(yg + 16 + i)));
          }
          minima[g] += f16(rows[r].scales + (layout.groups + g) * 2) * coefficients[r];
        }
      }
    }
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
  int i = 0;
  Row rows[kAxpyRows], next[kAxpyRows];
  for (; i + kAxpyRows <= n; i += kAxpyRows) {
    for (int r = 0; r < kAxpyRows; ++r) {
      rows[r] = bundles.row(bundle, first + i + r);
      next[r] = bundles.row(bundle, first + i + kAxpyRows + r);
    }
    axpy<C, kAxpyRows>(bundles.layout, rows, next, coefficients + i, y);
  }
  for (; i < n; ++i) {
    rows[0] = bundles.row(bundle, first + i);
    axpy<C, 1>(bundles.layout, rows, rows, coefficients + i, y);
  }
}

// N neurons whose list indices start at i: gate and up dots, activation, down axpys.
template <Codec C, int N>
inline void mlp_step(const dejavu::MlpArgs& a, int i) {
  const Bundles& bundles = *a.bundles;
  const int dots = a.gated ? 2 : 1;
  int ids[N], following[N];
  for (int r = 0; r < N; ++r) {
    const int ahead = i + N + r < a.end ? i + N + r : a.end - 1;
    ids[r] = a.selected ? a.selected[i + r] : i + r;
    following[r] = a.selected ? a.selected[ahead] : ahead;
  }
  Row rows[N], next[N];
  float h[2][16];  // gate (or fc1), up; room for one vector
  for (int part = 0; part < dots; ++part) {
    for (int r = 0; r < N; ++r) {
      rows[r] = bundles.row(ids[r], part);
      next[r] = bundles.row(following[r], part);
    }
    dot<C, N>(bundles.layout, rows, next, a.input, h[part]);
    const float* bias = part == dots - 1 ? a.up_bias : a.gate_bias;
    for (int r = 0; bias && r < N; ++r) h[part][r] += bias[ids[r]];
  }
  activate(a.activation, h[0], a.gated ? h[1] : nullptr, N, h[0]);
  for (int r = 0; r < N; ++r) {
    rows[r] = bundles.row(ids[r], dots);
    next[r] = bundles.row(following[r], dots);
  }
  axpy<C, N>(bundles.layout, rows, next, h[0], a.output);
}

template <Codec C>
void mlp(const dejavu::MlpArgs& a) {
  int i = a.begin;
  for (; i + 4 <= a.end; i += 4) mlp_step<C, 4>(a, i);
  for (; i < a.end; ++i) mlp_step<C, 1>(a, i);
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
constexpr dejavu::RowKernels row_kernels() {
  constexpr bool grouped = C == Codec::int8 || C == Codec::int4;
  return {grouped ? prepare_grouped : prepare_f32, dot_range<C>, axpy_range<C>, mlp<C>, decode<C>};
}

}  // namespace
