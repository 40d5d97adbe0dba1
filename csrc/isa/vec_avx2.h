// Vectors of 8 lanes on AVX2, FMA and F16C. See vec_portable.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  static constexpr int W = 8;
  static constexpr int kTokens = 4;
  using F = __m256;
  using I = __m256i;
  using H = __m256i;
  using B = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float x) { return _mm256_set1_ps(x); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F load_n(const float* p, int n) { return _mm256_maskload_ps(p, mask(n)); }
  static void store_n(float* p, F x, int n) { _mm256_maskstore_ps(p, mask(n), x); }
  // Masked accesses wait until what was stored there just before has left the store buffer.
  static F load_four(const float* p) { return _mm256_insertf128_ps(zero(), _mm_loadu_ps(p), 0); }
  static void store_four(float* p, F x) { _mm_storeu_ps(p, _mm256_castps256_ps128(x)); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F above(F a, F low) { return _mm256_and_ps(a, _mm256_cmp_ps(a, low, _CMP_GT_OQ)); }  // 0 where not a > low
  static int list_above(int32_t* list, int first, F a, F low) {
    const unsigned over = unsigned(_mm256_movemask_ps(_mm256_cmp_ps(a, low, _CMP_GT_OQ)));
    int found = 0;
    for (int i = 0; i < W; ++i) list[found] = first + i, found += int(over >> i & 1);
    return found;
  }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static F copysign(F a, F sign) {
    const F bit = _mm256_set1_ps(-0.0f);
    return _mm256_or_ps(_mm256_andnot_ps(bit, a), _mm256_and_ps(bit, sign));
  }
  static F scale2(F a, F n) {  // two steps: 2^n itself may be out of range
    const F half = _mm256_round_ps(_mm256_mul_ps(n, set1(0.5f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return mul(mul(a, power(half)), power(sub(n, half)));
  }
  static float sum(F a) {
    a = _mm256_add_ps(a, _mm256_permute_ps(a, 0x4e));
    return _mm_cvtss_f32(halves(_mm256_add_ps(a, _mm256_permute_ps(a, 0xb1))));
  }
  static void sum_four(F a, F b, F c, F d, float* out) {
    const F ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));  // a, b, a, b in both halves
    const F cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    const F low = _mm256_shuffle_ps(ab, cd, 0x44), high = _mm256_shuffle_ps(ab, cd, 0xee);
    _mm_storeu_ps(out, halves(_mm256_add_ps(low, high)));
  }
  static float maximum(F a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }

  static F load_f16(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
  static F load_bf16(const void* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
  }
  static void load_bf16_pairs(const void* p, F* low, F* high) {
    const __m256i words = _mm256_loadu_si256((const __m256i*)p);
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
    *high = _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000u))));
  }
  static void store_bf16(void* p, F x) {  // rounded to nearest even; NaN stays NaN
    const __m256i bits = _mm256_castps_si256(x), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i found = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(found, found), 0x08);
    _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(pairs));
  }
  static F load_i8(const void* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
  }
  static I load_u8(const void* p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)); }
  static I load_u16(const void* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)); }
  template <int shift>
  static F nibble(I x) {
    return to_float(_mm256_and_si256(_mm256_srli_epi32(x, shift), _mm256_set1_epi32(15)));
  }
  static F to_float(I x) { return _mm256_cvtepi32_ps(x); }
  static I set1_i(int32_t x) { return _mm256_set1_epi32(x); }
  static void store_i(int32_t* p, I x) { _mm256_storeu_si256((__m256i*)p, x); }
  static I zero_i() { return _mm256_setzero_si256(); }

  static H load_h(const int16_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static H load_i8_h(const void* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
  template <int shift>
  static H nibble_h(H x) {
    return shift == 12 ? _mm256_srli_epi16(x, 12)
                       : _mm256_and_si256(_mm256_srli_epi16(x, shift), _mm256_set1_epi16(15));
  }
  template <int mask>
  static H masked_h(H x) {
    return _mm256_and_si256(x, _mm256_set1_epi16(mask));
  }
  static H zip_bytes(const uint8_t* a, const uint8_t* b) {
    return _mm256_or_si256(load_u8(a), _mm256_slli_epi32(load_u8(b), 16));
  }
  static I dot_h(I acc, H a, H b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }

  static F pairs(const float* p) {
    return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3));
  }
  static H keep(H x) {
    asm("" : "+x"(x));
    return x;
  }
  static void pair_words(H a, H b, H* even, H* odd) {
    *even = _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xaa);
    *odd = _mm256_blend_epi16(_mm256_srli_epi32(a, 16), b, 0xaa);
  }
  static void interleave(F* even, F* odd) {
    const F low = _mm256_unpacklo_ps(*even, *odd), high = _mm256_unpackhi_ps(*even, *odd);
    *even = _mm256_permute2f128_ps(low, high, 0x20);
    *odd = _mm256_permute2f128_ps(low, high, 0x31);
  }
  static I pack_words(F low, F high) {
    const __m256i l = _mm256_cvtps_epi32(low), h = _mm256_cvtps_epi32(high);
    return _mm256_blend_epi16(l, _mm256_slli_epi32(h, 16), 0xaa);
  }
  static F load_f16_n(const void* p, int n) {
    uint16_t h[8] = {};
    memcpy(h, p, size_t(n) * 2);
    return load_f16(h);
  }
  static F broadcast(F x, int lane) { return _mm256_permutevar8x32_ps(x, _mm256_set1_epi32(lane)); }

  static B load_b(const uint8_t* p) { return _mm256_loadu_si256((const __m256i*)p); }
  static void store_b(uint8_t* p, B x) { _mm256_storeu_si256((__m256i*)p, x); }
  template <int shift, int mask>
  static B field(B x) {
    return _mm256_and_si256(shift >= 0 ? _mm256_srli_epi16(x, shift & 15) : _mm256_slli_epi16(x, -shift & 15),
                            _mm256_set1_epi8(mask));
  }
  static B either(B a, B b) { return _mm256_or_si256(a, b); }
  static B spread_b(const uint8_t* p) {
    int word;
    memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
  }
  static B one_bit(const uint8_t* p) {
    uint32_t word;
    memcpy(&word, p, 4);
    return shift_word((long long)(word | uint64_t(word) << 31));
  }
  static B two_bits(const uint8_t* p) {
    const __m256i all = _mm256_broadcastq_epi64(_mm_loadl_epi64((const __m128i*)p));
    return _mm256_srlv_epi64(all, _mm256_setr_epi64x(0, 2, 4, 6));
  }
  template <int mask>
  static B both_fields(const uint8_t* p) {
    const __m256i x = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)p));
    return field<0, mask>(_mm256_or_si256(x, _mm256_slli_epi16(x, 4)));
  }
  static B low_bytes(H a, H b) {
    return _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_slli_epi16(b, 8));
  }
  static B high_bytes(H a, H b) {
    return _mm256_or_si256(_mm256_and_si256(b, _mm256_set1_epi16(short(0xff00))), _mm256_srli_epi16(a, 8));
  }
  static I dot_b(I acc, B a, B b) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
  }
  static I join_bytes(I high, I low) { return _mm256_add_epi32(_mm256_slli_epi32(high, 8), low); }
  static F spread(F x, int i) { return broadcast(x, i); }
  static void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }

 private:
  static __m128 halves(F x) { return _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1)); }
  static B shift_word(long long word) {
    return _mm256_srlv_epi64(_mm256_set1_epi64x(word), _mm256_setr_epi64x(0, 2, 4, 6));
  }
  static __m256i mask(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static F power(F n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
};

}  // namespace
