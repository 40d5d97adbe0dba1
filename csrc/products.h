// Matrix products with packed rows of weights: a few rows at a time are decoded, packed as an operand of gemm.h and
// multiplied with all tokens while they are in the cache.
//
//   rows that are multiplied with the input (q, k, v, gate, up, head):  C[rows x tokens] = W[rows x d] X^T[d x tokens]
//   rows that are added to the output (o, down):                        Y[tokens x d] += A[tokens x rows] W[rows x d]
#pragma once

#include <type_traits>

#include "gemm.h"
#include "kernels.h"
#include "pool.h"

namespace dejavu {

inline constexpr int kPiece = 32;   // rows of weights, or queries, per product: a multiple of every Gemm's mr and kr
inline constexpr int kDepth = 256;  // weights of a row decoded at a time
inline constexpr int kOutputColumns = 256;  // columns of Y per product
inline constexpr int kOutputDepth = 512;    // rows of W per product

inline int least(int a, int b) { return a < b ? a : b; }
inline int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }

// Rows of weights as Bundles have them: `at(i)` is the i-th.
template <typename At>
struct PackedRows {
  const RowLayout& layout;
  At at;

  void decode(const Kernels& kernels, int i, int begin, int end, float* out) const {
    kernels.rows[int(layout.codec)].decode(layout, at(i), begin, end, out);
  }
};
template <typename At>
PackedRows(const RowLayout&, At) -> PackedRows<At>;

struct Products {
  const Gemm& gemm;
  const Kernels& kernels;

  size_t a_bytes(int m, int k) const { return size_t(round_up(m, gemm.mr) / gemm.mr) * gemm.panel_bytes_a(k); }
  size_t b_bytes(int n, int k) const { return size_t(round_up(n, gemm.nr) / gemm.nr) * gemm.panel_bytes_b(k); }
  // Floats of `scratch` and bytes of `packed` that the two products need.
  size_t scratch_floats() const { return size_t(kPiece) * (kDepth > kOutputColumns ? kDepth : kOutputColumns); }
  size_t packed_bytes(int width) const {
    const size_t dots = a_bytes(kPiece, width), sums = b_bytes(kOutputColumns, kOutputDepth);
    return dots > sums ? dots : sums;
  }

  // out[m x tokens] = rows(0..m) . input, at most kPiece rows.
  template <typename Source>
  void dot(const Source& rows, int m, const void* input, int tokens, float* scratch, void* packed, float* out,
           size_t ld) const {
    const int width = rows.layout.padded;
    const size_t panel = gemm.panel_bytes_a(width);
    if (!pack_a(rows, m, packed, panel)) {
      for (int k0 = 0; k0 < width; k0 += kDepth) {
        const int depth = least(width - k0, kDepth);
        for (int i = 0; i < m; ++i) rows.decode(kernels, i, k0, k0 + depth, scratch + i * kDepth);
        gemm.pack_a(scratch, kDepth, m, depth, at(packed, k0, gemm.mr), panel);
      }
    }
    gemm.multiply(m, tokens, width, packed, panel, input, gemm.panel_bytes_b(width), out, ld, false);
  }

  // out[tokens x columns] = left[tokens x n] . rows(0..n), columns [begin, end) in stored order.
  template <typename Source>
  void axpy(const Source& rows, int n, const void* left, int tokens, Range columns, float* scratch, void* packed,
            float* out, size_t ld) const {
    const size_t left_panel = gemm.panel_bytes_a(n), panel = gemm.panel_bytes_b(kOutputDepth);
    for (int c0 = columns.begin; c0 < columns.end; c0 += kOutputColumns) {
      const int width = least(columns.end - c0, kOutputColumns);
      for (int n0 = 0; n0 < n; n0 += kOutputDepth) {
        const int depth = least(n - n0, kOutputDepth);
        for (int r0 = n0; r0 < n0 + depth; r0 += kPiece) {
          const int m = least(n0 + depth - r0, kPiece);
          void* to = at(packed, r0 - n0, gemm.nr);
          if (pack_b(rows, r0, m, c0, c0 + width, to, panel)) continue;
          for (int i = 0; i < m; ++i) rows.decode(kernels, r0 + i, c0, c0 + width, scratch + i * kOutputColumns);
          gemm.pack_b(scratch, kOutputColumns, m, width, to, panel);
        }
        gemm.multiply(tokens, width, depth, at(left, n0, gemm.mr), left_panel, packed, panel, out + c0, ld, n0 > 0);
      }
    }
  }

  // Address of depth k (a multiple of kr) in a packed operand with panels of `wide` rows or columns.
  template <typename T>
  T* at(T* packed, int k, int wide) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return static_cast<Byte*>(packed) + size_t(k) * size_t(wide) * gemm.element_size;
  }

 private:
  // Straight from the codes, where the product knows how.
  template <typename At>
  bool pack_a(const PackedRows<At>& rows, int m, void* dst, size_t panel) const {
    const auto pack = gemm.pack_rows_a[int(rows.layout.codec)];
    if (!pack) return false;
    Row list[kPiece];
    for (int i = 0; i < m; ++i) list[i] = rows.at(i);
    pack(rows.layout, list, m, dst, panel);
    return true;
  }
  template <typename At>
  bool pack_b(const PackedRows<At>& rows, int first, int m, int begin, int end, void* dst, size_t panel) const {
    const auto pack = gemm.pack_rows_b[int(rows.layout.codec)];
    if (!pack) return false;
    Row list[kPiece];
    for (int i = 0; i < m; ++i) list[i] = rows.at(first + i);
    pack(rows.layout, list, m, begin, end, dst, panel);
    return true;
  }
};

}  // namespace dejavu
