// 16 lanes of AVX-512, for the matrix products. Internal linkage throughout (see gemm_impl.h).
#pragma once

// GCC's own header starts undefined vectors from themselves and then warns about it (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstddef>

namespace dejavu {
namespace {

inline __mmask16 first_lanes(int lanes) { return static_cast<__mmask16>(lanes >= 16 ? 0xffff : (1 << lanes) - 1); }

inline __m512 load_floats(const float* p, int lanes) {
  return lanes >= 16 ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first_lanes(lanes), p);
}

inline void store_floats(float* p, __m512 x, int lanes) {
  lanes >= 16 ? _mm512_storeu_ps(p, x) : _mm512_mask_storeu_ps(p, first_lanes(lanes), x);
}

// Transposes a block of 16 x 16 words of 4 bytes.
inline void transpose_16x16(__m512 (&x)[16]) {
  __m512 pairs[16], quads[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  // quads[4 * g + c] holds, in each 128-bit lane l, column 4 * l + c of rows 4 * g .. 4 * g + 3.
  for (int i = 0; i < 16; i += 4) {
    for (int h = 0; h < 2; ++h) {
      const __m512d a = _mm512_castps_pd(pairs[i + h]), b = _mm512_castps_pd(pairs[i + 2 + h]);
      quads[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
      quads[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
    }
  }
  for (int c = 0; c < 4; ++c) {
    const __m512 low01 = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0x88);       // lanes 0, 2 of groups 0, 1
    const __m512 high01 = _mm512_shuffle_f32x4(quads[c], quads[4 + c], 0xdd);      // lanes 1, 3
    const __m512 low23 = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0x88);  // of groups 2, 3
    const __m512 high23 = _mm512_shuffle_f32x4(quads[8 + c], quads[12 + c], 0xdd);
    x[c] = _mm512_shuffle_f32x4(low01, low23, 0x88);
    x[4 + c] = _mm512_shuffle_f32x4(high01, high23, 0x88);
    x[8 + c] = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    x[12 + c] = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

}  // namespace
}  // namespace dejavu
