// One token of one sequence. Each thread keeps the residual stream to itself and repeats the cheap steps (norms,
// reductions), so that a layer needs three barriers: after q, k, v; after attention; after the MLP.
#include <cstring>

#include "batch.h"
#include "engine.h"

namespace dejavu {

namespace {
// With more threads than this, adding everybody's partial sums costs more than one more barrier.
constexpr int kRepeatedReduction = 4;
}  // namespace

void Engine::decode(int32_t token, Cache& cache, float* logits) {
  std::lock_guard<std::mutex> lock(mutex_);
  cache.reserve(1);
  const size_t hd = size_t(c_.head_dim);
  q_.get(size_t(c_.heads) * hd);
  const size_t room = size_t(cache.block_count(cache.length() + 1)) * kCacheBlock;
  const size_t widest = size_t(c_.d > c_.embed_dim ? c_.d : c_.embed_dim) + kGroup;
  for (Worker& w : workers_) {
    w.x.get(widest);
    w.normed.get(widest);
    w.branch.get(partial_floats_ + 2 * widest);
    const size_t bytes = layout_.input_bytes() + head_.layout.input_bytes() + widest * sizeof(float);
    w.input.get(bytes / sizeof(float) + 16);
    w.head.get(2 * hd + 16);
    w.scores.get(room);
    w.rope.get(size_t(c_.rope_dim) * 2 + 16);
  }
  pool_.run([&](int thread) { decode_on(thread, token, cache, logits); });
  cache.advance(1);
}

// branch = sum of all threads' accumulators, natural order.
void Engine::reduce(int thread, std::vector<float>& partials, float* branch) {
  const int threads = pool_.size();
  const int floats = int(layout_.output_floats());
  pool_.barrier();
  float* first = partials.data();
  if (threads > kRepeatedReduction) {
    const Range mine = share(floats, 64, thread, threads);
    for (int t = 1; t < threads; ++t) {
      k_.add(first + mine.begin, first + size_t(t) * partial_floats_ + mine.begin, mine.end - mine.begin);
    }
    pool_.barrier();
    to_natural(first, branch);
    return;
  }
  float* total = first;
  if (threads > 1) {
    total = workers_[size_t(thread)].branch.get(0) + c_.d;
    std::memcpy(total, first, size_t(floats) * sizeof(float));
    for (int t = 1; t < threads; ++t) k_.add(total, first + size_t(t) * partial_floats_, floats);
  }
  to_natural(total, branch);
}

void Engine::decode_on(int thread, int32_t token, Cache& cache, float* logits) {
  Worker& w = workers_[size_t(thread)];
  const int threads = pool_.size(), hd = c_.head_dim, position = cache.length();
  float *x = w.x.get(0), *normed = w.normed.get(0), *branch = w.branch.get(0), *head = w.head.get(0);
  float *scores = w.scores.get(0), *rope = w.rope.get(0), *local_rope_table = rope + c_.rope_dim;
  void* input = w.input.get(0);
  const RowKernels& rows = k_.rows[int(layout_.codec)];
  float* attn_partial = attn_partials_.data() + size_t(thread) * partial_floats_;
  float* mlp_partial = mlp_partials_.data() + size_t(thread) * partial_floats_;
  float* q = q_.get(0);

  embed(token, position, branch, x);
  if (c_.position == Position::rope) {
    rope_table(position, position + 1, false, rope);
    if (!c_.local_inv_freq.empty()) rope_table(position, position + 1, true, local_rope_table);
  }
  const Range units = share(c_.heads + 2 * c_.kv_heads, 1, thread, threads);
  const Range my_heads = share(c_.heads, 1, thread, threads);
  const Range neurons = share(c_.ff, 4, thread, threads);

  for (int i = 0; i < c_.layers; ++i) {
    const Layer& layer = layers_[size_t(i)];
    const float* turn = c_.position != Position::rope ? nullptr : local_rope(i) ? local_rope_table : rope;
    auto prepare = [&](const float* weight, const float* bias) {
      if (c_.pre_norm) norm(x, weight, bias, normed);
      rows.prepare(layout_, c_.pre_norm ? normed : x, input);
    };
    auto mlp = [&](float* output) {
      rows.mlp({&layer.mlp, nullptr, neurons.begin, neurons.end, c_.gated, c_.activation, layer.gate_bias,
                layer.up_bias, input, output});
    };

    prepare(layer.attn_norm, layer.attn_norm_bias);
    for (int u = units.begin; u < units.end; ++u) {
      if (u < c_.heads) {
        rows.dot(layer.heads, u, 0, hd, input, q + u * hd);
        finish_query(layer, u, turn, q + u * hd);
      } else if (u < c_.heads + c_.kv_heads) {
        const int g = u - c_.heads;
        rows.dot(layer.kv, g, 0, hd, input, head);
        finish_key(layer, g, turn, head);
        store(cache, i, g, position, head, nullptr);
      } else {
        const int g = u - c_.heads - c_.kv_heads;
        rows.dot(layer.kv, g, hd, hd, input, head);
        if (layer.v_bias) k_.add(head, layer.v_bias + g * hd, hd);
        store(cache, i, g, position, nullptr, head);
      }
    }
    pool_.barrier();

    std::memset(attn_partial, 0, partial_floats_ * sizeof(float));
    for (int h = my_heads.begin; h < my_heads.end; ++h) {
      attend(cache, i, h, position, q + h * hd, scores, head);
      rows.axpy(layer.heads, h, hd, hd, head, attn_partial);
    }
    if (c_.parallel_residual) {
      prepare(layer.mlp_norm, layer.mlp_norm_bias);
      mlp(attn_partial);
      reduce(thread, attn_partials_, branch);
      if (layer.o_bias) k_.add(branch, layer.o_bias, c_.d);
      add_branch(x, branch, layer.down_bias, nullptr, nullptr, nullptr);
      continue;
    }
    reduce(thread, attn_partials_, branch);
    add_branch(x, branch, layer.o_bias, layer.attn_post_norm, layer.attn_norm, layer.attn_norm_bias);

    prepare(layer.mlp_norm, layer.mlp_norm_bias);
    std::memset(mlp_partial, 0, partial_floats_ * sizeof(float));
    mlp(mlp_partial);
    reduce(thread, mlp_partials_, branch);
    add_branch(x, branch, layer.down_bias, layer.mlp_post_norm, layer.mlp_norm, layer.mlp_norm_bias);
  }
  if (!logits) return;

  const RowKernels& head_rows = k_.rows[int(head_.layout.codec)];
  const float* last = head_input(x, normed, branch);
  head_rows.prepare(head_.layout, last, input);
  const Range bundles = share(head_.count, 1, thread, threads);
  for (int b = bundles.begin; b < bundles.end; ++b) {
    const int first = b * kPlainRows, n = c_.vocab - first < kPlainRows ? c_.vocab - first : kPlainRows;
    head_rows.dot(head_, b, 0, n, input, logits + first);
    finish_logits(logits + first, first, n);
  }
}

}  // namespace dejavu
