// Words of two bf16 of consecutive depth, made from float32 by AVX512-BF16 (round to nearest even; subnormals become
// zero). Internal linkage throughout (see gemm_impl.h).
#pragma once

#include "gemm_vec16.h"

namespace dejavu {
namespace {

// The packing part of an Ops class (gemm_impl.h) with bf16 operands.
struct Bf16Words {
  using Word = __m512;  // 16 words of two bf16; the type is that of the transpose and carries no meaning
  using Acc = __m512;
  static constexpr int kLanes = 16, kWordDepth = 2;

  static Word load(const void* p) { return _mm512_loadu_ps(p); }
  static void store(void* p, Word x) { _mm512_storeu_ps(p, x); }
  static Word zero_word() { return _mm512_setzero_ps(); }

  static Word along(const float* src, int depth) {
    const __m512 low = load_floats(src, depth);
    const __m512 high = depth > 16 ? load_floats(src + 16, depth - 16) : _mm512_setzero_ps();
    return (__m512)_mm512_cvtne2ps_pbh(high, low);
  }
  static Word across(const float* src, size_t ld, int depth, int lanes) {
    const __m512 even = load_floats(src, lanes);
    const __m512 odd = depth > 1 ? load_floats(src + ld, lanes) : _mm512_setzero_ps();
    return zip(even, odd);
  }
  // Words of two: a value of `first` and the value of `second` at the same place.
  static Word zip(__m512 first, __m512 second) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(second, first)));
  }
  static void transpose(Word (&x)[kLanes]) { transpose_16x16(x); }
};

}  // namespace
}  // namespace dejavu
