// Encoding of weights. Compiled without floating-point contraction: the NumPy twin rounds after every operation.
#include <cmath>
#include <cstring>
#include <initializer_list>

#include "layout.h"

namespace dejavu {

float half_to_float(uint16_t h) {
  uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu, bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000u | (mantissa << 13);
  } else if (exponent) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    float f = float(mantissa) * 0x1p-24f;
    return sign ? -f : f;
  }
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t float_to_half(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x47800000u) {  // 65536 and above, infinity, NaN
    return uint16_t(sign | (magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u));
  }
  if (magnitude < 0x38800000u) {  // subnormal: the addition rounds to the unit 2^-24, to nearest even
    float scaled;
    std::memcpy(&scaled, &magnitude, 4);
    scaled += 0.5f;
    uint32_t rounded;
    std::memcpy(&rounded, &scaled, 4);
    return uint16_t(sign | (rounded - 0x3f000000u));
  }
  uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return uint16_t(sign | ((rounded - 0x38000000u) >> 13));
}

namespace {

// glibc: the choice is made by an indirect function, which other libraries do not have.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#define DEJAVU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DEJAVU_CLONES
#endif
#if defined(__GNUC__)
#define DEJAVU_INLINE inline __attribute__((always_inline))
#else
#define DEJAVU_INLINE inline
#endif

constexpr uint16_t kHalfInfinity = 0x7c00;

bool finite_half(uint16_t h) { return (h & kHalfInfinity) != kHalfInfinity; }

bool all_finite(const float* x, size_t n) {
  uint32_t worst = 0;
  for (size_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    worst = bits > worst ? bits : worst;
  }
  return worst < 0x7f800000u;
}

uint16_t to_bf16(float f) {
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Sum of N values as a fixed tree (halves are added until one is left), as in the twin.
template <int N = kGroup>
DEJAVU_INLINE float sum_by_halving(const float* v) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    float sums[N / 2];
    for (int i = 0; i < N / 2; ++i) sums[i] = v[i] + v[i + N / 2];
    return sum_by_halving<N / 2>(sums);
  }
}

constexpr int kFits = 3;

// One group: codes (0..15), float16 scale and minimum; see the twin.
DEJAVU_CLONES void encode_int4(const float* w, uint8_t* codes, uint16_t* scale, uint16_t* minimum) {
  float lowest = w[0], highest = w[0];
  for (int i = 1; i < kGroup; ++i) {
    lowest = w[i] < lowest ? w[i] : lowest;
    highest = w[i] > highest ? w[i] : highest;
  }
  const float middle = (lowest + highest) * 0.5f, reach = (highest - lowest) * 0.5f;
  float best = INFINITY;
  *scale = kHalfInfinity;  // stays where no candidate is finite
  *minimum = 0;
  std::memset(codes, 0, kGroup);
  for (float factor : {1.0f, 0.9f, 0.8f}) {
    const float shrunken = factor * reach, lo = middle - shrunken, hi = middle + shrunken;
    uint16_t scale_bits = float_to_half((hi - lo) / 15.0f), minimum_bits = float_to_half(lo + 0.0f);
    for (int fit = 0; fit <= kFits; ++fit) {
      const float s = half_to_float(scale_bits), m = half_to_float(minimum_bits);
      float q[kGroup], above[kGroup], sums[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        above[i] = w[i] - m;
        const float r = s == 0.0f ? 0.0f : std::nearbyint(above[i] / s);
        q[i] = r > 0.0f ? (r < 15.0f ? r : 15.0f) : 0.0f;
        const float difference = w[i] - (s * q[i] + m);
        sums[i] = difference * difference;
      }
      const float error = sum_by_halving(sums);
      if (error < best) {
        best = error;
        *scale = scale_bits;
        *minimum = minimum_bits;
        for (int i = 0; i < kGroup; ++i) codes[i] = uint8_t(q[i]);
      }
      if (fit == kFits) break;
      // The line through (code, value); none where all codes are the same. Sums of codes are exact in any order.
      int codes_sum = 0, squares_sum = 0;
      for (int i = 0; i < kGroup; ++i) {
        const int code = int(q[i]);
        codes_sum += code, squares_sum += code * code;
        sums[i] = q[i] * above[i];
      }
      const float total = float(codes_sum), spread = float(kGroup * squares_sum - codes_sum * codes_sum);
      if (!(spread > 0.0f)) break;
      const float products = sum_by_halving(sums), height = sum_by_halving(above);
      scale_bits = float_to_half((float(kGroup) * products - total * height) / spread);
      minimum_bits = float_to_half(m + (height - half_to_float(scale_bits) * total) / float(kGroup));
    }
  }
}

DEJAVU_CLONES void encode_int8(const float* w, uint8_t* codes, uint16_t* scale) {
  float highest = 0.0f, best = INFINITY;
  for (int i = 0; i < kGroup; ++i) highest = std::fabs(w[i]) > highest ? std::fabs(w[i]) : highest;
  *scale = kHalfInfinity;  // stays where no candidate is finite
  for (int levels = 127; levels > 111; --levels) {
    const uint16_t scale_bits = float_to_half(highest / float(levels));
    const float s = half_to_float(scale_bits);
    float q[kGroup], squares[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      const float r = s == 0.0f ? 0.0f : std::nearbyint(w[i] / s);
      q[i] = r < -127.0f ? -127.0f : r > 127.0f ? 127.0f : r;
      const float difference = w[i] - s * q[i];
      squares[i] = difference * difference;
    }
    const float error = sum_by_halving(squares);
    if (error < best) {
      best = error;
      *scale = scale_bits;
      for (int i = 0; i < kGroup; ++i) codes[i] = uint8_t(int8_t(q[i]));
    }
  }
}

// False where a scale or minimum is beyond float16.
bool pack_row(const RowLayout& layout, const float* src, uint8_t* codes, uint8_t* scales) {
  if (layout.codec == Codec::f32) {
    std::memcpy(codes, src, layout.code_bytes);
    return true;
  }
  if (layout.codec == Codec::bf16) {
    for (int i = 0; i < layout.d; ++i) {
      uint16_t b = to_bf16(src[i]);
      std::memcpy(codes + 2 * size_t(bf16_place(layout.d, i)), &b, 2);
    }
    return true;
  }
  const bool int4 = layout.codec == Codec::int4;
  for (int g = 0; g < layout.groups; ++g) {
    float w[kGroup] = {};
    int n = layout.d - g * kGroup < kGroup ? layout.d - g * kGroup : kGroup;
    std::memcpy(w, src + size_t(g) * kGroup, size_t(n) * 4);
    uint8_t q[kGroup];
    uint16_t scale, minimum = 0;
    if (int4) {
      encode_int4(w, q, &scale, &minimum);
      std::memcpy(scales + size_t(layout.groups + g) * 2, &minimum, 2);
    } else {
      encode_int8(w, q, &scale);
    }
    if (!finite_half(scale) || !finite_half(minimum)) return false;
    std::memcpy(scales + size_t(g) * 2, &scale, 2);
    const int block = g / kBlockGroups, lane = g % kBlockGroups;
    uint8_t* out = codes + size_t(block) * kBlock / (int4 ? 2 : 1);
    if (block < layout.blocks) {
      for (int u = 0; u < kGroup / 2; ++u) {  // unit u of the block holds weights 2u and 2u + 1 of every group
        for (int j = 0; j < 2; ++j) {
          uint8_t code = q[2 * u + j];
          const int o = u * 32 + 2 * lane + j;
          if (int4) {
            const Place at = nibble_of(o);
            out[at.byte] = uint8_t(out[at.byte] | code << at.shift);
          } else {
            out[o] = code;
          }
        }
      }
    } else if (int4) {
      uint8_t* tail = codes + size_t(g) * kGroup / 2;
      for (int i = 0; i < kGroup / 2; ++i) tail[i] = uint8_t(q[i] | (q[i + kGroup / 2] << 4));
    } else {
      std::memcpy(codes + size_t(g) * kGroup, q, kGroup);
    }
  }
  return true;
}

}  // namespace

PackResult pack_bundles(const RowLayout& layout, const float* src, int rows, int count, uint8_t* dst) {
  Bundles bundles(layout, rows, count, dst);
  if (!all_finite(src, size_t(rows) * size_t(count) * size_t(layout.d))) return PackResult::not_finite;
  std::memset(dst, 0, bundles.bytes());
  for (int b = 0; b < count; ++b) {
    for (int r = 0; r < rows; ++r) {
      const Row row = bundles.row(b, r);
      const float* w = src + (size_t(b) * size_t(rows) + size_t(r)) * size_t(layout.d);
      if (!pack_row(layout, w, const_cast<uint8_t*>(row.codes), const_cast<uint8_t*>(row.scales))) {
        return PackResult::out_of_range;
      }
    }
  }
  return PackResult::ok;
}

void unpack_row(const RowLayout& layout, Row row, float* dst) {
  if (layout.codec == Codec::f32) {
    std::memcpy(dst, row.codes, layout.code_bytes);
    return;
  }
  for (int o = 0; o < layout.padded; ++o) {
    const int i = layout.natural(o);
    if (i >= layout.d) continue;
    if (layout.codec == Codec::bf16) {
      uint16_t b;
      std::memcpy(&b, row.codes + 2 * size_t(bf16_place(layout.d, o)), 2);
      uint32_t bits = uint32_t(b) << 16;
      std::memcpy(&dst[i], &bits, 4);
      continue;
    }
    const int g = i / kGroup;
    uint16_t scale, minimum = 0;
    std::memcpy(&scale, row.scales + size_t(g) * 2, 2);
    if (layout.codec == Codec::int8) {
      dst[i] = half_to_float(scale) * float(int8_t(row.codes[o]));
      continue;
    }
    std::memcpy(&minimum, row.scales + size_t(layout.groups + g) * 2, 2);
    Place at = {g * kGroup / 2 + o % 16, o % kGroup / 16 * 4};
    if (o < layout.blocks * kBlock) at = nibble_of(o);
    dst[i] = half_to_float(scale) * float(row.codes[at.byte] >> at.shift & 15) + half_to_float(minimum);
  }
}

}  // namespace dejavu
