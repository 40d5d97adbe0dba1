// Scores of neurons and heads, by which a plan chooses, in one or two stages.
#include "decoder.h"

namespace dejavu {

// The first stage of scoring the neurons or heads of layer `target` from what enters this block, which is x.
void Engine::Decoder::score(int target, bool heads) {
  const LayerPlan& layer_plan = plan->layers[size_t(target)];
  const Selector& selector = heads ? layer_plan.heads : layer_plan.neurons;
  const Layer& layer = e.layers_[size_t(target)];
  void* const room = w.scratch.get(0);
  for (int t = 0; t < s.n; ++t) {
    const void* prepared = input[t];
    if (selector.source(target) != target) {  // another layer's norm
      const float* from = x[t];
      if (c.pre_norm) {
        float* y = w.branch.get(0);
        e.norm(x[t], heads ? layer.attn_norm : layer.mlp_norm, heads ? layer.attn_norm_bias : layer.mlp_norm_bias, y);
        from = y;
      }
      rows.prepare(e.layout_, from, room);
      prepared = room;
    }
    if (selector.rule == Rule::low_rank) {
      const LowRank& predictor = selector.low_rank;
      Buffer& all = heads ? e.planned_.head_hidden : e.planned_.neuron_hidden;
      float* hidden = all.get(0) + size_t(target * kMaxTokens + t) * size_t(e.planned_.widest_rank);
      void* other = (char*)room + (e.layout_.input_bytes() + 63) / 64 * 64;
      e.hidden_of(predictor, share(predictor.rank, kPlainRows, thread, threads), e.to_input8(prepared, other), hidden);
    } else {
      const Range mine = scored();
      float* scores = e.planned_.neuron_scores.get(0) + size_t(target * kMaxTokens + t) * size_t(c.ff);
      const size_t at = size_t(t) * size_t(c.ff);
      e.score_neurons(layer, selector, mine, prepared, e.planned_.gate.get(0) + at, e.planned_.up.get(0) + at, scores);
    }
  }
}

// The second stage, of low-rank predictors: scores from hidden values.
void Engine::Decoder::score_hidden(int target, bool heads) {
  const LayerPlan& layer_plan = plan->layers[size_t(target)];
  const LowRank& predictor = (heads ? layer_plan.heads : layer_plan.neurons).low_rank;
  const int units = heads ? c.heads : e.own_neurons(), width = heads ? c.heads : c.ff;
  for (int t = 0; t < s.n; ++t) {
    const size_t row = size_t(target * kMaxTokens + t);
    const float* hidden =
        (heads ? e.planned_.head_hidden : e.planned_.neuron_hidden).get(0) + row * size_t(e.planned_.widest_rank);
    float* scores = (heads ? e.planned_.head_scores : e.planned_.neuron_scores).get(0) + row * size_t(width);
    e.output_of(predictor, share(units, kTileRows, thread, threads), hidden, w.scratch.get(0), scores);
  }
}

}  // namespace dejavu
