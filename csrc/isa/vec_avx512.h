// Vectors of 16 lanes on AVX-512. See vec_portable.h for what each operation means.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace {

struct Vec {
  static constexpr int W = 16;
  static constexpr int kTokens = 8;
  using F = __m512;   // W floats
  using I = __m512i;  // W int32
  using H = __m512i;  // 2 W int16
  using B = __m512i;  // 4 W bytes

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(mask(n), p); }
  static void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, mask(n), x); }
  // Masked accesses wait until what was stored there just before has left the store buffer.
  static F load_four(const float* p) { return _mm512_insertf32x4(zero(), _mm_loadu_ps(p), 0); }
  static void store_four(float* p, F x) { _mm_storeu_ps(p, _mm512_castps512_ps128(x)); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F above(F a, F low) {  // 0 where not a > low
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, low, _CMP_GT_OQ), a);
  }
  static int list_above(int32_t* list, int first, F a, F low) {
    const __mmask16 over = _mm512_cmp_ps_mask(a, low, _CMP_GT_OQ);
    const I places = _mm512_add_epi32(_mm512_set1_epi32(first),
                                      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
    _mm512_storeu_si512(list, _mm512_maskz_compress_epi32(over, places));
    return __builtin_popcount(over);
  }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static F copysign(F a, F sign) {  // |a| with the sign of `sign`
    return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(_mm512_castps_si512(a), _mm512_castps_si512(sign),
                                                         _mm512_set1_epi32(int(0x80000000u)), 0xd8));
  }
  static F scale2(F a, F n) { return _mm512_scalef_ps(a, n); }  // a * 2^n, n integral
  static float sum(F a) {
    a = _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e));
    return _mm_cvtss_f32(quarters(_mm512_add_ps(a, _mm512_permute_ps(a, 0xb1))));
  }
  static void sum_four(F a, F b, F c, F d, float* out) {
    const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));  // a, b, a, b in every quarter
    const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const F low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
    _mm_storeu_ps(out, quarters(_mm512_add_ps(low, high)));
  }
  static float maximum(F a) { return _mm512_reduce_max_ps(a); }

  static F load_f16(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
  static F load_bf16(const void* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
  }
  static void load_bf16_pairs(const void* p, F* low, F* high) {
    __m512i words = _mm512_loadu_si512(p);
    asm("" : "+v"(words));  // one load: GCC would make one for the shift and one for the mask
    *low = _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
    *high = _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000u))));
  }
  static void store_bf16(void* p, F x) {  // rounded to nearest even; NaN stays NaN
    const __m512i bits = _mm512_castps_si512(x), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const __m512i found =
        _mm512_mask_mov_epi32(_mm512_srli_epi32(up, 16), _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(found));
  }
  static F load_i8(const void* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
  }
  static I load_u8(const void* p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)); }
  static I load_u16(const void* p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)); }
  template <int shift>
  static F nibble(I x) {
    return to_float(_mm512_and_si512(_mm512_srli_epi32(x, shift), _mm512_set1_epi32(15)));
  }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static I set1_i(int32_t x) { return _mm512_set1_epi32(x); }
  static void store_i(int32_t* p, I x) { _mm512_storeu_si512(p, x); }
  static I zero_i() { return _mm512_setzero_si512(); }

  static H load_h(const int16_t* p) { return _mm512_loadu_si512(p); }
  static H load_i8_h(const void* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
  template <int shift>
  static H nibble_h(H x) {
    return shift == 12 ? _mm512_srli_epi16(x, 12)
                       : _mm512_and_si512(_mm512_srli_epi16(x, shift), _mm512_set1_epi16(15));
  }
  template <int mask>
  static H masked_h(H x) {
    return _mm512_and_si512(x, _mm512_set1_epi16(mask));
  }
  static H zip_bytes(const uint8_t* a, const uint8_t* b) {
    return _mm512_or_si512(load_u8(a), _mm512_slli_epi32(load_u8(b), 16));
  }
  static I dot_h(I acc, H a, H b) { return _mm512_dpwssd_epi32(acc, a, b); }

  static F pairs(const float* p) {  // p[0], p[0], p[1], p[1], ...
    const __m512i index = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    return _mm512_permutexvar_ps(index, _mm512_castps256_ps512(_mm256_loadu_ps(p)));
  }
  static H keep(H x) {
    asm("" : "+v"(x));
    return x;
  }
  static void pair_words(H a, H b, H* even, H* odd) {
    *even = _mm512_mask_blend_epi16(0xaaaaaaaau, a, _mm512_slli_epi32(b, 16));
    *odd = _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(a, 16), b);
  }
  static void interleave(F* even, F* odd) {
    const __m512i a = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i b = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    const F first = _mm512_permutex2var_ps(*even, a, *odd);
    *odd = _mm512_permutex2var_ps(*even, b, *odd);
    *even = first;
  }
  static I pack_words(F low, F high) {
    const __m512i l = _mm512_cvtps_epi32(low), h = _mm512_cvtps_epi32(high);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, l, _mm512_slli_epi32(h, 16));
  }
  static F load_f16_n(const void* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask(n), p)); }
  static F broadcast(F x, int lane) { return _mm512_permutexvar_ps(_mm512_set1_epi32(lane), x); }
  static B load_b(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store_b(uint8_t* p, B x) { _mm512_storeu_si512(p, x); }
  template <int shift, int mask>
  static B field(B x) {
    return _mm512_and_si512(shift >= 0 ? _mm512_srli_epi16(x, shift & 15) : _mm512_slli_epi16(x, -shift & 15),
                            _mm512_set1_epi8(mask));
  }
  static B either(B a, B b) { return _mm512_or_si512(a, b); }
  static B spread_b(const uint8_t* p) {
    int word;
    memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
  }
  static B one_bit(const uint8_t* p) {
    const __m128i words = _mm_cvtepu32_epi64(_mm_loadl_epi64((const __m128i*)p));
    return shift_words(_mm_or_si128(words, _mm_slli_epi64(words, 31)));
  }
  static B two_bits(const uint8_t* p) {
    const __m512i both = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)p));
    const __m512i lanes = _mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), shifts = _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6);
    return _mm512_srlv_epi64(_mm512_permutexvar_epi64(lanes, both), shifts);
  }
  template <int mask>
  static B both_fields(const uint8_t* p) {
    const __m512i x = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)p));
    return field<0, mask>(_mm512_or_si512(x, _mm512_slli_epi16(x, 4)));
  }
  static B low_bytes(H a, H b) {
    return _mm512_ternarylogic_epi32(a, _mm512_set1_epi16(0xff), _mm512_slli_epi16(b, 8), 0xea);
  }
  static B high_bytes(H a, H b) {
    return _mm512_ternarylogic_epi32(b, _mm512_set1_epi16(short(0xff00)), _mm512_srli_epi16(a, 8), 0xea);
  }
  static I dot_b(I acc, B a, B b) { return _mm512_dpbusd_epi32(acc, a, b); }
  static I join_bytes(I high, I low) { return _mm512_add_epi32(_mm512_slli_epi32(high, 8), low); }
  static F spread(F x, int i) {
    const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
    return _mm512_permutexvar_ps(_mm512_add_epi32(lanes, _mm512_set1_epi32(i)), x);
  }
  static void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T2); }

 private:
  static __m128 quarters(F x) {  // added up
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  static B shift_words(__m128i words) {
    const __m512i each =
        _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 0, 0, 0, 1, 1, 1, 1), _mm512_castsi128_si512(words));
    return _mm512_srlv_epi64(each, _mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6));
  }
  static __mmask16 mask(int n) { return __mmask16((1u << n) - 1u); }
};

}  // namespace
