// The attention block of a decoding step up to attention itself: choose heads; their q; k and v of the groups that need
// them.
#include <cstring>

#include "decoder.h"

namespace dejavu {

void Engine::Decoder::attention(int i) {
  const Layer& layer = e.layers_[size_t(i)];
  const int hd = c.head_dim, heads = c.heads, groups = c.kv_heads;
  prepare(layer.attn_norm, layer.attn_norm_bias);
  w.heads.assign(size_t(s.n * heads), 1);
  if (plan) {
    enter(Part::predicting);
    if (i > 0) {  // of MLPs whose selectors read what entered the one before: `finish` was the barrier between
      for (int target : e.planned_.neuron_targets[size_t(i - 1)]) {
        if (plan->layers[size_t(target)].neurons.staged()) score_hidden(target, false);
      }
    }
    for (int target : e.planned_.head_targets[size_t(i)]) score(target, true);
    choose_heads(i);
    enter(Part::attention);
    if (thread == 0 && plan->recompute) {
      for (int t = 0; t < s.n; ++t) s.caches[t]->keep_input(i, position[t], input[t]);
    }
  }

  // Query heads that a token chose, and keys and values of groups that a token needs, are shared out apart: a key costs
  // more, and what this thread attends to is mostly what it made. Neighbours are read as one range, unless several
  // tokens want different ones.
  const bool alike = heads_alike(i);
  const auto in_ranges = [&](int count, auto wanted, auto compute) {
    gather_units(count, wanted);
    const Range mine = share(int(w.units.size()), 1, thread, threads);
    for (int j = mine.begin; j < mine.end;) {
      const int first = w.units[size_t(j)];
      int n = 1;
      while (alike && j + n < mine.end && w.units[size_t(j + n)] == first + n) ++n;
      compute(first, n);
      j += n;
    }
  };
  in_ranges(
      heads, [&](int t, int head) { return head_chosen(t, head); },
      [&](int head, int count) { queries(i, head, count); });
  in_ranges(
      2 * groups, [&](int t, int unit) { return group_needed(i, t, unit / 2); },
      [&](int unit, int count) { keys_and_values(i, unit, count); });
  if (!plan || plan->layers[size_t(i)].heads.rule == Rule::dense) {
    const Range attended = share(heads, 1, thread, threads);
    if (attended.begin < attended.end) fetch_rows(layer.o, attended.begin, hd);
  }
  barrier();

  if (plan) {
    for (int target : e.planned_.head_targets[size_t(i)]) {
      if (plan->layers[size_t(target)].heads.staged()) score_hidden(target, true);
    }
    if (plan->recompute && thread == 0) {
      for (int t = 0; t < s.n; ++t) {
        for (int g = 0; g < groups; ++g) {
          if (group_needed(i, t, g)) e.counters_.recomputed += s.caches[t]->complete(i, g, position[t] + 1) - 1;
        }
      }
    }
  }
  for (int t = 0; t < s.n; ++t) std::memset(attn_partial[t], 0, e.partial_floats_ * sizeof(float));
  attend_all(i);
}

// Fills `heads` of this thread; the oracle chooses later, when the heads' outputs are known.
void Engine::Decoder::choose_heads(int i) {
  const Selector& selector = plan->layers[size_t(i)].heads;
  if (selector.staged() && selector.source(i) == i) {
    score(i, true);
    barrier();
    score_hidden(i, true);
    barrier();
  }
  if (selector.rule != Rule::oracle) pick_heads(i);
}

void Engine::Decoder::pick_heads(int i) {
  const Selector& selector = plan->layers[size_t(i)].heads;
  const int heads = c.heads;
  if (selector.rule == Rule::dense) {
    if (thread == 0) e.counters_.heads[size_t(i)] += int64_t(heads) * s.n;
    return;
  }
  float *scratch = w.picking.floats(), *values = scratch + heads;
  int32_t* list = reinterpret_cast<int32_t*>(values + heads);
  w.heads.assign(size_t(s.n * heads), 0);
  for (int t = 0; t < s.n; ++t) {
    const int32_t* found = list;
    int n;
    if (selector.rule == Rule::fixed) {
      found = selector.indices.data(), n = int(selector.indices.size());
    } else {
      const float* scores = scores_of(i, t, true);
      if (selector.rule == Rule::random) {
        for (int h = 0; h < heads; ++h) values[h] = random_score(selector.seed, i + kRandomHeads, position[t], h);
        scores = values;
      }
      n = pick(e.k_, selector, scores, heads, scratch, list);
    }
    for (int j = 0; j < n; ++j) w.heads[size_t(t * heads + found[j])] = 1;
    if (thread == 0) e.counters_.heads[size_t(i)] += n;
  }
}

// Whether all tokens of the step want the same heads, and the same groups.
bool Engine::Decoder::heads_alike(int i) const {
  return s.n == 1 || !plan || plan->layers[size_t(i)].heads.rule == Rule::dense;
}

// K and V of a group are written always, or (recompute) when one of its heads is chosen or its inputs would be lost.
bool Engine::Decoder::group_needed(int i, int t, int group) const {
  if (!plan || !plan->recompute) return true;
  if (s.caches[t]->missing(i, group, position[t] + 1) >= plan->buffer) return true;
  const int size = c.heads / c.kv_heads;
  for (int h = group * size; h < (group + 1) * size; ++h) {
    if (head_chosen(t, h)) return true;
  }
  return false;
}

// `count` query heads from `head` on, for the tokens that chose the first.
void Engine::Decoder::queries(int i, int head, int count) {
  const Layer& layer = e.layers_[size_t(i)];
  const int hd = c.head_dim;
  const void* in[kMaxTokens] = {};
  float* out[kMaxTokens] = {};
  int tokens[kMaxTokens], n = 0;
  for (int t = 0; t < s.n; ++t) {
    if (!head_chosen(t, head)) continue;
    in[n] = input[t], out[n] = e.q_.floats() + size_t(t * c.heads + head) * size_t(hd), tokens[n++] = t;
  }
  dot(layer.heads, head, 0, count * hd, in, n, out);
  for (int j = 0; j < n; ++j) {
    for (int h = 0; h < count; ++h) e.finish_query(layer, head + h, turn(i, tokens[j]), out[j] + h * hd);
  }
}

// `count` units, keys and values of one group after the other, from `unit` on: of this step's tokens, and with them of
// those that were left out before.
void Engine::Decoder::keys_and_values(int i, int unit, int count) {
  const bool recompute = plan && plan->recompute;
  const auto some_missing = [&](int u) {
    for (int t = 0; recompute && t < s.n; ++t) {
      if (group_needed(i, t, u / 2) && s.caches[t]->missing(i, u / 2, position[t])) return true;
    }
    return false;
  };
  for (int u = unit, end = unit + count; u < end;) {
    if (some_missing(u)) {
      for (int t = 0; t < s.n; ++t) {
        if (!group_needed(i, t, u / 2)) continue;
        const int begin = position[t] - s.caches[t]->missing(i, u / 2, position[t]);
        e.late_keys_or_values(w, *s.caches[t], i, u / 2, u % 2, begin, position[t] + 1, input[t]);
      }
      ++u;
      continue;
    }
    int together = 1;
    while (u + together < end && !some_missing(u + together)) ++together;
    new_keys_and_values(i, u, together);
    u += together;
  }
}

// Of this step's tokens alone.
void Engine::Decoder::new_keys_and_values(int i, int unit, int count) {
  const int hd = c.head_dim;
  float* room = w.head_room.floats();
  const void* in[kMaxTokens] = {};
  float* out[kMaxTokens] = {};
  int tokens[kMaxTokens], n = 0;
  for (int t = 0; t < s.n; ++t) {
    if (group_needed(i, t, unit / 2)) in[n] = input[t], out[n] = room + n * count * hd, tokens[n++] = t;
  }
  dot(e.layers_[size_t(i)].kv, unit / 2, unit % 2 ? hd : 0, count * hd, in, n, out);
  for (int j = 0; j < n; ++j) {
    const int t = tokens[j];
    for (int u = 0; u < count; ++u) {
      const int group = (unit + u) / 2;
      e.put_key_or_value(*s.caches[t], i, group, (unit + u) % 2, position[t], turn(i, t), out[j] + u * hd);
    }
  }
}

// A key or value straight from its rows: bias, norm and RoPE, and into the cache.
void Engine::put_key_or_value(Cache& cache, int i, int group, bool values, int position, const float* rope,
                              float* row) const {
  const Layer& layer = layers_[size_t(i)];
  if (values) {
    if (layer.v_bias) k_.add(row, layer.v_bias + group * c_.head_dim, c_.head_dim);
    store(cache, i, group, position, nullptr, row);
  } else {
    finish_key(layer, group, rope, row);
    store(cache, i, group, position, row, nullptr);
  }
}

void Engine::late_keys_or_values(Worker& w, Cache& cache, int i, int group, bool values, int begin, int end,
                                 const void* now) const {
  const RowKernels& rows = k_.rows[int(layout_.codec)];
  const int hd = c_.head_dim;
  float *out = w.late.floats(), *rope = nullptr;
  for (int p0 = begin; p0 < end; p0 += kMaxTokens) {
    const int n = end - p0 < kMaxTokens ? end - p0 : kMaxTokens;
    const void* in[kMaxTokens];
    float* to[kMaxTokens];
    for (int j = 0; j < n; ++j) {
      in[j] = now && p0 + j == end - 1 ? now : cache.kept_input(i, p0 + j), to[j] = out + j * hd;
    }
    rows.dot_many(layers_[size_t(i)].kv, group, values ? hd : 0, hd, in, n, to);
    for (int j = 0; j < n; ++j) {
      if (c_.position == Position::rope && !values) {
        rope = out + kMaxTokens * hd;
        rope_table(p0 + j, p0 + j + 1, local_rope(i), rope);
      }
      put_key_or_value(cache, i, group, values, p0 + j, rope, to[j]);
    }
  }
}

void Engine::catch_up(Cache& cache) {
  if (!cache.tracking()) return;
  cache.reserve(0);
  pool_.run([&](int thread) {
    const Range mine = share(c_.layers * c_.kv_heads, 1, thread, pool_.size());
    for (int item = mine.begin; item < mine.end; ++item) {
      const int layer = item / c_.kv_heads, group = item % c_.kv_heads, end = cache.length();
      const int begin = end - cache.missing(layer, group, end);
      for (const bool values : {false, true}) {
        late_keys_or_values(workers_[size_t(thread)], cache, layer, group, values, begin, end);
      }
    }
  });
  cache.stop_tracking();
}

}  // namespace dejavu
