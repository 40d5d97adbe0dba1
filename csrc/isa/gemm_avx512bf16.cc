// bf16 matrix product for AVX512-BF16: the float32 kernel with words of two bf16.
#include "gemm_bf16.h"
#include "gemm_impl.h"
#include "gemm_tables.h"
#include "pack_rows_bf16.h"

namespace dejavu {
namespace {

struct Avx512Bf16Ops : Bf16Words {
  static constexpr int kRows = 8, kVecs = 3, kRowUnit = 1;
  static constexpr size_t kCacheBytesB = 30 << 10;

  static Word broadcast(const void* p) {
    Word word = _mm512_set1_ps(*static_cast<const float*>(p));
#if defined(__clang__)
    __asm__("" : "+v"(word));  // clang 16 crashes on a broadcast that it sees to be of bf16
#endif
    return word;
  }
  static Acc zero() { return _mm512_setzero_ps(); }
  static Acc mad(Acc sum, Word a, Word b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
  static Acc add(Acc a, Acc b) { return _mm512_add_ps(a, b); }
  static Acc load_c(const float* p, int lanes) { return load_floats(p, lanes); }
  static void store_c(float* p, Acc x, int lanes) { store_floats(p, x, lanes); }
};

}  // namespace

constexpr Gemm kGemmBf16Avx512 = with_rows<Avx512Bf16Ops>(make_gemm<Avx512Bf16Ops>());

}  // namespace dejavu
