#include "batch.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "order.h"

namespace dejavu {

void Engine::forward(const int32_t* tokens, const std::vector<Segment>& segments, bool sparse, Logits which,
                     float* logits, const Capture& capture) {
  std::lock_guard<std::mutex> lock(mutex_);
  batch_->start(*this, tokens, segments, sparse, which, logits, capture);
  pool_.run([&](int thread) { BatchThread(*this, thread).run(); });
  for (const Segment& s : segments) s.cache->advance(s.count);
  if (!batch_->plan) return;
  counters_.tokens += batch_->total;
  for (const Counters& touched : batch_->touched) {
    for (size_t i = 0; i < size_t(c_.layers); ++i) {
      counters_.neurons[i] += touched.neurons[i];
      counters_.heads[i] += touched.heads[i];
    }
  }
}

// Notes what is to be done, and makes room for it.
void Engine::Batch::start(Engine& e, const int32_t* tokens_, const std::vector<Segment>& segments_, bool sparse,
                          Logits which_, float* logits_, const Capture& capture_) {
  tokens = tokens_, segments = &segments_, which = which_, logits = logits_, capture = capture_;
  plan = sparse ? e.planned_.plan.get() : nullptr;
  position.clear(), length.clear(), cache.clear();
  int longest = 0;
  for (const Segment& s : segments_) {
    e.catch_up(*s.cache);
    s.cache->reserve(s.count);
    const int end = s.cache->length() + s.count;
    longest = longest > end ? longest : end;
    for (int i = 0; i < s.count; ++i) {
      position.push_back(s.cache->length() + i);
      length.push_back(end);
      cache.push_back(s.cache);
    }
  }
  total = int(position.size());
  ld = size_t(round_up(total, 16));

  const Config& c = e.c_;
  const Gemm& gemm = e.gemm_;
  const Products products{gemm, e.k_};
  const int hd = c.head_dim, padded = e.layout_.padded, head_padded = e.head_.layout.padded;
  const int widest = padded > head_padded ? padded : head_padded;
  const size_t T = size_t(total), q_width = size_t(c.heads * hd), kv_width = size_t(c.kv_heads * hd);
  x.get(T * size_t(c.d));
  input.get(products.b_bytes(total, widest) / 4 + 16);
  q.get(T * q_width), k.get(T * kv_width), v.get(T * kv_width), mixed.get(T * q_width);
  left.get(products.a_bytes(total, c.ff > int(q_width) ? c.ff : int(q_width)) / 4 + 16);
  branch.get(T * size_t(padded));
  rope.get(T * size_t(c.rope_dim) * 2 + 1);
  keys_stride = products.b_bytes(longest, hd), values_stride = products.b_bytes(hd, longest);
  keys.get(keys_stride / 4 * size_t(c.kv_heads) + 16);
  values.get(values_stride / 4 * size_t(c.kv_heads) + 16);

  const size_t width = size_t(c.d > c.embed_dim ? c.d : c.embed_dim) + kGroup;
  const size_t key_columns = size_t(std::lcm(gemm.nr, kKeyTile));
  const size_t loaded = size_t(hd) * (key_columns > kCacheBlock ? key_columns : kCacheBlock);
  const size_t attention_packed = (products.a_bytes(kPiece, hd) + 63) / 64 * 64 + products.a_bytes(kPiece, longest);
  const size_t rows_packed = products.packed_bytes(widest);
  size_t joined = 0;  // bytes of rows that are put together from their parts
  for (const Layer& layer : e.layers_) {
    if (layer.parts.cut()) joined = std::max(joined, size_t(kPiece) * mlp_layout(layer).code_bytes);
  }
  for (Worker& w : e.workers_) {
    w.normed.get(width * size_t(gemm.nr));
    w.branch.get(4 * width + e.partial_floats_);
    w.scratch.get((products.scratch_floats() > loaded ? products.scratch_floats() : loaded) + size_t(widest) * 4);
    w.packed.get((rows_packed > attention_packed ? rows_packed : attention_packed) / 4 + 32);
    w.scores.get(size_t(kPiece) * size_t(round_up(longest, kCacheBlock)));
    w.c0.get(size_t(kPiece) * ld);
    w.c1.get(size_t(kPiece) * ld);
    w.joined.get(joined / sizeof(float));
  }
  if (plan) start_plan(e);
}

void Engine::Batch::start_plan(Engine& e) {
  const Config& c = e.c_;
  const size_t T = size_t(total), ff = size_t(c.ff), vocab = size_t(c.vocab), widest = size_t(e.layout_.padded);
  slots = 1;
  for (const LayerPlan& layer : plan->layers) {
    for (const Selector* s : {&layer.neurons, &layer.heads}) slots = s->lookahead < slots ? slots : s->lookahead + 1;
  }
  neuron_masks.resize(size_t(slots) * T * ff);
  head_masks.resize(size_t(slots) * T * size_t(c.heads));
  hidden.get(T * ff), gate.get(T * ff), stand_in.get(T * size_t(e.planned_.widest_rank) + 16);
  touched.assign(e.workers_.size(), Counters(c.layers));
  const size_t rank = size_t(e.planned_.widest_rank);
  for (Worker& w : e.workers_) {
    w.predictor.get(3 * (ff + size_t(c.heads) + 16) + 3 * widest + rank + 64);
    w.picking.get(2 * (vocab > ff ? vocab : ff) + 2 * size_t(c.heads) + 16);
    w.along.get(e.along_floats(1));
    // Two forms of an input, or one of a predictor's hidden values.
    w.scratch.get((2 * (e.layout_.input_bytes() + RowLayout(Codec::int8, c.d).input_bytes()) +
                   RowLayout(Codec::int8, int(rank)).input_bytes()) /
                      4 +
                  64);
  }
}

Engine::BatchThread::BatchThread(Engine& engine, int thread_)
    : e(engine),
      b(*engine.batch_),
      c(engine.c_),
      k(engine.k_),
      gemm(engine.gemm_),
      products{engine.gemm_, engine.k_},
      w(engine.workers_[size_t(thread_)]),
      thread(thread_),
      threads(engine.pool_.size()),
      total(b.total),
      padded(engine.layout_.padded),
      q_width(c.heads * c.head_dim),
      kv_width(c.kv_heads * c.head_dim),
      mine(share(total, gemm.nr, thread, threads)),
      panels(share(total, gemm.mr, thread, threads)),
      columns(share(padded, 64, thread, threads)),
      x(b.x.floats()),
      line(w.branch.floats()),
      normed(w.normed.floats()),
      scratch(w.scratch.floats()),
      c0(w.c0.floats()),
      c1(w.c1.floats()),
      scores(w.scores.floats()),
      packed(w.packed.floats()) {}

void Engine::BatchThread::run() {
  if (gemm.begin) gemm.begin();
  for (int t = mine.begin; t < mine.end; ++t) {
    const int position = b.position[size_t(t)], length = b.length[size_t(t)];
    e.embed(b.tokens[t], position, line, row(b.x, t, c.d));
    if (c.position != Position::rope) continue;
    float* table = row(b.rope, t, 2 * c.rope_dim);
    e.rope_table(position, length, false, table);
    if (!c.local_inv_freq.empty()) e.rope_table(position, length, true, table + c.rope_dim);
  }
  for (int i = 0; i < c.layers; ++i) {
    attention(i);
    mlp(i);
  }
  if (b.which != Logits::none || b.capture.head_input) logits();
  if (gemm.end) gemm.end();
}

// Norms this thread's tokens and packs them as input of the products. Tokens are shared in whole panels.
void Engine::BatchThread::prepare(const float* weight, const float* bias) {
  const size_t panel = gemm.panel_bytes_b(padded);
  for (int t0 = mine.begin; t0 < mine.end; t0 += gemm.nr) {
    const int n = least(mine.end - t0, gemm.nr);
    for (int i = 0; i < n; ++i) {
      const float* from = row(b.x, t0 + i, c.d);
      if (c.pre_norm) e.norm(from, weight, bias, line), from = line;
      to_stored_order(e.layout_, from, normed + size_t(i) * size_t(padded));
    }
    gemm.pack_bt(normed, size_t(padded), padded, n, (char*)b.input.floats() + size_t(t0 / gemm.nr) * panel, panel);
  }
  e.pool_.barrier();
}

// x += branch for this thread's tokens.
void Engine::BatchThread::close(const float* bias, const float* post_norm, const float* norm_weight,
                                const float* norm_bias, const LowRank* stand_in) {
  e.pool_.barrier();  // all products are complete
  for (int t = mine.begin; t < mine.end; ++t) {
    to_natural_order(e.layout_, row(b.branch, t, padded), line);
    if (stand_in) compensate(*stand_in, t, line);
    e.add_branch(row(b.x, t, c.d), line, bias, post_norm, norm_weight, norm_bias);
  }
}

void Engine::BatchThread::capture_input(float* captured, int layer) {
  if (!captured) return;
  const size_t first = size_t(mine.begin) * size_t(c.d), floats = size_t(mine.end - mine.begin) * size_t(c.d);
  std::memcpy(piece(captured, layer, c.d) + first, x + first, floats * sizeof(float));
}

// Cosines and sines of a token, or null.
const float* Engine::BatchThread::turn(int layer, int token) const {
  if (c.position != Position::rope) return nullptr;
  return row(b.rope, token, 2 * c.rope_dim) + (e.local_rope(layer) ? c.rope_dim : 0);
}

}  // namespace dejavu
