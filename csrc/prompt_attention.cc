// S = Q K^T, softmax under the causal mask, P V. All threads call this together.
#include <cstring>
#include <numeric>

#include "batch.h"

namespace dejavu {

void Engine::BatchThread::attend_prompt(const Segment& segment, int layer) {
  const int hd = c.head_dim, start = segment.cache->length(), end = start + segment.count;
  const size_t key_panel = gemm.panel_bytes_b(hd), value_panel = gemm.panel_bytes_b(end);
  pack_keys_and_values(segment, layer, end);
  e.pool_.barrier();

  const int pieces = round_up(segment.count, kPiece) / kPiece;
  void* packed_scores = (char*)packed + (products.a_bytes(kPiece, hd) + 63) / 64 * 64;
  for (int item = thread; item < c.heads * pieces; item += threads) {
    const int h = item % c.heads, t0 = item / c.heads * kPiece, g = h / (c.heads / c.kv_heads);
    const int m = least(segment.count - t0, kPiece), n = start + t0 + m;
    // Keys before the window of the first query are left out, in whole panels and units of depth.
    const int unit = std::lcm(gemm.nr, gemm.kr), from = e.attended(layer, start + t0).begin / unit * unit;
    const size_t at = size_t(segment.row + t0) * size_t(q_width) + size_t(h * hd), ld = size_t(round_up(n, 16));
    gemm.pack_a(b.q.floats() + at, size_t(q_width), m, hd, packed, gemm.panel_bytes_a(hd));
    const char* keys = (const char*)b.keys.floats() + b.keys_stride * size_t(g) + size_t(from / gemm.nr) * key_panel;
    const char* values = (const char*)b.values.floats() + b.values_stride * size_t(g);
    gemm.multiply(m, n - from, hd, packed, gemm.panel_bytes_a(hd), keys, key_panel, scores + from, ld, false);
    for (int r = 0; r < m; ++r) mask_scores(layer, h, start + t0 + r, from, n, scores + size_t(r) * ld);
    gemm.pack_a(scores + from, ld, m, n - from, packed_scores, gemm.panel_bytes_a(n - from));
    gemm.multiply(m, hd, n - from, packed_scores, gemm.panel_bytes_a(n - from), products.at(values, from, gemm.nr),
                  value_panel, b.mixed.floats() + at, size_t(q_width), false);
  }
  e.pool_.barrier();  // the packed keys and values serve the next segment
}

// Keys and values of every head as right-hand sides.
void Engine::BatchThread::pack_keys_and_values(const Segment& segment, int layer, int end) {
  const Cache& cache = *segment.cache;
  const int hd = c.head_dim, type = int(cache.type());
  const int key_columns = std::lcm(gemm.nr, kKeyTile), key_groups = round_up(end, key_columns) / key_columns;
  const size_t key_panel = gemm.panel_bytes_b(hd), value_panel = gemm.panel_bytes_b(end);
  for (int item = thread; item < c.kv_heads * key_groups; item += threads) {
    const int g = item / key_groups, p0 = item % key_groups * key_columns, n = least(end - p0, key_columns);
    for (int p = p0; p < p0 + n; p += kKeyTile) {
      const int block = p / kCacheBlock;
      k.load_keys[type](cache.keys(block, layer, g), cache.key_scales(block, layer, g), hd, p % kCacheBlock / kKeyTile,
                        scratch + (p - p0), size_t(key_columns));
    }
    char* to = (char*)b.keys.floats() + b.keys_stride * size_t(g);
    gemm.pack_b(scratch, size_t(key_columns), hd, n, to + size_t(p0 / gemm.nr) * key_panel, key_panel);
  }
  const int blocks = cache.block_count(end);
  for (int item = thread; item < c.kv_heads * blocks; item += threads) {
    const int g = item / blocks, block = item % blocks, p0 = block * kCacheBlock, n = least(end - p0, kCacheBlock);
    for (int p = 0; p < n; ++p) {
      k.load_value[type](cache.values(block, layer, g), cache.value_scales(block, layer, g), hd, p,
                         scratch + size_t(p) * size_t(hd));
    }
    char* to = (char*)b.values.floats() + b.values_stride * size_t(g);
    gemm.pack_b(scratch, size_t(hd), n, hd, products.at(to, p0, gemm.nr), value_panel);
  }
}

// Turns scores [from, n) of the query at `position` into weights of the values; those it must not see get zero.
void Engine::BatchThread::mask_scores(int layer, int head, int position, int from, int n, float* row) {
  const Range seen = e.attended(layer, position);
  for (int j = seen.begin; j < seen.end; ++j) row[j] *= c.scale;
  e.weigh(head, position, seen, row);
  std::memset(row + from, 0, size_t(seen.begin - from) * sizeof(float));
  std::memset(row + seen.end, 0, size_t(n - seen.end) * sizeof(float));
}

}  // namespace dejavu
