#include "batch.h"
#include "order.h"
#include "select.h"

namespace dejavu {
void Engine::BatchThread::attention(int i) {
  const Layer& layer = e.layers_[size_t(i)];
  const int hd = c.head_dim;
  capture_input(b.capture.attn_input, i);
  prepare(layer.attn_norm, layer.attn_norm_bias);
  if (b.plan) choose(i, true);
  project(i);
  e.pool_.barrier();
  cache_keys_and_values(i);
  e.pool_.barrier();

  int item = 0;
  for (const Segment& s : *b.segments) {
    if (s.count > 1) {
      attend_prompt(s, i);
      continue;
    }
    for (int h = 0; h < c.heads; ++h, ++item) {
      if (item % threads != thread) continue;
      const size_t at = size_t(s.row) * size_t(q_width) + size_t(h * hd);
      const int position = b.position[size_t(s.row)];
      float log_sum;
      e.attend(*s.cache, i, h, 1, position, e.attended(i, position), b.q.floats() + at, scores, b.mixed.floats() + at,
               &log_sum);
    }
  }
  e.pool_.barrier();

  if (b.capture.head_norm) {
    for (int t = panels.begin; t < panels.end; ++t) {  // the tokens that this thread masks next
      float* out = piece(b.capture.head_norm, i, c.heads) + t * c.heads;
      for (int h = 0; h < c.heads; ++h) out[h] = length_of(row(b.mixed, t, q_width) + h * hd, hd);
    }
  }
  if (panels.end > panels.begin) {
    for (int t = panels.begin; b.plan && t < panels.end; ++t) mask_heads(i, t);
    const size_t panel = gemm.panel_bytes_a(q_width);
    gemm.pack_a(row(b.mixed, panels.begin, q_width), size_t(q_width), panels.end - panels.begin, q_width,
                (char*)b.left.floats() + size_t(panels.begin / gemm.mr) * panel, panel);
  }
  e.pool_.barrier();
  const auto o_row = [&](int r) { return layer.o.row(r / hd, r % hd); };
  products.axpy(PackedRows{layer.o.layout, o_row}, q_width, b.left.floats(), total, columns, scratch, packed,
                b.branch.floats(), size_t(padded));
  if (!c.parallel_residual) {
    close(layer.o_bias, layer.attn_post_norm, layer.attn_norm, layer.attn_norm_bias);
    return;
  }
  // The MLP reads x as attention did: keep attention's output beside it until both are known.
  e.pool_.barrier();
  for (int t = mine.begin; t < mine.end; ++t) {
    float* out = row(b.q, t, q_width);  // free by now, and wide enough
    to_natural_order(e.layout_, row(b.branch, t, padded), out);
    if (layer.o_bias) k.add(out, layer.o_bias, c.d);
  }
}

// q, k and v of all tokens. A unit of work is the rows of one head, in pieces.
void Engine::BatchThread::project(int i) {
  const Layer& layer = e.layers_[size_t(i)];
  const int hd = c.head_dim, pieces = round_up(hd, kPiece) / kPiece;
  const Range units = share((c.heads + 2 * c.kv_heads) * pieces, 1, thread, threads);
  for (int u = units.begin; u < units.end; ++u) {
    const int head = u / pieces, first = u % pieces * kPiece, m = least(hd - first, kPiece);
    const bool query = head < c.heads, value = head >= c.heads + c.kv_heads;
    const Bundles& bundles = query ? layer.heads : layer.kv;
    const int bundle = query ? head : (head - c.heads) % c.kv_heads, offset = first + (value ? hd : 0);
    products.dot(PackedRows{e.layout_, [&](int r) { return bundles.row(bundle, offset + r); }}, m, b.input.floats(),
                 total, scratch, packed, c0, b.ld);
    float* to = (query ? b.q : value ? b.v : b.k).floats() + bundle * hd + first;
    k.transpose(c0, b.ld, m, total, to, size_t(query ? q_width : kv_width));
  }
}

void Engine::BatchThread::cache_keys_and_values(int i) {
  const Layer& layer = e.layers_[size_t(i)];
  const int hd = c.head_dim;
  for (int t = mine.begin; t < mine.end; ++t) {
    for (int h = 0; h < c.heads; ++h) e.finish_query(layer, h, turn(i, t), row(b.q, t, q_width) + h * hd);
    for (int g = 0; g < c.kv_heads; ++g) {
      float *key = row(b.k, t, kv_width) + g * hd, *value = row(b.v, t, kv_width) + g * hd;
      e.finish_key(layer, g, turn(i, t), key);
      if (layer.v_bias) k.add(value, layer.v_bias + g * hd, hd);
      e.store(*b.cache[size_t(t)], i, g, b.position[size_t(t)], key, value);
    }
  }
}

}  // namespace dejavu
