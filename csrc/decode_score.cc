// Scores of neurons and heads, by which a plan chooses, in one or two stages.
#include "decoder.h"

namespace dejavu {

// The first stage of scoring the neurons or heads of layer `target` from what enters this block, which is x.
void Engine::Decoder::score(int target, bool heads) {
  const LayerPlan& layer_plan = plan->layers[size_t(target)];
  const Selector& selector = heads ? layer_plan.heads : layer_plan.neurons;
  const Layer& layer = e.layers_[size_t(target)];
  void* const room = w.scratch.floats();
  for (int t = 0; t < s.n; ++t) {
    const void* prepared = input[t];
    if (selector.source(target) != target) {  // another layer's norm
      const float* from = x[t];
      if (c.pre_norm) {
        float* y = w.branch.floats();
        e.norm(x[t], heads ? layer.attn_norm : layer.mlp_norm, heads ? layer.attn_norm_bias : layer.mlp_norm_bias, y);
        from = y;
      }
      rows.prepare(e.layout_, from, room);
      prepared = room;
    }
    if (selector.staged()) {
      const LowRank& predictor = selector.low_rank;
      const Range mine = share(predictor.rank, kPlainRows, thread, threads);
      void* other = (char*)room + (e.layout_.input_bytes() + 63) / 64 * 64;
      e.hidden_of(predictor, mine, e.to_input8(prepared, other), hidden_of(target, t, heads));
    } else {
      const size_t at = size_t(t) * size_t(c.ff);
      e.score_neurons(layer, selector, scored(), prepared, e.planned_.gate.floats() + at, e.planned_.up.floats() + at,
                      scores_of(target, t, false));
    }
  }
}

// The second stage, of low-rank maps: scores from hidden values.
void Engine::Decoder::score_hidden(int target, bool heads) {
  const LayerPlan& layer_plan = plan->layers[size_t(target)];
  const Selector& selector = heads ? layer_plan.heads : layer_plan.neurons;
  const Range mine = share(heads ? c.heads : e.own_neurons(), kTileRows, thread, threads);
  for (int t = 0; t < s.n; ++t) {
    e.score_staged(selector, mine, hidden_of(target, t, heads), w.scratch.floats(), scores_of(target, t, heads));
  }
}

}  // namespace dejavu
