// Vectors of 16 lanes in plain C++: the meaning of every operation that the kernels are written with, and the build for
// processors without a hand-written vector type (the compiler vectorises the loops with what the target has).
#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  static constexpr int W = 16;
  static constexpr int kTokens = 1;  // that fit the registers together: see rows_common.h
  struct F {
    float v[W];
  };
  struct I {
    int32_t v[W];
  };
  struct H {
    int16_t v[2 * W];
  };
  struct B {
    uint8_t v[4 * W];
  };

#define DEJAVU_EACH(expression)                      \
  F r;                                               \
  for (int i = 0; i < W; ++i) r.v[i] = (expression); \
  return r

  static F zero() { return set1(0.0f); }
  static F set1(float x) { DEJAVU_EACH(x); }
  static F load(const float* p) { DEJAVU_EACH(p[i]); }
  static void store(float* p, F x) { memcpy(p, x.v, sizeof x.v); }
  static F load_n(const float* p, int n) { DEJAVU_EACH(i < n ? p[i] : 0.0f); }  // lanes from n on are zero
  static void store_n(float* p, F x, int n) { memcpy(p, x.v, size_t(n) * 4); }
  static F load_four(const float* p) { return load_n(p, 4); }
  static void store_four(float* p, F x) { store_n(p, x, 4); }
  static F add(const F& a, const F& b) { DEJAVU_EACH(a.v[i] + b.v[i]); }
  static F sub(const F& a, const F& b) { DEJAVU_EACH(a.v[i] - b.v[i]); }
  static F mul(const F& a, const F& b) { DEJAVU_EACH(a.v[i] * b.v[i]); }
  static F div(const F& a, const F& b) { DEJAVU_EACH(a.v[i] / b.v[i]); }
  static F fma(const F& a, const F& b, const F& c) { DEJAVU_EACH(a.v[i] * b.v[i] + c.v[i]); }
  static F max(const F& a, const F& b) { DEJAVU_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
  static F min(const F& a, const F& b) { DEJAVU_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
  static F above(const F& a, const F& low) { DEJAVU_EACH(a.v[i] > low.v[i] ? a.v[i] : 0.0f); }
  // Writes the numbers of the lanes with a > low, counted from `first`, and returns how many they are; what lies behind
  // them, up to W places, is overwritten.
  static int list_above(int32_t* list, int first, const F& a, const F& low) {
    int found = 0;
    for (int i = 0; i < W; ++i) list[found] = first + i, found += a.v[i] > low.v[i];
    return found;
  }
  static F round(const F& a) { DEJAVU_EACH(nearbyintf(a.v[i])); }
  static F abs(const F& a) { DEJAVU_EACH(fabsf(a.v[i])); }
  static F copysign(const F& a, const F& sign) { DEJAVU_EACH(copysignf(a.v[i], sign.v[i])); }
  static F scale2(const F& a, const F& n) { DEJAVU_EACH(ldexpf(a.v[i], int(n.v[i]))); }
  static float sum(const F& a) {
    float s[8];
    for (int i = 0; i < 8; ++i) s[i] = a.v[i] + a.v[i + 8];
    return ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
  }
  static void sum_four(const F& a, const F& b, const F& c, const F& d, float* out) {  // each as `sum` adds it
    out[0] = sum(a), out[1] = sum(b), out[2] = sum(c), out[3] = sum(d);
  }
  static float maximum(const F& a) {
    float m = a.v[0];
    for (int i = 1; i < W; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
  }

  static F load_f16(const void* p) {
    uint16_t h[W];
    memcpy(h, p, sizeof h);
    DEJAVU_EACH(half(h[i]));
  }
  static F load_bf16(const void* p) {
    uint16_t h[W];
    memcpy(h, p, sizeof h);
    F r;
    for (int i = 0; i < W; ++i) {
      uint32_t bits = uint32_t(h[i]) << 16;
      memcpy(&r.v[i], &bits, 4);
    }
    return r;
  }
  static void load_bf16_pairs(const void* p, F* low, F* high) {  // the two of each of W words
    uint32_t words[W];
    memcpy(words, p, sizeof words);
    for (int i = 0; i < W; ++i) {
      const uint32_t l = words[i] << 16, h = words[i] & 0xffff0000u;
      memcpy(&low->v[i], &l, 4);
      memcpy(&high->v[i], &h, 4);
    }
  }
  static void store_bf16(void* p, const F& x) {  // rounded to nearest even; NaN stays NaN
    uint16_t h[W];
    for (int i = 0; i < W; ++i) {
      uint32_t bits;
      memcpy(&bits, &x.v[i], 4);
      const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
      h[i] = uint16_t(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
    memcpy(p, h, sizeof h);
  }
  static F load_i8(const void* p) { DEJAVU_EACH(float(((const int8_t*)p)[i])); }
  static I load_u8(const void* p) {
    I r;
    for (int i = 0; i < W; ++i) r.v[i] = ((const uint8_t*)p)[i];
    return r;
  }
  static I load_u16(const void* p) {
    I r;
    for (int i = 0; i < W; ++i) {
      uint16_t word;
      memcpy(&word, (const uint8_t*)p + 2 * i, 2);
      r.v[i] = word;
    }
    return r;
  }
  template <int shift>
  static F nibble(const I& x) {
    DEJAVU_EACH(float(x.v[i] >> shift & 15));
  }
  static F to_float(const I& x) { DEJAVU_EACH(float(x.v[i])); }
  static H set1_i(int32_t x) {  // seen as pairs of words
    H r;
    for (int i = 0; i < W; ++i) memcpy(&r.v[2 * i], &x, 4);
    return r;
  }
  static void store_i(int32_t* p, const I& x) { memcpy(p, x.v, sizeof x.v); }
  static I zero_i() { return I{}; }

  static H load_h(const int16_t* p) {
    H r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static H load_i8_h(const void* p) {  // 2 W int8 -> int16
    H r;
    for (int i = 0; i < 2 * W; ++i) r.v[i] = ((const int8_t*)p)[i];
    return r;
  }
  template <int shift>
  static H nibble_h(const H& x) {
    H r;
    for (int i = 0; i < 2 * W; ++i) r.v[i] = int16_t(uint16_t(x.v[i]) >> shift & 15);
    return r;
  }
  template <int mask>
  static H masked_h(const H& x) {
    H r;
    for (int i = 0; i < 2 * W; ++i) r.v[i] = int16_t(x.v[i] & mask);
    return r;
  }
  static H zip_bytes(const uint8_t* a, const uint8_t* b) {  // W bytes of a and of b in turn, as words
    H r;
    for (int i = 0; i < W; ++i) r.v[2 * i] = a[i], r.v[2 * i + 1] = b[i];
    return r;
  }
  static I dot_h(const I& acc, const H& a, const H& b) {  // lane i: acc + a[2i] b[2i] + a[2i+1] b[2i+1]
    I r;
    for (int i = 0; i < W; ++i) {
      r.v[i] = acc.v[i] + int32_t(a.v[2 * i]) * b.v[2 * i] + int32_t(a.v[2 * i + 1]) * b.v[2 * i + 1];
    }
    return r;
  }
  static F pairs(const float* p) { DEJAVU_EACH(p[i / 2]); }
  static const H& keep(const H& x) { return x; }  // in a register: not read again from where it came
  // Words of a and b side by side, a's in the lower half of a lane: lane i has the i-th of the even (odd) words.
  static void pair_words(const H& a, const H& b, H* even, H* odd) {
    for (int i = 0; i < W; ++i) {
      even->v[2 * i] = a.v[2 * i], even->v[2 * i + 1] = b.v[2 * i];
      odd->v[2 * i] = a.v[2 * i + 1], odd->v[2 * i + 1] = b.v[2 * i + 1];
    }
  }
  // Even and odd elements in turn: afterwards `even` holds the first W of them, `odd` the others.
  static void interleave(F* even, F* odd) {
    float all[2 * W];
    for (int i = 0; i < W; ++i) all[2 * i] = even->v[i], all[2 * i + 1] = odd->v[i];
    memcpy(even->v, all, sizeof even->v);
    memcpy(odd->v, all + W, sizeof odd->v);
  }
  static I pack_words(const F& low, const F& high) {  // rounded to int16, low in the lower half of a lane
    I r;
    for (int i = 0; i < W; ++i) {
      const int16_t pair[2] = {int16_t(nearbyintf(low.v[i])), int16_t(nearbyintf(high.v[i]))};
      memcpy(&r.v[i], pair, 4);
    }
    return r;
  }
  static F load_f16_n(const void* p, int n) {  // lanes from n on are zero
    uint16_t h[W] = {};
    memcpy(h, p, size_t(n) * 2);
    return load_f16(h);
  }
  static F broadcast(const F& x, int lane) { return set1(x.v[lane]); }

  static B load_b(const uint8_t* p) {
    B r;
    memcpy(r.v, p, sizeof r.v);
    return r;
  }
  static void store_b(uint8_t* p, const B& x) { memcpy(p, x.v, sizeof x.v); }
  // Bits of each byte, moved down by `shift` (up where it is negative); none of `mask` may come from a neighbour.
  template <int shift, int mask>
  static B field(B x) {
    for (int i = 0; i < 4 * W; ++i) x.v[i] = uint8_t((shift >= 0 ? x.v[i] >> shift : x.v[i] << -shift) & mask);
    return x;
  }
  static B either(B a, const B& b) {
    for (int i = 0; i < 4 * W; ++i) a.v[i] |= b.v[i];
    return a;
  }
  static B spread_b(const uint8_t* p) {  // four bytes, W times
    B r;
    for (int i = 0; i < 4 * W; ++i) r.v[i] = p[i % 4];
    return r;
  }
  // W / 8 times 32 codes of one bit, the first four in the lowest bits of four bytes. What is above them is left over.
  static B one_bit(const uint8_t* p) {
    B r;
    for (int i = 0; i < 4 * W; ++i) r.v[i] = uint8_t(p[i / 32 * 4 + i % 4] >> (i % 32 / 4));
    return r;
  }
  // W / 8 times 32 codes of two bits, the first eight in the lowest bits of eight bytes, in the same way.
  static B two_bits(const uint8_t* p) {
    B r;
    for (int i = 0; i < 4 * W; ++i) r.v[i] = uint8_t(p[i / 32 * 8 + i % 8] >> (i % 32 / 8 * 2));
    return r;
  }
  template <int mask>
  static B both_fields(const uint8_t* p) {  // 2 W bytes: the low and the high half of each in turn
    B r;
    for (int i = 0; i < 2 * W; ++i) r.v[2 * i] = p[i] & mask, r.v[2 * i + 1] = uint8_t(p[i] >> 4 & mask);
    return r;
  }
  // The low (high) bytes of the words of a and b in turn.
  static B low_bytes(const H& a, const H& b) {
    B r;
    for (int i = 0; i < 2 * W; ++i) r.v[2 * i] = uint8_t(a.v[i]), r.v[2 * i + 1] = uint8_t(b.v[i]);
    return r;
  }
  static B high_bytes(const H& a, const H& b) {
    B r;
    for (int i = 0; i < 2 * W; ++i) r.v[2 * i] = uint8_t(a.v[i] >> 8), r.v[2 * i + 1] = uint8_t(b.v[i] >> 8);
    return r;
  }
  // Lane i: acc + the sum of a's bytes 4i .. 4i + 3 (unsigned) times b's (signed). No two neighbouring products may sum
  // up beyond int16.
  static I dot_b(const I& acc, const B& a, const B& b) {
    I r;
    for (int i = 0; i < W; ++i) {
      r.v[i] = acc.v[i];
      for (int j = 4 * i; j < 4 * i + 4; ++j) r.v[i] += int32_t(a.v[j]) * int8_t(b.v[j]);
    }
    return r;
  }
  static I join_bytes(const I& high, const I& low) {
    I r;
    for (int i = 0; i < W; ++i) r.v[i] = high.v[i] * 256 + low.v[i];
    return r;
  }
  static F spread(const F& x, int i) {  // x[i] in the first eight lanes, (W = 16) x[i + 1] in the others
    F r;
    for (int j = 0; j < W; ++j) r.v[j] = x.v[(i + j / 8) % W];
    return r;
  }
  static void prefetch(const void* p) { __builtin_prefetch(p); }

#undef DEJAVU_EACH

 private:
  static float half(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(mantissa) * 0x1p-24f;
    uint32_t bits = sign | ((exponent == 31 ? 255u : exponent + 112u) << 23) | (mantissa << 13);
    float f;
    memcpy(&f, &bits, 4);
    return f;
  }
};

}  // namespace
