// Blocked matrix product on packed operands: C[m x n] (+)= A[m x k] * B[k x n], C in float32, row-major.
//
// A is packed in panels of `mr` rows, B in panels of `nr` columns. Inside a panel the depth k is the outer dimension,
// in blocks of `kr`, so that a range of k is a contiguous piece of each panel and operands can be packed piece by
// piece. The stride between panels is the caller's (bytes), never smaller than panel_bytes(k). Rows, columns and depth
// beyond the matrix are zero in the packed form; C beyond m x n is never written.
//
// All sources are float32; an implementation converts while it packs (bf16: round to nearest even).
#pragma once

#include <cstddef>

#include "isa.h"
#include "layout.h"

namespace dejavu {

struct Gemm {
  int mr, nr, kr;       // rows of an A panel, columns of a B panel, unit of depth (k is padded to it)
  size_t element_size;  // bytes of a packed element: 4 (float32) or 2 (bf16)

  // dst is the address of depth 0 of panel 0 of the piece: for a piece that starts at depth k0 (a multiple of kr) the
  // caller adds k0 * mr * element_size (A) or k0 * nr * element_size (B). `ld` counts floats.
  void (*pack_a)(const float* src, size_t ld, int m, int k, void* dst, size_t panel_stride);   // src[m][k]
  void (*pack_at)(const float* src, size_t ld, int m, int k, void* dst, size_t panel_stride);  // src[k][m], A = src^T
  void (*pack_b)(const float* src, size_t ld, int k, int n, void* dst, size_t panel_stride);   // src[k][n]
  void (*pack_bt)(const float* src, size_t ld, int k, int n, void* dst, size_t panel_stride);  // src[n][k], B = src^T
  // The same from packed rows of weights, in stored order; null where there is nothing better than decoding the rows
  // first. A = rows[m], whole; B = weights [begin, end) of rows[k] (begin a multiple of 64, end too, or `padded`).
  void (*pack_rows_a[kCodecCount])(const RowLayout&, const Row* rows, int m, void* dst, size_t panel_stride);
  void (*pack_rows_b[kCodecCount])(const RowLayout&, const Row* rows, int k, int begin, int end, void* dst,
                                   size_t panel_stride);

  void (*multiply)(int m, int n, int k, const void* a, size_t a_stride, const void* b, size_t b_stride, float* c,
                   size_t ldc, bool accumulate);

  // Called by each thread before its first and after its last multiply of a job (AMX tile configuration); may be null.
  void (*begin)();
  void (*end)();

  size_t panel_bytes_a(int k) const { return size_t((k + kr - 1) / kr * kr) * mr * element_size; }
  size_t panel_bytes_b(int k) const { return size_t((k + kr - 1) / kr * kr) * nr * element_size; }
};

// float32 arithmetic throughout; exists for every ISA.
const Gemm& gemm_f32(Isa isa);
// bf16 operands, float32 accumulation: AMX tiles or AVX512-BF16 where the ISA has them, otherwise gemm_f32(isa).
const Gemm& gemm_bf16(Isa isa);

}  // namespace dejavu
