// Many tokens at once: the prompt of one sequence, or one token of each of several. The same packed weights are decoded
// a few rows at a time, packed for the matrix product, and used for all tokens while they are in the cache.
//
//   rows that are multiplied with the input (q, k, v, gate, up, head):  C[rows x tokens] = W[rows x d] X^T[d x tokens]
//   rows that are added to the output (o, down):                        Y[tokens x d] += A[tokens x rows] W[rows x d]
#include "batch.h"

#include <cmath>
#include <cstring>
#include <numeric>

namespace dejavu {
namespace {

constexpr int kPiece = 32;           // rows of weights, or queries, per product: a multiple of every Gemm's mr and kr
constexpr int kDepth = 256;          // weights of a row decoded at a time
constexpr int kOutputColumns = 256;  // columns of Y per product
constexpr int kOutputDepth = 512;    // rows of W per product

int round_up(int n, int unit) { return (n + unit - 1) / unit * unit; }
char* bytes(float* p) { return reinterpret_cast<char*>(p); }

float length_of(const float* v, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += v[i] * v[i];
  return std::sqrt(sum);
}

}  // namespace

namespace {

struct Products {
  const Gemm& gemm;
  const Kernels& kernels;

  size_t a_bytes(int m, int k) const { return size_t(round_up(m, gemm.mr) / gemm.mr) * gemm.panel_bytes_a(k); }
  size_t b_bytes(int n, int k) const { return size_t(round_up(n, gemm.nr) / gemm.nr) * gemm.panel_bytes_b(k); }

  // out[m x tokens] = rows(0..m) . input; `row(i)` gives the i-th row of weights.
  template <typename RowAt>
  void dot(const RowLayout& layout, RowAt row, int m, const float* input, int tokens, float* scratch, float* packed,
           float* out, size_t ld) const {
    const int k = layout.padded;
    const size_t panel = gemm.panel_bytes_a(k);
    for (int k0 = 0; k0 < k; k0 += kDepth) {
      const int depth = k - k0 < kDepth ? k - k0 : kDepth;
      for (int i = 0; i < m; ++i) {
        kernels.rows[int(layout.codec)].decode(layout, row(i), k0, k0 + depth, scratch + size_t(i) * kDepth);
      }
      gemm.pack_a(scratch, kDepth, m, depth, bytes(packed) + size_t(k0) * size_t(gemm.mr) * gemm.element_size, panel);
    }
    gemm.multiply(m, tokens, k, packed, panel, input, gemm.panel_bytes_b(k), out, ld, false);
  }

  // out[tokens x columns] = left[tokens x n] . rows(0..n), columns [begin, end) in stored order.
  template <typename RowAt>
  void axpy(const RowLayout& layout, RowAt row, int n, const float* left, int tokens, Range columns, float* scratch,
            float* packed, float* out) const {
    const size_t left_panel = gemm.panel_bytes_a(n), panel = gemm.panel_bytes_b(kOutputDepth);
    for (int c0 = columns.begin; c0 < columns.end; c0 += kOutputColumns) {
      const int width = columns.end - c0 < kOutputColumns ? columns.end - c0 : kOutputColumns;
      for (int n0 = 0; n0 < n; n0 += kOutputDepth) {
        const int depth = n - n0 < kOutputDepth ? n - n0 : kOutputDepth;
        for (int r0 = 0; r0 < depth; r0 += kPiece) {
          const int rows = depth - r0 < kPiece ? depth - r0 : kPiece;
          for (int i = 0; i < rows; ++i) {
            kernels.rows[int(layout.codec)].decode(layout, row(n0 + r0 + i), c0, c0 + width,
                                                   scratch + size_t(i) * kOutputColumns);
          }
          gemm.pack_b(scratch, kOutputColumns, rows, width,
                      bytes(packed) + size_t(r0) * size_t(gemm.nr) * gemm.element_size, panel);
        }
        gemm.multiply(tokens, width, depth,
                      reinterpret_cast<const char*>(left) + size_t(n0) * size_t(gemm.mr) * gemm.element_size,
                      left_panel, packed, panel, out + c0, size_t(layout.padded), n0 > 0);
      }
    }
  }
};

}  // namespace

void Engine::forward(const int32_t* tokens, const std::vector<Segment>& segments, Logits which, float* logits,
                     const Capture& capture) {
  std::lock_guard<std::mutex> lock(mutex_);
  const int hd = c_.head_dim, q_width = c_.heads * hd, kv_width = c_.kv_heads * hd, padded = layout_.padded;
  const int threads = pool_.size(), nr = gemm_.nr;
  const Products products{gemm_, k_};
  const bool rope = c_.position == Position::rope;

  int total = 0, longest = 0;
  for (const Segment& s : segments) {
    catch_up(*s.cache);
    s.cache->reserve(s.count);
    total += s.count;
    const int length = s.cache->length() + s.count;
    longest = length > longest ? length : longest;
  }
  std::vector<int> position(static_cast<size_t>(total)), length(static_cast<size_t>(total));
  std::vector<Cache*> cache(static_cast<size_t>(total));
  for (const Segment& s : segments) {
    for (int i = 0; i < s.count; ++i) {
      const size_t t = size_t(s.row + i);
      position[t] = s.cache->length() + i;
      length[t] = s.cache->length() + s.count;
      cache[t] = s.cache;
    }
  }

  const size_t T = size_t(total), key_columns = size_t(std::lcm(nr, kKeyTile));
  const size_t ld = size_t(round_up(total, 16));
  Batch& b = *batch_;
  float* x = b.x.get(T * size_t(c_.d));
  const int widest = padded > head_.layout.padded ? padded : head_.layout.padded;
  float* input = b.input.get(products.b_bytes(total, widest) / 4 + 16);
  float *q = b.q.get(T * size_t(q_width)), *k = b.k.get(T * size_t(kv_width)), *v = b.v.get(T * size_t(kv_width));
  float* mixed = b.mixed.get(T * size_t(q_width));
  float* left = b.left.get(products.a_bytes(total, c_.ff > q_width ? c_.ff : q_width) / 4 + 16);
  float* branch = b.branch.get(T * size_t(padded));
  float* ropes = b.rope.get(T * size_t(c_.rope_dim) * 2 + 1);
  const size_t keys_head = products.b_bytes(longest, hd) / 4, values_head = products.b_bytes(hd, longest) / 4;
  float* keys = b.keys.get(keys_head * size_t(c_.kv_heads) + 16);
  float* values = b.values.get(values_head * size_t(c_.kv_heads) + 16);
  const int limit = round_up(longest, kCacheBlock);
  for (Worker& w : workers_) {
    const size_t floats = size_t(c_.d > c_.embed_dim ? c_.d : c_.embed_dim) + kGroup;
    w.normed.get(floats * size_t(nr));
    w.branch.get(4 * floats + partial_floats_);
    const size_t decoded = size_t(kPiece) * kDepth;
    const size_t loaded = size_t(hd) * (key_columns > kCacheBlock ? key_columns : kCacheBlock);
    w.scratch.get((decoded > loaded ? decoded : loaded) + size_t(widest) * 4);
    size_t packed = products.a_bytes(kPiece, widest);
    for (size_t other : {products.b_bytes(kOutputColumns, kOutputDepth),
                         products.a_bytes(kPiece, limit) + products.a_bytes(kPiece, hd)}) {
      packed = other > packed ? other : packed;
    }
    w.packed.get(packed / 4 + 32);
    w.scores.get(size_t(kPiece) * size_t(limit));
    w.c0.get(size_t(kPiece) * ld);
    w.c1.get(size_t(kPiece) * ld);
  }

  auto job = [&](int thread) {
    Worker& w = workers_[size_t(thread)];
    float *normed = w.normed.get(0), *line = w.branch.get(0), *scratch = w.scratch.get(0), *packed = w.packed.get(0);
    float *c0 = w.c0.get(0), *c1 = w.c1.get(0), *scores = w.scores.get(0);
    if (gemm_.begin) gemm_.begin();
    const Range mine = share(total, nr, thread, threads);
    const Range columns = share(padded, 64, thread, threads);

    for (int t = mine.begin; t < mine.end; ++t) {
      embed(tokens[t], position[size_t(t)], line, x + size_t(t) * size_t(c_.d));
      if (rope) {
        float* table = ropes + size_t(t) * size_t(c_.rope_dim) * 2;
        rope_table(position[size_t(t)], length[size_t(t)], false, table);
        if (!c_.local_inv_freq.empty()) rope_table(position[size_t(t)], length[size_t(t)], true, table + c_.rope_dim);
      }
    }
    // Place of this layer's piece of a captured array.
    auto at = [&](float* captured, int layer, int width) { return captured + size_t(layer) * T * size_t(width); };
    auto capture_input = [&](float* captured, int layer) {
      if (!captured) return;
      const size_t first = size_t(mine.begin) * size_t(c_.d), floats = size_t(mine.end - mine.begin) * size_t(c_.d);
      std::memcpy(at(captured, layer, c_.d) + first, x + first, floats * sizeof(float));
    };
    // Norms this thread's tokens and packs them as input of the products. Tokens are shared in whole panels.
    auto prepare = [&](const float* weight, const float* bias) {
      for (int t0 = mine.begin; t0 < mine.end; t0 += nr) {
        const int n = mine.end - t0 < nr ? mine.end - t0 : nr;
        for (int i = 0; i < n; ++i) {
          const float* row = x + size_t(t0 + i) * size_t(c_.d);
          if (c_.pre_norm) norm(row, weight, bias, line), row = line;
          float* out = normed + size_t(i) * size_t(padded);
          for (int o = 0; o < padded; ++o) {
            const int from = natural_[size_t(o)];
            out[o] = from < c_.d ? row[from] : 0.0f;
          }
        }
        gemm_.pack_bt(normed, size_t(padded), padded, n, bytes(input) + size_t(t0 / nr) * gemm_.panel_bytes_b(padded),
                      gemm_.panel_bytes_b(padded));
      }
      pool_.barrier();
    };
    // x += branch for this thread's tokens; all products are complete.
    auto close = [&](const float* bias, const float* post_norm, const float* weight, const float* norm_bias) {
      pool_.barrier();
      for (int t = mine.begin; t < mine.end; ++t) {
        const float* from = branch + size_t(t) * size_t(padded);
        for (int o = 0; o < padded; ++o) {
          if (natural_[size_t(o)] < c_.d) line[natural_[size_t(o)]] = from[o];
        }
        add_branch(x + size_t(t) * size_t(c_.d), line, bias, post_norm, weight, norm_bias);
      }
    };

    for (int i = 0; i < c_.layers; ++i) {
      const Layer& layer = layers_[size_t(i)];
      capture_input(capture.attn_input, i);
      prepare(layer.attn_norm, layer.attn_norm_bias);

      // q, k, v: one unit is the rows of one head, in pieces of one panel
      const int pieces = round_up(hd, kPiece) / kPiece, units = (c_.heads + 2 * c_.kv_heads) * pieces;
      const Range my_units = share(units, 1, thread, threads);
      for (int u = my_units.begin; u < my_units.end; ++u) {
        const int head = u / pieces, first = u % pieces * kPiece, m = hd - first < kPiece ? hd - first : kPiece;
        const bool query = head < c_.heads;
        const int kv = head - c_.heads, group = kv % c_.kv_heads, offset = !query && kv >= c_.kv_heads ? hd : 0;
        auto row = [&](int r) {
          return query ? layer.heads.row(head, first + r) : layer.kv.row(group, offset + first + r);
        };
        products.dot(layout_, row, m, input, total, scratch, packed, c0, ld);
        const int width = query ? q_width : kv_width;
        float* to = (query ? q + head * hd : (offset ? v : k) + group * hd) + first;
        k_.transpose(c0, ld, m, total, to, size_t(width));
      }
      pool_.barrier();

      for (int t = mine.begin; t < mine.end; ++t) {
        const float* turn =
            rope ? ropes + size_t(t) * size_t(c_.rope_dim) * 2 + (local_rope(i) ? c_.rope_dim : 0) : nullptr;
        for (int h = 0; h < c_.heads; ++h) finish_query(layer, h, turn, q + size_t(t) * size_t(q_width) + h * hd);
        for (int g = 0; g < c_.kv_heads; ++g) {
          float *key = k + size_t(t) * size_t(kv_width) + g * hd, *value = v + size_t(t) * size_t(kv_width) + g * hd;
          finish_key(layer, g, turn, key);
          if (layer.v_bias) k_.add(value, layer.v_bias + g * hd, hd);
          store(*cache[size_t(t)], i, g, position[size_t(t)], key, value);
        }
      }
      pool_.barrier();

      for (const Segment& s : segments) {
        if (s.count > 1) attend_many(thread, s, i, q, mixed, keys, keys_head, values, values_head);
      }
      int item = 0;
      for (const Segment& s : segments) {
        if (s.count > 1) continue;
        for (int h = 0; h < c_.heads; ++h, ++item) {
          if (item % threads != thread) continue;
          const size_t at = size_t(s.row) * size_t(q_width) + size_t(h * hd);
          attend(*s.cache, i, h, position[size_t(s.row)], q + at, scores, mixed + at);
        }
      }
      pool_.barrier();
      if (capture.head_norm) {
        for (int t = mine.begin; t < mine.end; ++t) {
          for (int h = 0; h < c_.heads; ++h) {
            const float* values = mixed + size_t(t) * size_t(q_width) + h * hd;
            at(capture.head_norm, i, c_.heads)[t * c_.heads + h] = length_of(values, hd);
          }
        }
      }
      const Range panels = share(total, gemm_.mr, thread, threads);
      if (panels.end > panels.begin) {
        gemm_.pack_a(mixed + size_t(panels.begin) * size_t(q_width), size_t(q_width), panels.end - panels.begin,
                     q_width, bytes(left) + size_t(panels.begin / gemm_.mr) * gemm_.panel_bytes_a(q_width),
                     gemm_.panel_bytes_a(q_width));
      }
      pool_.barrier();
      products.axpy(
          layout_, [&](int r) { return layer.heads.row(r / hd, hd + r % hd); }, q_width, left, total, columns, scratch,
          packed, branch);
      if (c_.parallel_residual) {
        // The MLP reads x as attention did: keep attention's output beside it until both are known.
        pool_.barrier();
        for (int t = mine.begin; t < mine.end; ++t) {
          float* out = q + size_t(t) * size_t(q_width);  // free by now; q_width = d where a family does this
          const float* from = branch + size_t(t) * size_t(padded);
          for (int o = 0; o < padded; ++o) {
            if (natural_[size_t(o)] < c_.d) out[natural_[size_t(o)]] = from[o];
          }
          if (layer.o_bias) k_.add(out, layer.o_bias, c_.d);
        }
      } else {
        close(layer.o_bias, layer.attn_post_norm, layer.attn_norm, layer.attn_norm_bias);
      }

      capture_input(capture.mlp_input, i);
      prepare(layer.mlp_norm, layer.mlp_norm_bias);
      const Range neurons = share(c_.ff, kPiece, thread, threads);
      const size_t left_panel = gemm_.panel_bytes_a(c_.ff);
      for (int n0 = neurons.begin; n0 < neurons.end; n0 += kPiece) {
        const int n = neurons.end - n0 < kPiece ? neurons.end - n0 : kPiece;
        const int up_row = c_.gated ? 1 : 0;
        products.dot(
            layout_, [&](int r) { return layer.mlp.row(n0 + r, up_row); }, n, input, total, scratch, packed, c1, ld);
        if (c_.gated) {
          products.dot(
              layout_, [&](int r) { return layer.mlp.row(n0 + r, 0); }, n, input, total, scratch, packed, c0, ld);
        }
        for (int r = 0; r < n; ++r) {
          float *up = c1 + size_t(r) * ld, *gate = c0 + size_t(r) * ld;
          if (layer.up_bias) {
            for (int t = 0; t < total; ++t) up[t] += layer.up_bias[n0 + r];
          }
          if (c_.gated && layer.gate_bias) {
            for (int t = 0; t < total; ++t) gate[t] += layer.gate_bias[n0 + r];
          }
          k_.activate(c_.activation, c_.gated ? gate : up, c_.gated ? up : nullptr, total, up);
          if (c_.gated && capture.gate) k_.activate(c_.activation, gate, nullptr, total, gate);
        }
        if (capture.hidden) k_.transpose(c1, ld, n, total, at(capture.hidden, i, c_.ff) + n0, size_t(c_.ff));
        if (capture.gate) {
          k_.transpose(c_.gated ? c0 : c1, ld, n, total, at(capture.gate, i, c_.ff) + n0, size_t(c_.ff));
        }
        gemm_.pack_at(c1, ld, total, n, bytes(left) + size_t(n0) * size_t(gemm_.mr) * gemm_.element_size, left_panel);
      }
      pool_.barrier();
      products.axpy(
          layout_, [&](int r) { return layer.mlp.row(r, c_.gated ? 2 : 1); }, c_.ff, left, total, columns, scratch,
          packed, branch);
      if (c_.parallel_residual) {
        for (int t = mine.begin; t < mine.end; ++t) {
          k_.add(x + size_t(t) * size_t(c_.d), q + size_t(t) * size_t(q_width), c_.d);
        }
      }
      close(layer.down_bias, layer.mlp_post_norm, layer.mlp_norm, layer.mlp_norm_bias);
    }

    if (which == Logits::last && int(segments.size()) < 3) {
      pool_.barrier();
      // Few rows: matrix-vector products, as in decoding.
      const RowKernels& rows = k_.rows[int(head_.layout.codec)];
      for (size_t s = 0; s < segments.size(); ++s) {
        const size_t last = size_t(segments[s].row + segments[s].count - 1);
        const float* h = head_input(x + last * size_t(c_.d), line, line + c_.d);
        rows.prepare(head_.layout, h, scratch);
        const Range bundles = share(head_.count, 1, thread, threads);
        for (int n = bundles.begin; n < bundles.end; ++n) {
          const int first = n * kPlainRows, count = c_.vocab - first < kPlainRows ? c_.vocab - first : kPlainRows;
          float* out = logits + s * size_t(c_.vocab) + first;
          rows.dot(head_, n, 0, count, scratch, out);
          finish_logits(out, first, count);
        }
      }
    } else if (which != Logits::none) {
      pool_.barrier();
      // Which row of x each row of logits comes from.
      auto source = [&](int r) {
        return which == Logits::all ? r : segments[size_t(r)].row + segments[size_t(r)].count - 1;
      };
      const int rows = which == Logits::all ? total : int(segments.size()), width = head_.layout.padded;
      const size_t panel = gemm_.panel_bytes_b(width);
      const Range tokens_here = share(rows, nr, thread, threads);
      for (int t0 = tokens_here.begin; t0 < tokens_here.end; t0 += nr) {
        const int n = tokens_here.end - t0 < nr ? tokens_here.end - t0 : nr;
        for (int i = 0; i < n; ++i) {
          const float* h = head_input(x + size_t(source(t0 + i)) * size_t(c_.d), line, line + c_.d);
          float* out = normed + size_t(i) * size_t(width);
          for (int o = 0; o < width; ++o) {
            const int from = head_.layout.natural(o);
            out[o] = from < head_.layout.d ? h[from] : 0.0f;
          }
        }
        gemm_.pack_bt(normed, size_t(width), width, n, bytes(input) + size_t(t0 / nr) * panel, panel);
      }
      pool_.barrier();
      const Range vocabulary = share(c_.vocab, kPiece, thread, threads);
      for (int v0 = vocabulary.begin; v0 < vocabulary.end; v0 += kPiece) {
        const int n = vocabulary.end - v0 < kPiece ? vocabulary.end - v0 : kPiece;
        auto row = [&](int r) { return head_.row((v0 + r) / kPlainRows, (v0 + r) % kPlainRows); };
        products.dot(head_.layout, row, n, input, rows, scratch, packed, c0, ld);
        k_.transpose(c0, ld, n, rows, logits + v0, size_t(c_.vocab));
        for (int t = 0; t < rows; ++t) finish_logits(logits + size_t(t) * size_t(c_.vocab) + v0, v0, n);
      }
    }
    if (gemm_.end) gemm_.end();
  };
  pool_.run(job);
  for (const Segment& s : segments) s.cache->advance(s.count);
}

// Attention of all tokens of a segment: S = Q K^T, softmax under the causal mask, P V. All threads call it together.
void Engine::attend_many(int thread, const Segment& segment, int layer, const float* q, float* mixed, float* keys,
                         size_t keys_head, float* values, size_t values_head) {
  Worker& w = workers_[size_t(thread)];
  const int hd = c_.head_dim, threads = pool_.size(), nr = gemm_.nr;
  const int q_width = c_.heads * hd, start = segment.cache->length(), end = start + segment.count;
  const int type = int(segment.cache->type());
  float *scratch = w.scratch.get(0), *packed = w.packed.get(0), *scores = w.scores.get(0);
  const size_t key_panel = gemm_.panel_bytes_b(hd), value_panel = gemm_.panel_bytes_b(end);

  // Keys and values of every head, packed as right-hand sides.
  const int key_columns = std::lcm(nr, kKeyTile);
  const int key_groups = (end + key_columns - 1) / key_columns, blocks = segment.cache->block_count(end);
  for (int item = thread; item < c_.kv_heads * key_groups; item += threads) {
    const int g = item / key_groups, p0 = item % key_groups * key_columns;
    const int n = end - p0 < key_columns ? end - p0 : key_columns;
    for (int p = p0; p < p0 + n; p += kKeyTile) {
      const int block = p / kCacheBlock;
      k_.load_keys[type](segment.cache->keys(block, layer, g), segment.cache->key_scales(block, layer, g), hd,
                         p % kCacheBlock / kKeyTile, scratch + (p - p0), size_t(key_columns));
    }
    gemm_.pack_b(scratch, size_t(key_columns), hd, n, bytes(keys + keys_head * size_t(g)) + size_t(p0 / nr) * key_panel,
                 key_panel);
  }
  for (int item = thread; item < c_.kv_heads * blocks; item += threads) {
    const int g = item / blocks, block = item % blocks, p0 = block * kCacheBlock;
    const int n = end - p0 < kCacheBlock ? end - p0 : kCacheBlock;
    for (int p = 0; p < n; ++p) {
      k_.load_value[type](segment.cache->values(block, layer, g), segment.cache->value_scales(block, layer, g), hd, p,
                          scratch + size_t(p) * size_t(hd));
    }
    gemm_.pack_b(scratch, size_t(hd), n, hd,
                 bytes(values + values_head * size_t(g)) + size_t(p0) * size_t(nr) * gemm_.element_size, value_panel);
  }
  pool_.barrier();

  const int pieces = (segment.count + kPiece - 1) / kPiece;
  float* packed_scores = packed + (Products{gemm_, k_}.a_bytes(kPiece, hd) + 63) / 64 * 16;
  for (int item = thread; item < c_.heads * pieces; item += threads) {
    const int h = item % c_.heads, t0 = item / c_.heads * kPiece, g = h / (c_.heads / c_.kv_heads);
    const int m = segment.count - t0 < kPiece ? segment.count - t0 : kPiece, n = start + t0 + m;
    const size_t at = size_t(segment.row + t0) * size_t(q_width) + size_t(h * hd), ld = size_t(round_up(n, 16));
    gemm_.pack_a(q + at, size_t(q_width), m, hd, packed, gemm_.panel_bytes_a(hd));
    gemm_.multiply(m, n, hd, packed, gemm_.panel_bytes_a(hd), keys + keys_head * size_t(g), key_panel, scores, ld,
                   false);
    for (int r = 0; r < m; ++r) {
      float* row = scores + size_t(r) * ld;
      const int position = start + t0 + r;
      const int first = c_.windowed[size_t(layer)] && position + 1 > c_.window ? position + 1 - c_.window : 0;
      for (int j = first; j <= position; ++j) row[j] *= c_.scale;
      if (c_.attn_softcap > 0) k_.softcap(row + first, c_.attn_softcap, position + 1 - first);
      if (!c_.alibi_slopes.empty()) {
        const float slope = c_.alibi_slopes[size_t(h)];
        for (int j = first; j <= position; ++j) row[j] += slope * float(j - position);
      }
      k_.softmax(row + first, position + 1 - first);
      std::memset(row, 0, size_t(first) * sizeof(float));
      std::memset(row + position + 1, 0, size_t(n - position - 1) * sizeof(float));
    }
    gemm_.pack_a(scores, ld, m, n, packed_scores, gemm_.panel_bytes_a(n));
    gemm_.multiply(m, hd, n, packed_scores, gemm_.panel_bytes_a(n), values + values_head * size_t(g), value_panel,
                   mixed + at, size_t(q_width), false);
  }
  pool_.barrier();  // the packed keys and values serve the next segment
}

}  // namespace dejavu
