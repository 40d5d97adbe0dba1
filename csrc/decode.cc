// The walk of a decoding step through the layers; see decoder.h.
#include <algorithm>
#include <cstring>

#include "batch.h"
#include "decoder.h"
#include "products.h"

namespace dejavu {

namespace {
// With more threads than this, adding everybody's partial sums costs more than one more barrier.
constexpr int kRepeatedReduction = 4;

// A piece is a 64th of a thread's share, eight of which go as pieces; at least so many bytes, as the next one has to be
// asked for and its sum added.
constexpr int kPiecesOfShare = 64, kPiecesEach = 8, kMostPieces = 64;
constexpr size_t kLeastPiece = 128 << 10;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }
}  // namespace

void Engine::decode(const int32_t* tokens, Cache* const* caches, int n, bool sparse, float* logits) {
  std::lock_guard<std::mutex> lock(mutex_);
  sparse = sparse && planned_.plan;
  make_room(caches, n, sparse);
  for (int first = 0; first < n; first += kMaxTokens) {
    const int count = std::min(n - first, kMaxTokens);
    const Step step{tokens + first, caches + first, count, sparse,
                    logits ? logits + size_t(first) * size_t(c_.vocab) : nullptr};
    for (std::atomic<int>& next : next_pieces_) next.store(0, std::memory_order_relaxed);
    pool_.run([&](int thread) { Decoder(*this, step, thread).run(); });
    counters_.decoded += count;
    if (sparse) counters_.tokens += count;
    for (int t = 0; t < count; ++t) step.caches[t]->advance(1);
  }
}

void Engine::make_room(Cache* const* caches, int count, bool sparse) {
  const Plan* plan = sparse ? planned_.plan.get() : nullptr;
  const bool recompute = plan && plan->recompute;
  size_t positions = 0;
  for (int t = 0; t < count; ++t) {
    Cache& cache = *caches[t];
    if (!recompute || cache.tracked() != plan->buffer) catch_up(cache);
    if (recompute) cache.track(plan->buffer, layout_.input_bytes());
    cache.reserve(1);
    positions = std::max(positions, size_t(cache.block_count(cache.length() + 1)) * kCacheBlock);
  }
  const size_t n = size_t(std::min(count, kMaxTokens)), hd = size_t(c_.head_dim), heads = size_t(c_.heads);
  const size_t ff = size_t(c_.ff), rank = size_t(planned_.widest_rank), widest = stream_floats();
  q_.get(n * heads * hd);
  if (sparse) mixed_.get(n * heads * hd);
  if (threads() > 1) {
    position_outputs_.get(size_t(threads()) * kMaxTokens * heads * hd);
    log_sums_.get(size_t(threads()) * kMaxTokens * heads);
  }
  attn_partials_.resize(partial_floats_ * size_t(threads()) * kMaxTokens);
  mlp_partials_.resize(partial_floats_ * size_t(threads()) * kMaxTokens);
  piece_sums_.resize(partial_floats_ * size_t(std::min(threads() * kPiecesEach, kMostPieces)));
  for (Worker& w : workers_) {
    w.x.get(n * widest);
    w.normed.get(n * widest);
    w.branch.get(partial_floats_ + 2 * widest);
    w.input.get(n * prepared_floats());
    w.scratch.get(2 * prepared_floats() + ff * 2 + 4 * widest + RowLayout(Codec::int8, int(rank)).input_bytes() / 4);
    w.head_room.get(n * hd * size_t(std::max(2 * c_.kv_heads, kMostHeads)) + 16);
    w.scores.get(positions * kMostHeads);
    w.rope.get(n * size_t(c_.rope_dim) * 2 + 16);
    w.predictor.get(rank + 3 * widest + size_t(c_.rope_dim) + 64);
    w.picking.get(2 * std::max(ff, size_t(c_.vocab)) + 3 * heads + 16);
    w.along.get(along_floats(int(n)));
    w.chosen.resize(n * ff);
    w.heads.reserve(n * heads);
    w.units.reserve(std::max(ff, std::max(heads, 2 * size_t(c_.kv_heads))));
    w.masks.reserve(ff);
  }
}

Engine::Decoder::Decoder(Engine& engine, const Step& step, int thread_)
    : e(engine),
      s(step),
      thread(thread_),
      threads(engine.pool_.size()),
      w(engine.workers_[size_t(thread_)]),
      c(engine.c_),
      rows(engine.k_.rows[int(engine.layout_.codec)]),
      plan(step.sparse ? engine.planned_.plan.get() : nullptr) {
  for (int t = 0; t < s.n; ++t) {
    x[t] = w.x.floats() + size_t(t) * e.stream_floats();
    block_input[t] = c.pre_norm ? w.normed.floats() + size_t(t) * e.stream_floats() : x[t];
    input[t] = w.input.floats() + size_t(t) * e.prepared_floats();
    const size_t slot = (size_t(thread) * kMaxTokens + size_t(t)) * e.partial_floats_;
    attn_partial[t] = e.attn_partials_.data() + slot;
    mlp_partial[t] = e.mlp_partials_.data() + slot;
    rope[t] = w.rope.floats() + size_t(t) * size_t(c.rope_dim) * 2;
    position[t] = s.caches[t]->length();
    chosen[t] = w.chosen.data() + size_t(t) * size_t(c.ff);
  }
}

void Engine::Decoder::run() {
  since = Clock::now();
  for (int t = 0; t < s.n; ++t) {
    e.embed(s.tokens[t], position[t], w.branch.floats(), x[t]);
    if (c.position != Position::rope) continue;
    e.rope_table(position[t], position[t] + 1, false, rope[t]);
    if (!c.local_inv_freq.empty()) e.rope_table(position[t], position[t] + 1, true, rope[t] + c.rope_dim);
  }
  for (int i = 0; i < c.layers; ++i) {
    const Layer& layer = e.layers_[size_t(i)];
    enter(Part::attention);
    attention(i);
    if (!c.parallel_residual) {
      fetch_mlp(i);
      finish(e.attn_partials_, nullptr, layer.o_bias, layer.attn_post_norm, layer.attn_norm, layer.attn_norm_bias);
    }
    const auto start = Clock::now();
    prepare(layer.mlp_norm, layer.mlp_norm_bias);
    if (c.parallel_residual) {
      mlp(i, attn_partial);
      fetch_attention(i + 1);
      finish(e.attn_partials_, layer.o_bias, layer.down_bias, nullptr, nullptr, nullptr);
    } else {
      for (int t = 0; t < s.n; ++t) std::memset(mlp_partial[t], 0, e.partial_floats_ * sizeof(float));
      mlp(i, mlp_partial);
      fetch_attention(i + 1);
      finish(e.mlp_partials_, nullptr, layer.down_bias, layer.mlp_post_norm, layer.mlp_norm, layer.mlp_norm_bias);
    }
    if (thread == 0) e.counters_.mlp_seconds[size_t(i)] += seconds_since(start);
  }
  enter(Part::head);
  if (s.logits) logits();
  enter(Part::rest);
}

void Engine::Decoder::enter(Part next) {
  if (thread == 0) {
    e.counters_.seconds[int(part)] += seconds_since(since);
    since = Clock::now();
  }
  part = next;
}

void Engine::Decoder::barrier() {
  const Part inside = part;
  enter(Part::waiting);
  e.pool_.barrier();
  enter(inside);
}

void Engine::Decoder::prepare(const float* weight, const float* bias) {
  for (int t = 0; t < s.n; ++t) {
    if (c.pre_norm) e.norm(x[t], weight, bias, block_input[t]);
    rows.prepare(e.layout_, block_input[t], input[t]);
  }
}

Dealt Engine::Decoder::deal(int n, int unit, size_t unit_bytes) const {
  Dealt dealt;
  const int size = n / (kPiecesOfShare * threads) / (4 * unit) * 4 * unit;
  if (threads > 1 && s.n == 1 && size_t(size) * unit_bytes >= kLeastPiece) {
    dealt.size = size, dealt.pieces = std::min(threads * kPiecesEach, kMostPieces);
  }
  dealt.begin = n - dealt.pieces * dealt.size;
  dealt.own = share(dealt.begin, unit, thread, threads);
  return dealt;
}

const float* Engine::Decoder::turn(int i, int t) const {
  if (c.position != Position::rope) return nullptr;
  return rope[t] + (e.local_rope(i) ? c.rope_dim : 0);
}

// x += the branch whose shares lie in `partials`, once all threads have written theirs.
void Engine::Decoder::finish(std::vector<float>& partials, const float* first_bias, const float* bias,
                             const float* post_norm, const float* norm_weight, const float* norm_bias) {
  const int floats = int(e.layout_.output_floats());
  const size_t step = e.partial_floats_;
  float *branch = w.branch.floats(), *total = branch + c.d;
  barrier();
  enter(Part::rest);
  if (threads > kRepeatedReduction) {
    const Range mine = share(floats, 64, thread, threads);
    for (int t = 0; t < s.n; ++t) {
      float* first = partials.data() + size_t(t) * step + mine.begin;
      for (int from = 1; from < threads; ++from) {
        e.k_.add(first, first + size_t(from * kMaxTokens) * step, mine.end - mine.begin);
      }
      for (int p = 0; p < pieces; ++p) e.k_.add(first, piece_sum(p) + mine.begin, mine.end - mine.begin);
    }
    barrier();
  }
  for (int t = 0; t < s.n; ++t) {
    const float* first = partials.data() + size_t(t) * step;
    if (threads == 1 || threads > kRepeatedReduction) {
      e.to_natural(first, branch);
    } else {
      std::memcpy(total, first, size_t(floats) * sizeof(float));
      for (int from = 1; from < threads; ++from) e.k_.add(total, first + size_t(from * kMaxTokens) * step, floats);
      for (int p = 0; p < pieces; ++p) e.k_.add(total, piece_sum(p), floats);
      e.to_natural(total, branch);
    }
    if (first_bias) e.k_.add(branch, first_bias, c.d);
    e.add_branch(x[t], branch, bias, post_norm, norm_weight, norm_bias);
  }
  pieces = 0;
}

namespace {

// Asks for the first of n units of so many bytes; they are read in the order of Streams, and `at` says where they lie.
template <typename At>
void prefetch(int n, int most, size_t bytes, At at) {
  const Streams order(n);
  for (int i = 0; i < most && i < n; ++i) {
    const uint8_t* unit = at(order(i));
    for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(unit + line, 0, 1);
  }
}

constexpr int kFetched = 16;  // rows or bundles

}  // namespace

void Engine::Decoder::fetch_rows(const Bundles& b, int bundle, int n) const {
  prefetch(n, kFetched, b.layout.code_bytes, [&](int r) { return b.row(bundle + r / b.rows, r % b.rows).codes; });
}

void Engine::Decoder::fetch_bundles(const Bundles& b, Range bundles) const {
  const auto at = [&](int i) { return b.row(bundles.begin + i, 0).codes; };
  prefetch(bundles.end - bundles.begin, kFetched, b.stride, at);
}

void Engine::Decoder::fetch_tiles(const Tiles& t, Range tiles) const {
  const auto at = [&](int i) { return t.tile(tiles.begin + i, 0); };
  prefetch(tiles.end - tiles.begin, Streams::kStreams, t.tile_bytes, at);
}

// What this thread reads first of layer i's attention, or of the head behind the last layer.
void Engine::Decoder::fetch_attention(int i) const {
  if (i == c.layers) {
    if (plan && plan->head.bits)
      return fetch_tiles(e.planned_.lead, share(e.planned_.lead.tiles(), 1, thread, threads));
    if (s.logits) fetch_bundles(e.head_, deal(e.head_.count, 1, e.head_.stride).own);
    return;
  }
  if (plan && plan->layers[size_t(i)].heads.rule != Rule::dense) return;
  const Range queries = share(c.heads, 1, thread, threads);
  fetch_rows(e.layers_[size_t(i)].heads, queries.begin, (queries.end - queries.begin) * c.head_dim);
}

void Engine::Decoder::fetch_mlp(int i) const {
  const Layer& layer = e.layers_[size_t(i)];
  const Rule rule = plan ? plan->layers[size_t(i)].neurons.rule : Rule::dense;
  if (rule == Rule::dense && !layer.nested) {
    fetch_bundles(layer.mlp, deal(c.ff, 4, layer.mlp.stride).own);
  } else if (layer.nested && (rule == Rule::dense || rule == Rule::sketch)) {
    const Range mine = rule == Rule::dense ? share(c.ff, 4, thread, threads) : scored();
    if (layer.parts.cut()) {
      fetch_tiles(layer.parts.lead, {mine.begin / kTileRows, (mine.end + kTileRows - 1) / kTileRows});
    } else {
      fetch_bundles(layer.parts.whole, {mine.begin, least(mine.begin + kTogether, mine.end)});
    }
  }
}

void Engine::Decoder::dot(const Bundles& b, int bundle, int first, int n, const void* const* in, int tokens,
                          float* const* out) const {
  const RowKernels& kernels = e.k_.rows[int(b.layout.codec)];
  if (tokens == 1) {
    kernels.dot(b, bundle, first, n, in[0], out[0]);
  } else if (tokens > 1) {
    kernels.dot_many(b, bundle, first, n, in, tokens, out);
  }
}

void Engine::Decoder::logits() {
  const RowKernels& head_rows = e.k_.rows[int(e.head_.layout.codec)];
  const bool sketched = plan && plan->head.bits && plan->head.exact < c.vocab;
  char* along = reinterpret_cast<char*>(w.along.floats());
  float* along_room = reinterpret_cast<float*>(along + size_t(s.n) * e.along_bytes());
  float* out[kMaxTokens] = {};
  for (int t = 0; t < s.n; ++t) {
    out[t] = s.logits + size_t(t) * size_t(c.vocab);
    const float* last = e.head_input(x[t], w.branch.floats(), w.branch.floats() + c.d);
    if (sketched) {
      e.prepare_sketched(last, input[t], along + size_t(t) * e.along_bytes(), along_room);
    } else {
      head_rows.prepare(e.head_.layout, last, input[t]);
    }
  }
  if (sketched) return sketched_logits(along, out);
  take(deal(e.head_.count, 1, e.head_.stride), c.layers, [&](Range mine, int) {
    const int first = mine.begin * kPlainRows, n = least(mine.end * kPlainRows, c.vocab) - first;
    float* to[kMaxTokens];
    for (int t = 0; t < s.n; ++t) to[t] = out[t] + first;
    dot(e.head_, 0, first, n, input, s.n, to);
    for (int t = 0; t < s.n; ++t) e.finish_logits(to[t], first, n);
  });
}

// All rows of the head by their leading bits, the best of them exactly. `input` is prepared.
void Engine::Decoder::sketched_logits(const char* along, float* const* out) {
  const Range mine = share(e.planned_.lead.tiles(), 1, thread, threads);
  for (int t = 0; t < s.n; ++t) e.leading_logits(mine, input[t], along + size_t(t) * e.along_bytes(), out[t]);
  barrier();
  Selector best;
  best.k = plan->head.exact;
  int32_t* list = reinterpret_cast<int32_t*>(w.picking.floats() + c.vocab);
  for (int t = 0; t < s.n; ++t) {
    const int n = pick(e.k_, best, out[t], c.vocab, w.picking.floats(), list);
    const Range some = share(n, 16, thread, threads);
    barrier();  // all have picked before anybody changes the scores
    e.exact_logits(list + some.begin, some.end - some.begin, input[t], out[t]);
  }
  barrier();
  const int first = mine.begin * kTileRows, end = least(mine.end * kTileRows, c.vocab);
  for (int t = 0; t < s.n; ++t) e.cap_logits(out[t] + first, end - first);
}

}  // namespace dejavu
