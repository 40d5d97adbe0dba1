// Operands of bf16 products made straight from packed rows of weights: what RowKernels::decode and pack_a or pack_b
// would give, without the float32 in between. Internal linkage throughout (see gemm_impl.h).
#pragma once

#include "gemm_bf16.h"
#include "gemm_impl.h"
#include "vec_avx512.h"

namespace dejavu {
namespace {

// Weights of one row in stored order, one unit after the other: 64 weights in blocks, 32 elsewhere.
template <Codec C>
struct RowReader {
  static constexpr bool kGrouped = C != Codec::bf16;

  const RowLayout& layout;
  const Row& row;
  __m512 scale[2], minimum[2];  // of the elements of a unit; all blocks of 32 elements have the same ones

  int unit(int o) const { return o < layout.blocks * kBlock ? 64 : 32; }
  const uint8_t* address(int o) const {
    if (C == Codec::int4 && unit(o) == 64) return row.codes + size_t(o) / kNibbleChunk * (kNibbleChunk / 2);
    return row.codes + (C == Codec::bf16 ? size_t(o) * 2 : C == Codec::int8 ? size_t(o) : size_t(o) / 2);
  }

  // To be called where reading starts and at the start of each block or tail group.
  DEJAVU_INLINE void load_scales(int o) {
    const uint8_t* scales = row.scales;
    const uint8_t* minima = row.scales + size_t(layout.groups) * 2;
    if (o < layout.blocks * kBlock) {
      spread(scales + size_t(o / kBlock * kBlockGroups) * 2, scale);
      if (C == Codec::int4) spread(minima + size_t(o / kBlock * kBlockGroups) * 2, minimum);
    } else {
      scale[0] = scale[1] = single(scales + size_t(o / kGroup) * 2);
      if (C == Codec::int4) minimum[0] = minimum[1] = single(minima + size_t(o / kGroup) * 2);
    }
  }

  // The unit that begins at o, 16 weights a vector.
  DEJAVU_INLINE void read(int o, __m512 (&out)[4]) {
    if constexpr (kGrouped) {
      if (o % kBlock == 0 || o >= layout.blocks * kBlock) load_scales(o);
    }
    const uint8_t* p = address(o);
    if constexpr (C == Codec::bf16) {
      if (o + kFloatUnit <= layout.d) return Vec::load_bf16_pairs(p, &out[0], &out[1]);
      for (int v = 0; v < 2; ++v) {
        const int left = layout.d - o - v * 16;
        const __m256i words = _mm256_maskz_loadu_epi16(first_lanes(left > 0 ? left : 0), p + v * 32);
        out[v] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16));
      }
    } else if constexpr (C == Codec::int8) {
      for (int v = 0; v < (unit(o) == 64 ? 4 : 2); ++v) out[v] = _mm512_mul_ps(Vec::load_i8(p + v * 16), scale[v % 2]);
    } else if (unit(o) == 64) {
      for (int v = 0; v < 2; ++v) {
        const __m512i codes = Vec::load_u16(p + v * 32);
        const bool upper = o % kNibbleChunk != 0;
        const __m512 a = upper ? Vec::nibble<4>(codes) : Vec::nibble<0>(codes);
        const __m512 b = upper ? Vec::nibble<12>(codes) : Vec::nibble<8>(codes);
        out[v] = _mm512_fmadd_ps(a, scale[v], minimum[v]);
        out[v + 2] = _mm512_fmadd_ps(b, scale[v], minimum[v]);
      }
    } else {
      const __m512i codes = Vec::load_u8(p);
      out[0] = _mm512_fmadd_ps(Vec::nibble<0>(codes), scale[0], minimum[0]);
      out[1] = _mm512_fmadd_ps(Vec::nibble<4>(codes), scale[0], minimum[0]);
    }
  }

 private:
  // Sixteen float16, each for two neighbouring elements.
  static void spread(const uint8_t* halves, __m512 (&out)[2]) {
    const __m512 all = Vec::load_f16(halves);
    const __m512i low = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    out[0] = _mm512_permutexvar_ps(low, all);
    out[1] = _mm512_permutexvar_ps(_mm512_add_epi32(low, _mm512_set1_epi32(8)), all);
  }
  static __m512 single(const uint8_t* half) {
    uint16_t bits;
    memcpy(&bits, half, 2);
    return _mm512_set1_ps(_cvtsh_ss(bits));
  }
};

// A[m x padded] = rows.
template <class Ops, Codec C>
void pack_rows_a(const RowLayout& layout, const Row* rows, int m, void* dst, size_t panel_stride) {
  using At = Layout<Ops>;
  constexpr int kAhead = 3;  // rows between the one that is packed and the one that is fetched
  const int padded = round_up(m, Ops::kRowUnit);
  for (int r = 0; r < padded; ++r) {
    char* to = static_cast<char*>(dst) + r / Ops::kRows * panel_stride + r % Ops::kRows * At::kRowBytes;
    if (r >= m) {
      for (int o = 0; o < layout.padded; o += 32, to += At::kBlockBytesA) Ops::store(to, Ops::zero_word());
      continue;
    }
    RowReader<C> reader{layout, rows[r], {}, {}};
    const RowReader<C> next{layout, rows[r + kAhead < m ? r + kAhead : m - 1], {}, {}};
    Vec::prefetch(next.row.scales);
    for (int o = 0; o < layout.padded; o += reader.unit(o)) {
      __m512 weights[4];
      reader.read(o, weights);
      _mm_prefetch(reinterpret_cast<const char*>(next.address(o)), _MM_HINT_T0);
      for (int v = 0; v < reader.unit(o) / 16; v += 2, to += At::kBlockBytesA) {
        Ops::store(to, (__m512)_mm512_cvtne2ps_pbh(weights[v + 1], weights[v]));
      }
    }
  }
}

// B[k x (end - begin)] = weights [begin, end) of rows; begin is a multiple of 64, end too, or `padded`.
template <class Ops, Codec C>
void pack_rows_b(const RowLayout& layout, const Row* rows, int k, int begin, int end, void* dst, size_t panel_stride) {
  using At = Layout<Ops>;
  constexpr int kAhead = 4;
  for (int r = 0; r < round_up(k, At::kDepth); r += 2) {
    char* const to = static_cast<char*>(dst) + r / At::kDepth * At::kBlockBytesB + r % At::kDepth / 2 * At::kRowBytes;
    auto square = [&](int column) {
      const int j = column / 16;
      return to + j / Ops::kVecs * panel_stride + j % Ops::kVecs * At::kSquareBytes;
    };
    if (r >= k) {
      for (int o = begin; o < end; o += 16) Ops::store(square(o - begin), Ops::zero_word());
      continue;
    }
    RowReader<C> even{layout, rows[r], {}, {}}, odd{layout, rows[r + 1 < k ? r + 1 : r], {}, {}};
    const RowReader<C> next[2] = {{layout, rows[r + kAhead < k ? r + kAhead : k - 1], {}, {}},
                                  {layout, rows[r + kAhead + 1 < k ? r + kAhead + 1 : k - 1], {}, {}}};
    if (C != Codec::bf16 && begin % kBlock) even.load_scales(begin), odd.load_scales(begin);
    for (int o = begin; o < end; o += even.unit(o)) {
      __m512 a[4], b[4];
      even.read(o, a);
      odd.read(o, b);
      for (const RowReader<C>& n : next) _mm_prefetch(reinterpret_cast<const char*>(n.address(o)), _MM_HINT_T0);
      for (int v = 0; v < even.unit(o) / 16 && o + v * 16 < end; ++v) {
        Ops::store(square(o - begin + v * 16), Ops::zip(a[v], r + 1 < k ? b[v] : _mm512_setzero_ps()));
      }
    }
  }
}

template <class Ops>
constexpr Gemm with_rows(Gemm gemm) {
  gemm.pack_rows_a[int(Codec::bf16)] = pack_rows_a<Ops, Codec::bf16>;
  gemm.pack_rows_a[int(Codec::int8)] = pack_rows_a<Ops, Codec::int8>;
  gemm.pack_rows_a[int(Codec::int4)] = pack_rows_a<Ops, Codec::int4>;
  gemm.pack_rows_b[int(Codec::bf16)] = pack_rows_b<Ops, Codec::bf16>;
  gemm.pack_rows_b[int(Codec::int8)] = pack_rows_b<Ops, Codec::int8>;
  gemm.pack_rows_b[int(Codec::int4)] = pack_rows_b<Ops, Codec::int4>;
  return gemm;
}

}  // namespace
}  // namespace dejavu
