// bf16 matrix product on AMX tiles: 2 x 2 tiles of 16 x 16 sums, 32 deep a step.
#include "gemm_bf16.h"
#include "gemm_impl.h"
#include "gemm_tables.h"
#include "pack_rows_bf16.h"

namespace dejavu {
namespace {

struct AmxOps : Bf16Words {  // packing only
  static constexpr int kRows = 32, kVecs = 2, kRowUnit = 16;
};
using At = Layout<AmxOps>;
constexpr size_t kTileBytes = 1024;
static_assert(At::kSquareBytes == kTileBytes && At::kBlockBytesA == 2 * kTileBytes, "a block is made of whole tiles");

// Bytes of A and B together that are hoped to stay in the L2 cache; a deeper product is made in pieces. Pieces are few
// because each of them reads and writes C once more, which costs as much as four steps.
constexpr int kCacheBytes = 1 << 20;

// Tiles 0..3 are the sums (row tile * 2 + column tile), 4 and 5 hold A, 6 and 7 hold B.
// It lives in static memory because GCC 12 tells its optimiser of the first 8 bytes only that LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

constexpr TileConfig kTileConfig;

void begin() { _tile_loadconfig(&kTileConfig); }

void end() { _tile_release(); }

// R x V tiles of sums over `blocks` blocks, started from and left in sums[row tile][column tile] with `stride` bytes
// between rows.
template <int R, int V>
void tile_kernel(int blocks, const char* a, const char* b, float* c, size_t stride, bool accumulate) {
  __asm__ volatile("" ::: "memory");  // GCC does not know that tile loads read memory
  char* const c0 = reinterpret_cast<char*>(c);
  char* const c1 = c0 + 16 * stride;
  if (accumulate) {
    _tile_loadd(0, c0, stride);
    if (V > 1) _tile_loadd(1, c0 + 64, stride);
    if (R > 1) _tile_loadd(2, c1, stride);
    if (R > 1 && V > 1) _tile_loadd(3, c1 + 64, stride);
  } else {
    _tile_zero(0);
    if (V > 1) _tile_zero(1);
    if (R > 1) _tile_zero(2);
    if (R > 1 && V > 1) _tile_zero(3);
  }
  for (; blocks > 0; --blocks, a += At::kBlockBytesA, b += At::kBlockBytesB) {
    _tile_loadd(6, b, 64);
    _tile_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (R > 1) {
      _tile_loadd(5, a + kTileBytes, 64);
      _tile_dpbf16ps(2, 5, 6);
    }
    if (V > 1) {
      _tile_loadd(7, b + kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
      if (R > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c0, stride);
  if (V > 1) _tile_stored(1, c0 + 64, stride);
  if (R > 1) _tile_stored(2, c1, stride);
  if (R > 1 && V > 1) _tile_stored(3, c1 + 64, stride);
}

// One panel of A times one panel of B: rows x columns of C.
void multiply_panels(int rows, int columns, int blocks, const char* a, const char* b, float* c, size_t ldc,
                     bool accumulate) {
  const bool whole = rows % 16 == 0 && columns % 16 == 0;
  alignas(64) float edge[32 * 32];
  float* const to = whole ? c : edge;
  const size_t stride = (whole ? ldc : 32) * sizeof(float);
  const bool start = accumulate && whole;
  if (rows > 16) {
    columns > 16 ? tile_kernel<2, 2>(blocks, a, b, to, stride, start)
                 : tile_kernel<2, 1>(blocks, a, b, to, stride, start);
  } else {
    columns > 16 ? tile_kernel<1, 2>(blocks, a, b, to, stride, start)
                 : tile_kernel<1, 1>(blocks, a, b, to, stride, start);
  }
  if (whole) return;
  for (int r = 0; r < rows; ++r, c += ldc) {
    for (int j = 0; j < columns; j += 16) {
      const int lanes = least(16, columns - j);
      const __m512 sum = _mm512_load_ps(edge + r * 32 + j);
      store_floats(c + j, accumulate ? _mm512_add_ps(load_floats(c + j, lanes), sum) : sum, lanes);
    }
  }
}

void multiply(int m, int n, int k, const void* a, size_t a_stride, const void* b, size_t b_stride, float* c, size_t ldc,
              bool accumulate) {
  const int total = round_up(k, At::kDepth) / At::kDepth;
  // An operand that is a single panel passes through once, whatever the order.
  const bool once = m <= 32 || n <= 32;
  const int piece = once ? total : kCacheBytes / ((round_up(m, 32) + round_up(n, 32)) * int(At::kRowBytes)) + 1;
  int done = 0;
  do {
    const int blocks = least(piece, total - done);
    for (int j = 0; j < n; j += 32) {
      const char* panel_b = static_cast<const char*>(b) + j / 32 * b_stride + done * At::kBlockBytesB;
      for (int i = 0; i < m; i += 32) {
        const char* panel_a = static_cast<const char*>(a) + i / 32 * a_stride + done * At::kBlockBytesA;
        multiply_panels(least(32, m - i), least(32, n - j), blocks, panel_a, panel_b, c + i * ldc + j, ldc,
                        accumulate || done > 0);
      }
    }
    done += blocks;
  } while (done < total);
}

}  // namespace

constexpr Gemm kGemmBf16Amx = with_rows<AmxOps>({AmxOps::kRows,
                                                 At::kColumns,
                                                 At::kDepth,
                                                 2,
                                                 pack_a<AmxOps>,
                                                 pack_at<AmxOps>,
                                                 pack_b<AmxOps>,
                                                 pack_bt<AmxOps>,
                                                 {},
                                                 {},
                                                 multiply,
                                                 begin,
                                                 end});

}  // namespace dejavu
