// The MLP block of a decoding step: choose neurons, and add up what they and their stand-in give.
#include <algorithm>
#include <cstring>

#include "decoder.h"
#include "order.h"

namespace dejavu {

// output[t] += the block's result for token t, this thread's share of it.
void Engine::Decoder::mlp(int i, float* const* output) {
  const Selector* selector = plan ? &plan->layers[size_t(i)].neurons : nullptr;
  if (plan) {
    enter(Part::predicting);
    for (int target : e.planned_.neuron_targets[size_t(i)]) score(target, false);
    choose_neurons(i);
  }
  enter(Part::mlp);
  if (!selector || selector->rule == Rule::dense) {
    dense_mlp(i, output);
  } else {
    listed_mlp(i, output);
  }
  if (plan && plan->layers[size_t(i)].compensated) compensate(i, output);
}

// Fills `chosen`; neurons that were added to the model's own (second copies) always run.
void Engine::Decoder::choose_neurons(int i) {
  const Selector& selector = plan->layers[size_t(i)].neurons;
  const int own = e.own_neurons();
  apart = false;
  if (selector.rule == Rule::dense) {
    if (thread == 0) e.counters_.neurons[size_t(i)] += int64_t(own) * s.n;
    return;
  }
  if (selector.rule != Rule::fixed && selector.rule != Rule::random && selector.source(i) == i) {
    score(i, false);
    apart = s.n == 1 && selector.k == 0 && !selector.staged();
    if (apart) return choose_apart(i);
    if (selector.staged()) {
      barrier();
      score_hidden(i, false);
    }
    barrier();
  }
  float* scratch = w.picking.floats();
  for (int t = 0; t < s.n; ++t) {
    int n;
    if (selector.rule == Rule::fixed) {
      n = int(selector.indices.size());
      std::memcpy(chosen[t], selector.indices.data(), size_t(n) * sizeof(int32_t));
    } else {
      const float* from = scores_of(i, t, false);
      if (selector.rule == Rule::random) {
        float* values = scratch + c.ff;
        for (int j = 0; j < own; ++j) values[j] = random_score(selector.seed, i, position[t], j);
        from = values;
      }
      n = pick(e.k_, selector, from, own, scratch, chosen[t]);
    }
    if (thread == 0) e.counters_.neurons[size_t(i)] += n;
    for (int j = own; j < c.ff; ++j) chosen[t][n++] = j;
    chosen_count[t] = n;
  }
}

// Where a threshold decides, each thread chooses among the neurons that it has scored, and waits for nobody.
void Engine::Decoder::choose_apart(int i) {
  const Selector& selector = plan->layers[size_t(i)].neurons;
  const int own = e.own_neurons();
  const Range mine = scored();
  const float* scores = scores_of(i, 0, false);
  int n = pick(e.k_, selector, scores + mine.begin, mine.end - mine.begin, w.picking.floats(), chosen[0]);
  for (int j = 0; j < n; ++j) chosen[0][j] += mine.begin;
  __atomic_fetch_add(&e.counters_.neurons[size_t(i)], int64_t(n), __ATOMIC_RELAXED);
  const Range added = share(c.ff - own, 1, thread, threads);
  for (int j = added.begin; j < added.end; ++j) chosen[0][n++] = own + j;
  chosen_count[0] = n;
}

// output, and the sums of pieces, += what the neurons of the list (of all neurons, where there is none) give one token.
void Engine::Decoder::mlp_of_one(int i, const Dealt& dealt, const int32_t* list, float* output) {
  const Layer& layer = e.layers_[size_t(i)];
  pieces = dealt.pieces;
  take(dealt, i, [&](Range mine, int piece) {
    float* sum = output;
    if (piece >= 0) std::memset(sum = piece_sum(piece), 0, e.partial_floats_ * sizeof(float));
    e.mlp_rows(layer).mlp(
        {&layer.mlp, list, mine.begin, mine.end, c.gated, c.activation, layer.gate_bias, layer.up_bias, input[0], sum});
  });
}

void Engine::Decoder::dense_mlp(int i, float* const* output) {
  const Layer& layer = e.layers_[size_t(i)];
  if (!layer.nested && s.n == 1) return mlp_of_one(i, deal(c.ff, 4, layer.mlp.stride), nullptr, output[0]);
  const Range mine = share(c.ff, 4, thread, threads);
  if (layer.nested) {
    const Selector all;
    for (int begin = mine.begin; begin < mine.end; begin += kTogether) {
      const int end = std::min(begin + kTogether, mine.end);
      for (int t = 0; t < s.n; ++t) sum_neurons(layer, all, t, begin, end, output[t]);
    }
  } else {
    e.mlp_rows(layer).mlp_many({&layer.mlp, nullptr, nullptr, mine.begin, mine.end, c.gated, c.activation,
                                layer.gate_bias, layer.up_bias, s.n, input, output});
  }
}

// The chosen neurons. Tokens choose for themselves; the union of their sets is walked in pieces, so that a bundle that
// several tokens chose comes from memory once.
void Engine::Decoder::listed_mlp(int i, float* const* output) {
  const Layer& layer = e.layers_[size_t(i)];
  const Selector& selector = plan->layers[size_t(i)].neurons;
  const bool unfused =
      layer.nested || selector.rule == Rule::threshold || selector.rule == Rule::oracle || c.activation.exact_zeros();
  if (s.n == 1) {
    const int n = chosen_count[0];
    if (!unfused) return mlp_of_one(i, apart ? Dealt{{0, n}} : deal(n, 4, layer.mlp.stride), chosen[0], output[0]);
    const Range mine = apart ? Range{0, n} : share(n, 4, thread, threads);
    for (int begin = mine.begin; begin < mine.end; begin += kTogether) {
      const int end = std::min(begin + kTogether, mine.end);
      sum_neurons(layer, selector, 0, begin, end, output[0]);
    }
    return;
  }
  w.masks.assign(size_t(c.ff), 0);
  for (int t = 0; t < s.n; ++t) {
    for (int j = 0; j < chosen_count[t]; ++j) w.masks[size_t(chosen[t][j])] |= uint8_t(1u << t);
  }
  w.units.clear();
  for (int j = 0; j < c.ff; ++j) {
    if (w.masks[size_t(j)]) w.units.push_back(j);
  }
  const Range mine = share(int(w.units.size()), 4, thread, threads);
  if (mine.begin == mine.end) return;
  if (!unfused) {
    for (size_t u = 0; u < w.units.size(); ++u) w.masks[u] = w.masks[size_t(w.units[u])];  // in the list's order
    e.mlp_rows(layer).mlp_many({&layer.mlp, w.units.data(), w.masks.data(), mine.begin, mine.end, c.gated, c.activation,
                                layer.gate_bias, layer.up_bias, s.n, input, output});
    return;
  }
  int at[kMaxTokens];
  for (int t = 0; t < s.n; ++t) {
    const int32_t* list = chosen[t];
    at[t] = int(std::lower_bound(list, list + chosen_count[t], w.units[size_t(mine.begin)]) - list);
  }
  for (int begin = mine.begin; begin < mine.end; begin += kTogether) {
    const int end = std::min(begin + kTogether, mine.end);
    const int last = w.units[size_t(end - 1)];
    for (int t = 0; t < s.n; ++t) {
      int stop = at[t];
      while (stop < chosen_count[t] && chosen[t][stop] <= last) ++stop;
      sum_neurons(layer, selector, t, at[t], stop, output[t]);
      at[t] = stop;
    }
  }
}

// output += what the neurons at [begin, end) of token t's list (of all neurons, where there is none) give; at most
// kTogether of them.
void Engine::Decoder::sum_neurons(const Layer& layer, const Selector& selector, int t, int begin, int end,
                                  float* output) {
  if (end <= begin) return;
  const int n = end - begin, own = e.own_neurons();  // second copies, the last ones, have no scores
  const int32_t* list = selector.rule == Rule::dense ? nullptr : chosen[t];
  alignas(64) float h[kTogether];
  int32_t ids[kTogether];
  for (int j = 0; j < n; ++j) ids[j] = list ? list[begin + j] : begin + j;
  constexpr int kFirst = 32;  // rows that axpy_list would come to before it has fetched them
  for (int j = 0; layer.nested && j < std::min(n, kFirst); ++j) fetch_rows(layer.parts.down, ids[j], 1);
  int known = 0;  // those whose values scoring has left
  if (selector.rule == Rule::sketch && selector.leading_values) {
    const float* values = e.planned_.gate.floats() + size_t(t) * size_t(c.ff);
    for (; known < n && ids[known] < own; ++known) h[known] = values[ids[known]];
  }
  const int computed = known + hidden_values(layer, selector, t, ids + known, n - known, h + known);
  int kept = 0;  // exact zeros need no second half
  for (int j = 0; j < computed; ++j) {
    ids[kept] = ids[j], h[kept] = h[j];
    kept += h[j] != 0;
  }
  const Bundles& down = layer.nested ? layer.parts.down : layer.mlp;
  e.mlp_rows(layer).axpy_list(down, layer.nested ? 0 : c.gated ? 2 : 1, ids, kept, h, output);
}

// h[j] = what neuron ids[j] holds, j < n; returns how many are left: those with a closed gate are dropped.
int Engine::Decoder::hidden_values(const Layer& layer, const Selector& selector, int t, int32_t* ids, int n, float* h) {
  if (n == 0) return 0;
  const int dot_rows = c.gated ? 2 : 1;
  alignas(64) float gate[kTogether], up[kTogether], dots[2 * kTogether];
  // Where a closed gate makes up needless, or the gate is known and up is not, the gate comes first.
  if (c.gated && (c.activation.exact_zeros() || selector.rule == Rule::threshold)) {
    neuron_dots(layer, selector, t, 0, 1, ids, n, gate);
    if (c.activation.exact_zeros()) n = open_gates(layer, ids, gate, n);
    neuron_dots(layer, selector, t, 1, 1, ids, n, up);
  } else {
    neuron_dots(layer, selector, t, 0, dot_rows, ids, n, dots);
    for (int j = 0; c.gated && j < n; ++j) gate[j] = dots[j * dot_rows];
    for (int j = 0; j < n; ++j) up[j] = dots[j * dot_rows + dot_rows - 1];
  }
  for (int j = 0; j < n; ++j) {
    if (layer.gate_bias) gate[j] += layer.gate_bias[ids[j]];
    if (layer.up_bias) up[j] += layer.up_bias[ids[j]];
  }
  e.k_.activate(c.activation, c.gated ? gate : up, c.gated ? up : nullptr, n, h);
  return n;
}

// out[i * rows + r] = the dot of row first + r (gate, then up) of the i-th neuron of `ids`. What scoring computed of it
// is completed, not computed again.
void Engine::Decoder::neuron_dots(const Layer& layer, const Selector& selector, int t, int first, int rows,
                                  const int32_t* ids, int n, float* out) {
  // Leading bits that scoring has read for this very input.
  const bool scored_already = selector.rule == Rule::sketch && selector.lookahead == 0 && !selector.leading_values &&
                              (!layer.parts.cut() || selector.bits == layer.parts.lead.bits);
  const bool gate_first = c.gated && first == 0;
  const int own = e.own_neurons();  // second copies, the last ones, have no scores
  int from = 0;
  if (scored_already || selector.rule == Rule::oracle || (selector.rule == Rule::threshold && first == 0)) {
    const size_t at = size_t(t) * size_t(c.ff);
    const float *gate = e.planned_.gate.floats() + at, *up = e.planned_.up.floats() + at;
    for (; from < n && ids[from] < own; ++from) {
      for (int r = 0; r < rows; ++r) out[from * rows + r] = (gate_first && r == 0 ? gate : up)[ids[from]];
    }
    if (scored_already && layer.parts.cut()) e.add_low(layer, first, rows, ids, from, input[t], out);
  }
  e.exact_dots(layer, first, rows, ids + from, n - from, input[t], out + from * rows);
}

// Moves the neurons whose gate lets anything through to the front and counts them: of the others up is not read either.
int Engine::Decoder::open_gates(const Layer& layer, int32_t* ids, float* gate, int n) {
  alignas(64) float biased[kTogether] = {}, opened[kTogether] = {};
  for (int j = 0; j < n; ++j) biased[j] = gate[j] + (layer.gate_bias ? layer.gate_bias[ids[j]] : 0.0f);
  e.k_.activate(c.activation, biased, nullptr, n, opened);
  int kept = 0;
  for (int j = 0; j < n; ++j) {
    ids[kept] = ids[j], gate[kept] = gate[j];
    kept += opened[j] != 0;
  }
  return kept;
}

// What stands in for the skipped neurons; columns are shared out.
void Engine::Decoder::compensate(int i, float* const* output) {
  const LowRank& stand_in = plan->layers[size_t(i)].compensator;
  const Range mine = share(c.d, kTileRows, thread, threads);
  float *hidden = w.predictor.floats(), *natural = hidden + (stand_in.rank + 15) / 16 * 16;
  float* stored = natural + e.stream_floats();
  for (int t = 0; t < s.n; ++t) {
    e.hidden_of(stand_in, {0, stand_in.rank}, e.to_input8(input[t], w.scratch.floats()), hidden);
    std::memset(natural, 0, e.stream_floats() * sizeof(float));
    e.output_of(stand_in, mine, hidden, w.scratch.floats(), natural);
    to_stored_order(e.layout_, natural, stored);
    e.k_.add(output[t], stored, e.layout_.padded);
  }
}

}  // namespace dejavu
