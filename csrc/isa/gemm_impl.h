// Packing and the vector kernel of gemm.h, shared by the instruction sets.
//
// Everything here has internal linkage: each file of csrc/isa/ compiles its own copy with its own flags, and the linker
// must never hand one of them to another. For the same reason nothing of the standard library that emits code is used.
//
// The layout is in 4-byte words: one float32, or two bf16 of consecutive depth. With L = Ops::kLanes words in a vector,
//   a panel of A is [block of depth][Ops::kRows][L words],
//   a panel of B is [block of depth][Ops::kVecs][L words][L columns],
// so a block is L words deep. Rows of A are copied without a transpose (the kernel broadcasts single words), and a
// vector of columns is a square block, which for 16 lanes of bf16 is also exactly the operand of an AMX tile.
//
// Padding reaches to the end of the last block of depth, of the last vector of columns and of the last kRowUnit rows.
// What lies beyond in the last panel is neither written nor read.
//
// An Ops class gives:
//   kLanes, kRows, kVecs, kRowUnit, kWordDepth (depth of a word), kCacheBytesB (of B to keep in the L1 cache)
//   Word (a vector of L words), Acc (a vector of L float32)
//   Word load(const void*), broadcast(const void* word), zero_word(); void store(void*, Word)
//   Acc zero(), mad(Acc, Word, Word), load_c(const float*, int lanes), add(Acc, Acc); void store_c(float*, Acc, int
//   lanes) Word along(const float* src, int depth): L words of consecutive depth; floats at `depth` and beyond are not
//   read Word across(const float* src, size_t ld, int depth, int lanes): one word of each of L columns; `depth` rows
//   are left void transpose(Word (&block)[L])
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../gemm.h"

namespace dejavu {
namespace {

template <class Ops>
struct Layout {
  static constexpr int kDepth = Ops::kLanes * Ops::kWordDepth;       // of a block, in elements
  static constexpr size_t kRowBytes = size_t{4} * Ops::kLanes;       // of one row of A in a block, of one vector
  static constexpr size_t kBlockBytesA = kRowBytes * Ops::kRows;     // of a block of a panel of A
  static constexpr size_t kSquareBytes = kRowBytes * Ops::kLanes;    // of one vector of columns in a block of B
  static constexpr size_t kBlockBytesB = kSquareBytes * Ops::kVecs;  // of a block of a panel of B
  static constexpr int kColumns = Ops::kLanes * Ops::kVecs;          // of a panel of B
};

inline int least(int a, int b) { return a < b ? a : b; }
inline int round_up(int a, int unit) { return (a + unit - 1) / unit * unit; }

// Loops over registers must be unrolled whole, or the compiler keeps them in memory.
#if defined(__clang__)
#define DEJAVU_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DEJAVU_UNROLL _Pragma("GCC unroll 16")
#endif

#define DEJAVU_INLINE __attribute__((always_inline)) inline

// ---- packing ----

template <class Ops>
void pack_a(const float* src, size_t ld, int m, int k, void* dst, size_t panel_stride) {
  using At = Layout<Ops>;
  for (int i = 0; i < m; i += Ops::kRows) {
    char* out = static_cast<char*>(dst) + i / Ops::kRows * panel_stride;
    const int rows = least(Ops::kRows, m - i), padded = round_up(rows, Ops::kRowUnit);
    for (int d = 0; d < k; d += At::kDepth, out += At::kBlockBytesA) {
      const float* from = src + i * ld + d;
      char* to = out;
      if (k - d >= At::kDepth) {
        for (int r = 0; r < rows; ++r, from += ld, to += At::kRowBytes) Ops::store(to, Ops::along(from, At::kDepth));
      } else {
        for (int r = 0; r < rows; ++r, from += ld, to += At::kRowBytes) Ops::store(to, Ops::along(from, k - d));
      }
      for (int r = rows; r < padded; ++r, to += At::kRowBytes) Ops::store(to, Ops::zero_word());
    }
  }
}

// The words of L columns of src over one block of depth, of which `depth` rows and `lanes` columns are there.
template <class Ops>
DEJAVU_INLINE void load_square(const float* src, size_t ld, int depth, int lanes,
                               typename Ops::Word (&block)[Ops::kLanes]) {
  DEJAVU_UNROLL
  for (int w = 0; w < Ops::kLanes; ++w) {
    const int left = depth - w * Ops::kWordDepth;
    block[w] = left > 0 ? Ops::across(src + w * Ops::kWordDepth * ld, ld, left, lanes) : Ops::zero_word();
  }
}

// The functions below handle one square block of L x L words each. Whole ones get their sizes as constants, so that the
// tests for what is missing vanish and the block stays in registers.

template <class Ops>
DEJAVU_INLINE void square_b(const float* src, size_t ld, int depth, int lanes, char* out) {
  typename Ops::Word block[Ops::kLanes];
  load_square<Ops>(src, ld, depth, lanes, block);
  DEJAVU_UNROLL
  for (int w = 0; w < Ops::kLanes; ++w) Ops::store(out + w * Layout<Ops>::kRowBytes, block[w]);
}

template <class Ops>
DEJAVU_INLINE void square_at(const float* src, size_t ld, int depth, int lanes, char* out, size_t panel_stride) {
  typename Ops::Word block[Ops::kLanes];
  load_square<Ops>(src, ld, depth, lanes, block);
  Ops::transpose(block);
  DEJAVU_UNROLL
  for (int r = 0; r < Ops::kLanes; ++r) {  // a panel is narrower than the block, or a multiple of it
    if (r < round_up(lanes, Ops::kRowUnit)) {
      Ops::store(out + r / Ops::kRows * panel_stride + r % Ops::kRows * Layout<Ops>::kRowBytes, block[r]);
    }
  }
}

template <class Ops>
DEJAVU_INLINE void square_bt(const float* src, size_t ld, int depth, int lanes, char* out) {
  typename Ops::Word block[Ops::kLanes];
  DEJAVU_UNROLL
  for (int c = 0; c < Ops::kLanes; ++c) {
    block[c] = c < lanes ? Ops::along(src + c * ld, depth) : Ops::zero_word();
  }
  Ops::transpose(block);
  DEJAVU_UNROLL
  for (int w = 0; w < Ops::kLanes; ++w) Ops::store(out + w * Layout<Ops>::kRowBytes, block[w]);
}

template <class Ops>
void pack_b(const float* src, size_t ld, int k, int n, void* dst, size_t panel_stride) {
  using At = Layout<Ops>;
  constexpr int L = Ops::kLanes;
  for (int d = 0; d < k; d += At::kDepth) {
    char* const row = static_cast<char*>(dst) + d / At::kDepth * At::kBlockBytesB;
    for (int j = 0; j < n; j += L) {
      char* const out = row + j / At::kColumns * panel_stride + j % At::kColumns / L * At::kSquareBytes;
      const float* from = src + d * ld + j;
      if (k - d >= At::kDepth && n - j >= L) {
        square_b<Ops>(from, ld, At::kDepth, L, out);
      } else {
        square_b<Ops>(from, ld, k - d, least(L, n - j), out);
      }
    }
  }
}

template <class Ops>
void pack_at(const float* src, size_t ld, int m, int k, void* dst, size_t panel_stride) {
  using At = Layout<Ops>;
  constexpr int L = Ops::kLanes;
  static_assert(L % Ops::kRows == 0 || Ops::kRows % L == 0, "blocks must not straddle panels");
  for (int d = 0; d < k; d += At::kDepth) {
    char* const row = static_cast<char*>(dst) + d / At::kDepth * At::kBlockBytesA;
    for (int i = 0; i < m; i += L) {
      char* const out = row + i / Ops::kRows * panel_stride + i % Ops::kRows * At::kRowBytes;
      const float* from = src + d * ld + i;
      if (k - d >= At::kDepth && m - i >= L) {
        square_at<Ops>(from, ld, At::kDepth, L, out, panel_stride);
      } else {
        square_at<Ops>(from, ld, k - d, least(L, m - i), out, panel_stride);
      }
    }
  }
}

template <class Ops>
void pack_bt(const float* src, size_t ld, int k, int n, void* dst, size_t panel_stride) {
  using At = Layout<Ops>;
  constexpr int L = Ops::kLanes;
  for (int j = 0; j < n; j += L) {
    char* out = static_cast<char*>(dst) + j / At::kColumns * panel_stride + j % At::kColumns / L * At::kSquareBytes;
    for (int d = 0; d < k; d += At::kDepth, out += At::kBlockBytesB) {
      const float* from = src + j * ld + d;
      if (k - d >= At::kDepth && n - j >= L) {
        square_bt<Ops>(from, ld, At::kDepth, L, out);
      } else {
        square_bt<Ops>(from, ld, least(At::kDepth, k - d), least(L, n - j), out);
      }
    }
  }
}

// ---- the kernel: R rows x V vectors of C over `blocks` blocks of depth; the last vector has `lanes` columns ----

template <class Ops, int R, int V>
void kernel(int blocks, const char* a, const char* b, float* c, size_t ldc, int lanes, bool accumulate) {
  using At = Layout<Ops>;
  constexpr int L = Ops::kLanes;
  typename Ops::Acc acc[R][V];
  DEJAVU_UNROLL
  for (int r = 0; r < R; ++r) {
    DEJAVU_UNROLL
    for (int v = 0; v < V; ++v) acc[r][v] = Ops::zero();
  }
  for (; blocks > 0; --blocks, a += At::kBlockBytesA, b += At::kBlockBytesB) {
    for (int w = 0; w < L; w += 4) {
      DEJAVU_UNROLL
      for (int s = 0; s < 4; ++s) {
        typename Ops::Word column[V];
        DEJAVU_UNROLL
        for (int v = 0; v < V; ++v) column[v] = Ops::load(b + v * At::kSquareBytes + (w + s) * At::kRowBytes);
        DEJAVU_UNROLL
        for (int r = 0; r < R; ++r) {
          const typename Ops::Word row = Ops::broadcast(a + r * At::kRowBytes + (w + s) * 4);
          DEJAVU_UNROLL
          for (int v = 0; v < V; ++v) acc[r][v] = Ops::mad(acc[r][v], row, column[v]);
        }
      }
    }
  }
  DEJAVU_UNROLL
  for (int r = 0; r < R; ++r) {
    DEJAVU_UNROLL
    for (int v = 0; v < V; ++v) {
      float* to = c + r * ldc + v * L;
      const int width = v == V - 1 ? lanes : L;
      Ops::store_c(to, accumulate ? Ops::add(Ops::load_c(to, width), acc[r][v]) : acc[r][v], width);
    }
  }
}

using Kernel = void (*)(int blocks, const char* a, const char* b, float* c, size_t ldc, int lanes, bool accumulate);

template <class Ops, int R, int V>
Kernel choose_kernel(int rows, int vecs) {
  if constexpr (R > 1) {
    if (rows < R) return choose_kernel<Ops, R - 1, V>(rows, vecs);
  }
  if constexpr (V > 1) {
    if (vecs < V) return choose_kernel<Ops, R, V - 1>(rows, vecs);
  }
  return kernel<Ops, R, V>;
}

// The depth is taken in pieces whose part of a panel of B stays in the L1 cache while the panels of A pass by.
template <class Ops>
void multiply(int m, int n, int k, const void* a, size_t a_stride, const void* b, size_t b_stride, float* c, size_t ldc,
              bool accumulate) {
  using At = Layout<Ops>;
  constexpr int kPiece = int(Ops::kCacheBytesB / At::kBlockBytesB);
  const int total = round_up(k, At::kDepth) / At::kDepth;
  int done = 0;
  do {
    const int blocks = least(kPiece, total - done);
    for (int j = 0; j < n; j += At::kColumns) {
      const char* panel_b = static_cast<const char*>(b) + j / At::kColumns * b_stride + done * At::kBlockBytesB;
      const int columns = least(At::kColumns, n - j), vecs = round_up(columns, Ops::kLanes) / Ops::kLanes;
      const int lanes = columns - (vecs - 1) * Ops::kLanes;
      const Kernel whole = choose_kernel<Ops, Ops::kRows, Ops::kVecs>(Ops::kRows, vecs);
      for (int i = 0; i < m; i += Ops::kRows) {
        const char* panel_a = static_cast<const char*>(a) + i / Ops::kRows * a_stride + done * At::kBlockBytesA;
        const int rows = m - i;
        const Kernel run = rows >= Ops::kRows ? whole : choose_kernel<Ops, Ops::kRows, Ops::kVecs>(rows, vecs);
        run(blocks, panel_a, panel_b, c + i * ldc + j, ldc, lanes, accumulate || done > 0);
      }
    }
    done += blocks;
  } while (done < total);
}

template <class Ops>
constexpr Gemm make_gemm() {
  using At = Layout<Ops>;
  return {Ops::kRows,  At::kColumns, At::kDepth,    size_t{4} / Ops::kWordDepth,
          pack_a<Ops>, pack_at<Ops>, pack_b<Ops>,   pack_bt<Ops>,
          {},          {},           multiply<Ops>, nullptr,
          nullptr};
}

}  // namespace
}  // namespace dejavu
