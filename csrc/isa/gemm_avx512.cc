// float32 matrix product for AVX-512: 24 sums in 32 registers.
#include "gemm_impl.h"
#include "gemm_tables.h"
#include "gemm_vec16.h"

namespace dejavu {
namespace {

struct Avx512Ops {
  using Word = __m512;
  using Acc = __m512;
  static constexpr int kLanes = 16, kRows = 8, kVecs = 3, kRowUnit = 1, kWordDepth = 1;
  static constexpr size_t kCacheBytesB = 30 << 10;

  static Word load(const void* p) { return _mm512_loadu_ps(p); }
  static void store(void* p, Word x) { _mm512_storeu_ps(p, x); }
  static Word broadcast(const void* p) { return _mm512_set1_ps(*static_cast<const float*>(p)); }
  static Word zero_word() { return _mm512_setzero_ps(); }
  static Acc zero() { return _mm512_setzero_ps(); }
  static Acc mad(Acc sum, Word a, Word b) { return _mm512_fmadd_ps(a, b, sum); }
  static Acc add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
  static Acc load_c(const float* p, int lanes) { return load_floats(p, lanes); }
  static void store_c(float* p, Acc x, int lanes) { store_floats(p, x, lanes); }
  static Word along(const float* src, int depth) { return load_floats(src, depth); }
  static Word across(const float* src, size_t, int, int lanes) { return load_floats(src, lanes); }
  static void transpose(Word (&x)[kLanes]) { transpose_16x16(x); }
};

}  // namespace

constexpr Gemm kGemmF32Avx512 = make_gemm<Avx512Ops>();

}  // namespace dejavu
