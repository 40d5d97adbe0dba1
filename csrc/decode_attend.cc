// Attention of a decoding step, from q and the cache to the block's sum: by heads, or where these do not come out even,
// by positions; o.
#include <algorithm>
#include <cmath>

#include "decoder.h"

namespace dejavu {

// attn_partial += what the chosen heads give.
void Engine::Decoder::attend_all(int i) {
  const Layer& layer = e.layers_[size_t(i)];
  const int hd = c.head_dim, heads = c.heads;
  float *scores = w.scores.floats(), log_sums[kMostHeads];
  const bool oracle = plan && plan->layers[size_t(i)].heads.rule == Rule::oracle;
  if (oracle) {
    const Range mine = share(heads, 1, thread, threads);
    for (int t = 0; t < s.n; ++t) {
      float* norms = scores_of(i, t, true);
      for (int h = mine.begin; h < mine.end; ++h) {
        const size_t at = size_t(t * heads + h) * size_t(hd);
        float* mixed = e.mixed_.floats() + at;
        e.attend(*s.caches[t], i, h, 1, position[t], e.attended(i, position[t]), e.q_.floats() + at, scores, mixed,
                 log_sums);
        norms[h] = length_of(mixed, hd);
      }
    }
    barrier();
    pick_heads(i);
  }
  gather_units(heads, [&](int t, int head) { return head_chosen(t, head); });
  const Range mine = share(int(w.units.size()), 1, thread, threads);
  const bool by_positions = !oracle && positions_pay(i);
  if (by_positions) {
    attend_positions(i);
    barrier();
  }
  float* room = w.head_room.floats();
  for (int j = mine.begin; j < mine.end;) {
    const int h = w.units[size_t(j)], count = neighbours(i, j, mine.end);
    const float* by[kMaxTokens];
    float* out[kMaxTokens];
    int n = 0;
    for (int t = 0; t < s.n; ++t) {
      if (!head_chosen(t, h)) continue;
      const size_t at = size_t(t * heads + h) * size_t(hd);
      float* mixed = oracle ? e.mixed_.floats() + at : room + n * count * hd;
      if (by_positions) {
        join_positions(t, h, count, mixed);
      } else if (!oracle) {
        e.attend(*s.caches[t], i, h, count, position[t], e.attended(i, position[t]), e.q_.floats() + at, scores, mixed,
                 log_sums);
      }
      by[n] = mixed, out[n++] = attn_partial[t];
    }
    const int32_t* heads_of_o = w.units.data() + j;
    j += count;
    if (j < mine.end) fetch_rows(layer.o, w.units[size_t(j)], hd);
    e.k_.rows[int(layer.o.layout.codec)].axpy(layer.o, heads_of_o, count, by, n, out);
  }
}

// How many of the chosen heads, from the `first` of the list on and before `end`, go over their group's keys and values
// together: neighbours, unless several tokens want different ones.
int Engine::Decoder::neighbours(int i, int first, int end) const {
  const int32_t* listed = w.units.data() + first;
  const int group = c.heads / c.kv_heads, most = heads_alike(i) ? std::min(group - listed[0] % group, kMostHeads) : 1;
  int count = 1;
  while (count < most && first + count < end && listed[count] == listed[0] + count) ++count;
  return count;
}

// Whether threads share out positions instead of heads. They do where heads do not come out even, such as nine in three
// groups on two threads, and the context is long enough to pay for one more barrier.
bool Engine::Decoder::positions_pay(int i) const {
  constexpr int kPass = 4;  // going over keys and values, for up to kMostHeads, in heads' worth of arithmetic
  if (threads == 1) return false;
  const auto cost = [&](Range heads) {
    long total = 0;
    for (int j = heads.begin, count; j < heads.end; j += count) {
      count = neighbours(i, j, heads.end);
      for (int t = 0; t < s.n; ++t) {
        if (!head_chosen(t, w.units[size_t(j)])) continue;
        const Range all = e.attended(i, position[t]);
        total += long(count + kPass) * (all.end - all.begin);
      }
    }
    return total;
  };
  const int count = int(w.units.size());
  long most = 0;
  for (int k = 0; k < threads; ++k) most = std::max(most, cost(share(count, 1, k, threads)));
  return (most * threads - cost({0, count})) * c.head_dim > e.barrier_cost_ * threads;
}

// What the chosen heads give over this thread's share of the positions.
void Engine::Decoder::attend_positions(int i) {
  const int count = int(w.units.size());
  for (int j = 0, together; j < count; j += together) {
    const int h = w.units[size_t(j)];
    together = neighbours(i, j, count);
    for (int t = 0; t < s.n; ++t) {
      if (!head_chosen(t, h)) continue;
      const Range all = e.attended(i, position[t]);
      const int from = all.begin / kKeyTile * kKeyTile;
      const Range mine = share(all.end - from, kKeyTile, thread, threads);
      const Range over{std::max(all.begin, from + mine.begin), from + mine.end};
      const size_t at = size_t(t * c.heads + h), part = size_t(thread * kMaxTokens * c.heads) + at;
      float *out = e.position_outputs_.floats() + part * size_t(c.head_dim), *log_sums = e.log_sums_.floats() + part;
      if (over.begin < over.end) {
        e.attend(*s.caches[t], i, h, together, position[t], over, e.q_.floats() + at * size_t(c.head_dim),
                 w.scores.floats(), out, log_sums);
      } else {
        std::fill_n(log_sums, together, -INFINITY);
      }
    }
  }
}

// out[count][head_dim] = what heads give over all positions.
void Engine::Decoder::join_positions(int token, int head, int count, float* out) const {
  const size_t hd = size_t(c.head_dim), stride = size_t(kMaxTokens * c.heads), at = size_t(token * c.heads + head);
  std::fill_n(out, size_t(count) * hd, 0.0f);
  for (size_t h = 0; h < size_t(count); ++h) {
    const float* log_sums = e.log_sums_.floats() + at + h;
    const float* parts = e.position_outputs_.floats() + (at + h) * hd;
    float highest = -INFINITY, total = 0;
    for (int k = 0; k < threads; ++k) highest = std::max(highest, log_sums[size_t(k) * stride]);
    for (int k = 0; k < threads; ++k) total += std::exp(log_sums[size_t(k) * stride] - highest);
    for (int k = 0; k < threads; ++k) {
      const float weight = std::exp(log_sums[size_t(k) * stride] - highest) / total;
      if (weight == 0) continue;  // also of a thread without positions, which wrote nothing
      const float* part = parts + size_t(k) * stride * hd;
      for (size_t d = 0; d < hd; ++d) out[h * hd + d] += weight * part[d];
    }
  }
}

}  // namespace dejavu
