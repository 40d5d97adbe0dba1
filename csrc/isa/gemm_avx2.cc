// float32 matrix product for AVX2 with FMA: 12 sums in 16 registers.
#include <immintrin.h>

#include "gemm_impl.h"
#include "gemm_tables.h"

namespace dejavu {
namespace {

alignas(32) constexpr int32_t kMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

inline __m256i first_lanes(int lanes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMasks + 8 - lanes));
}

struct Avx2Ops {
  using Word = __m256;
  using Acc = __m256;
  static constexpr int kLanes = 8, kRows = 4, kVecs = 3, kRowUnit = 1, kWordDepth = 1;
  static constexpr size_t kCacheBytesB = 24 << 10;

  static Word load(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
  static void store(void* p, Word x) { _mm256_storeu_ps(static_cast<float*>(p), x); }
  static Word broadcast(const void* p) { return _mm256_broadcast_ss(static_cast<const float*>(p)); }
  static Word zero_word() { return _mm256_setzero_ps(); }
  static Acc zero() { return _mm256_setzero_ps(); }
  static Acc mad(Acc sum, Word a, Word b) { return _mm256_fmadd_ps(a, b, sum); }
  static Acc add(Acc a, Acc b) { return _mm256_add_ps(a, b); }
  static Acc load_c(const float* p, int lanes) {
    return lanes >= kLanes ? load(p) : _mm256_maskload_ps(p, first_lanes(lanes));
  }
  static void store_c(float* p, Acc x, int lanes) {
    lanes >= kLanes ? store(p, x) : _mm256_maskstore_ps(p, first_lanes(lanes), x);
  }
  static Word along(const float* src, int depth) { return load_c(src, depth); }
  static Word across(const float* src, size_t, int, int lanes) { return load_c(src, lanes); }

  static void transpose(Word (&x)[kLanes]) {
    Word pairs[kLanes], quads[kLanes];
    for (int i = 0; i < 8; i += 2) {
      pairs[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
      pairs[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
      for (int h = 0; h < 2; ++h) {
        const __m256d a = _mm256_castps_pd(pairs[i + h]), b = _mm256_castps_pd(pairs[i + 2 + h]);
        quads[i + 2 * h] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
        quads[i + 2 * h + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
      }
    }
    for (int i = 0; i < 4; ++i) {
      x[i] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x20);
      x[i + 4] = _mm256_permute2f128_ps(quads[i], quads[i + 4], 0x31);
    }
  }
};

}  // namespace

constexpr Gemm kGemmF32Avx2 = make_gemm<Avx2Ops>();

}  // namespace dejavu
