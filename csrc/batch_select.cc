// The plan in a batched pass: every token chooses its neurons and heads by the scores that decoding uses; what it did
// not choose is set to zero before the down and o rows.
#include <cmath>
#include <cstring>

#include "batch.h"
#include "select.h"

namespace dejavu {
namespace {

// Scores that are known only when the block's own values are: the others are computed from a block's input.
bool late(const Selector& selector) { return selector.rule == Rule::oracle || selector.rule == Rule::threshold; }

}  // namespace

// Chooses what depends on the input of this block: for this layer and for those that look ahead from it. The
// compensator's hidden values are made here too.
void Engine::BatchThread::choose(int i, bool heads) {
  const LayerPlan& layer = b.plan->layers[size_t(i)];
  const Selector& own = heads ? layer.heads : layer.neurons;
  const std::vector<int>& targets = (heads ? e.planned_.head_targets : e.planned_.neuron_targets)[size_t(i)];
  for (int t = mine.begin; t < mine.end; ++t) {
    if (own.rule != Rule::dense && !late(own) && own.source(i) == i) choose_for(i, heads, t);
    for (int target : targets) choose_for(target, heads, t);
    if (heads || !layer.compensated) continue;
    const LowRank& stand_in = layer.compensator;
    e.hidden_of(stand_in, {0, stand_in.rank}, prepare_one(i, false, t).second,
                row(b.stand_in, t, e.planned_.widest_rank));
  }
}

// The input of a block as layer `layer` norms it, prepared for the model's rows and for rows of int8.
std::pair<const void*, const void*> Engine::BatchThread::prepare_one(int layer, bool heads, int token) {
  const Layer& l = e.layers_[size_t(layer)];
  const float* from = row(b.x, token, c.d);
  if (c.pre_norm) {
    e.norm(from, heads ? l.attn_norm : l.mlp_norm, heads ? l.attn_norm_bias : l.mlp_norm_bias, line);
    from = line;
  }
  void *input = scratch, *other = (char*)scratch + (e.layout_.input_bytes() + 63) / 64 * 64;
  k.rows[int(e.layout_.codec)].prepare(e.layout_, from, input);
  return {input, e.to_input8(input, other)};
}

void Engine::BatchThread::choose_for(int target, bool heads, int token) {
  const LayerPlan& plan = b.plan->layers[size_t(target)];
  const Selector& selector = heads ? plan.heads : plan.neurons;
  const int units = heads ? c.heads : e.own_neurons();
  float *all = w.predictor.floats(), *gate = all + round_up(c.ff, 16), *up = gate + round_up(c.ff, 16);
  if (selector.staged()) {
    const LowRank& predictor = selector.low_rank;
    e.hidden_of(predictor, {0, predictor.rank}, prepare_one(target, heads, token).second, gate);
    e.score_staged(selector, {0, units}, gate, scratch, all);
  } else if (selector.rule == Rule::sketch) {
    e.score_neurons(e.layers_[size_t(target)], selector, {0, units}, prepare_one(target, heads, token).first, gate, up,
                    all);
  } else if (selector.rule == Rule::random) {
    const int layer = target + (heads ? kRandomHeads : 0), position = b.position[size_t(token)];
    for (int j = 0; j < units; ++j) all[j] = random_score(selector.seed, layer, position, j);
  }
  set_mask(selector, all, units, mask(target, heads, token));
}

uint8_t* Engine::BatchThread::mask(int layer, bool heads, int token) const {
  const size_t slot = size_t(layer % b.slots) * size_t(total) + size_t(token);
  return heads ? b.head_masks.data() + slot * size_t(c.heads) : b.neuron_masks.data() + slot * size_t(c.ff);
}

void Engine::BatchThread::set_mask(const Selector& selector, const float* all, int units, uint8_t* chosen) {
  std::memset(chosen, 0, size_t(units));
  if (selector.rule == Rule::fixed) {
    for (int32_t j : selector.indices) chosen[j] = 1;
    return;
  }
  float* room = w.picking.floats();
  int32_t* list = reinterpret_cast<int32_t*>(room + units);
  const int n = pick(e.k_, selector, all, units, room, list);
  for (int j = 0; j < n; ++j) chosen[list[j]] = 1;
}

// Sets what a token's heads gave to zero where it did not choose them.
void Engine::BatchThread::mask_heads(int i, int token) {
  const Selector& selector = b.plan->layers[size_t(i)].heads;
  const int hd = c.head_dim;
  int64_t touched = c.heads;
  if (selector.rule != Rule::dense) {
    float* mixed = row(b.mixed, token, q_width);
    uint8_t* chosen = mask(i, true, token);
    if (late(selector)) {
      float* norms = w.predictor.floats();
      for (int h = 0; h < c.heads; ++h) norms[h] = length_of(mixed + h * hd, hd);
      set_mask(selector, norms, c.heads, chosen);
    }
    for (int h = 0; h < c.heads; ++h) {
      if (chosen[h]) continue;
      std::memset(mixed + h * hd, 0, size_t(hd) * sizeof(float));
      --touched;
    }
  }
  b.touched[size_t(thread)].heads[size_t(i)] += touched;
}

// The same with neurons. Second copies, the last ones, stay.
void Engine::BatchThread::mask_neurons(int i, int token) {
  const Selector& selector = b.plan->layers[size_t(i)].neurons;
  const int own = e.own_neurons();
  int64_t touched = own;
  if (selector.rule != Rule::dense) {
    float* hidden = row(b.hidden, token, c.ff);
    uint8_t* chosen = mask(i, false, token);
    if (late(selector)) {
      const bool by_gate = selector.rule == Rule::threshold && c.gated;
      const float* from = by_gate ? row(b.gate, token, c.ff) : hidden;
      float* sizes = w.predictor.floats();
      for (int j = 0; j < own; ++j) sizes[j] = std::fabs(from[j]);
      set_mask(selector, sizes, own, chosen);
    }
    for (int j = 0; j < own; ++j) {
      if (chosen[j]) continue;
      hidden[j] = 0;
      --touched;
    }
  }
  b.touched[size_t(thread)].neurons[size_t(i)] += touched;
  if (!b.capture.chosen) return;
  float* out = piece(b.capture.chosen, i, c.ff) + size_t(token) * size_t(c.ff);
  const uint8_t* chosen = selector.rule == Rule::dense ? nullptr : mask(i, false, token);
  for (int j = 0; j < c.ff; ++j) out[j] = !chosen || j >= own || chosen[j] ? 1.0f : 0.0f;
}

// out += what stands in for the neurons that were not chosen; natural order.
void Engine::BatchThread::compensate(const LowRank& stand_in, int token, float* out) {
  float* sum = w.predictor.floats();
  e.output_of(stand_in, {0, c.d}, row(b.stand_in, token, e.planned_.widest_rank), scratch, sum);
  k.add(out, sum, c.d);
}

}  // namespace dejavu
