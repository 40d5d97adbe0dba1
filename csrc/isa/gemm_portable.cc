// float32 matrix product for any CPU, on the vectors of 16 bytes that GCC and Clang lower to SSE2, NEON or plain code.
#include "gemm_impl.h"
#include "gemm_tables.h"

namespace dejavu {
namespace {

struct PortableOps {
  typedef float Word __attribute__((vector_size(16)));
  using Acc = Word;
#if defined(__aarch64__)
  static constexpr int kRows = 8, kVecs = 2;  // 16 sums in 32 registers; compilers spill when there are 24
#else
  static constexpr int kRows = 4, kVecs = 3;  // 12 sums in 16 registers
#endif
  static constexpr int kLanes = 4, kRowUnit = 1, kWordDepth = 1;
  static constexpr size_t kCacheBytesB = 16 << 10;

  static Word load(const void* p) {
    Word x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
  static void store(void* p, Word x) { std::memcpy(p, &x, sizeof x); }
  static Word broadcast(const void* p) {
    float x;
    std::memcpy(&x, p, sizeof x);
    return Word{x, x, x, x};
  }
  static Word zero_word() { return Word{}; }
  static Acc zero() { return Acc{}; }
  static Acc mad(Acc sum, Word a, Word b) { return sum + a * b; }
  static Acc add(Acc a, Acc b) { return a + b; }
  static Acc load_c(const float* p, int lanes) {
    if (lanes >= kLanes) return load(p);
    Acc x{};
    for (int i = 0; i < lanes; ++i) x[i] = p[i];
    return x;
  }
  static void store_c(float* p, Acc x, int lanes) {
    if (lanes >= kLanes) return store(p, x);
    for (int i = 0; i < lanes; ++i) p[i] = x[i];
  }
  static Word along(const float* src, int depth) { return load_c(src, depth); }
  static Word across(const float* src, size_t, int, int lanes) { return load_c(src, lanes); }
  static void transpose(Word (&x)[kLanes]) {
    const Word a = x[0], b = x[1], c = x[2], d = x[3];
    for (int i = 0; i < kLanes; ++i) x[i] = Word{a[i], b[i], c[i], d[i]};
  }
};

}  // namespace

constexpr Gemm kGemmF32Portable = make_gemm<PortableOps>();

}  // namespace dejavu
