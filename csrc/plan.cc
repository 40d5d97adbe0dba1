// Access plans: their maps as rows, what fits the model, and what running it needs.
#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "engine.h"
#include "memory.h"
#include "parts.h"

namespace dejavu {
namespace {

AlignedBytes aligned_bytes(size_t n) { return AlignedBytes(static_cast<uint8_t*>(allocate(n))); }

// Whether of `apart` leading bits so many can be read. Of four of int8 some can be left unused.
void check_bits(bool int8, int apart, int bits) {
  if (int8 && apart == 4 ? bits >= 2 && bits <= 4 : bits == apart) return;
  throw std::invalid_argument("the plan reads " + std::to_string(bits) +
                              " leading bits, but the model was packed with " + std::to_string(apart) + " apart");
}

}  // namespace

Rows::Rows(const float* values, int rows, int width) {
  const int count = (rows + kPlainRows - 1) / kPlainRows;
  std::vector<float> padded(size_t(count) * kPlainRows * size_t(width));
  std::copy(values, values + size_t(rows) * size_t(width), padded.begin());
  view_ = Bundles(RowLayout(Codec::int8, width), kPlainRows, count);
  data_ = aligned_bytes(view_.bytes());
  if (pack_bundles(view_.layout, padded.data(), kPlainRows, count, data_.get()) != PackResult::ok) {
    throw std::invalid_argument("a low-rank map holds NaN or infinity, or needs a scale beyond float16");
  }
  view_.base = data_.get();
}

LeadingRows::LeadingRows(const float* values, int rows, int width) {
  const Rows whole(values, rows, width);
  view_ = Tiles(width, kBits, 1, rows);
  data_ = aligned_bytes(view_.bytes());
  std::memset(data_.get(), 0, view_.bytes());
  view_.base = data_.get();
  for (int i = 0; i < whole.view().count; ++i) leading_parts(whole.view(), i, view_);
}

void Engine::set_plan(std::unique_ptr<Plan> plan) {
  std::lock_guard<std::mutex> lock(mutex_);
  Planned next;
  next.neuron_targets.resize(size_t(c_.layers));
  next.head_targets.resize(size_t(c_.layers));
  for (int i = 0; plan && i < c_.layers; ++i) {
    const LayerPlan& layer = plan->layers[size_t(i)];
    if (layer.neurons.rule == Rule::sketch) {
      const Layer& own = layers_[size_t(i)];
      if (!own.nested) throw std::invalid_argument("the plan selects by sketches, but the model was not packed nested");
      check_bits(own.parts.cut(), own.parts.cut() ? own.parts.lead.bits : 4, layer.neurons.bits);
    }
    next.widest_rank = std::max(next.widest_rank, layer.compensator.rank);
    for (const bool heads : {false, true}) {
      const Selector& selector = heads ? layer.heads : layer.neurons;
      next.widest_rank = std::max(next.widest_rank, selector.low_rank.rank);
      const bool ahead = selector.staged() || selector.rule == Rule::sketch;
      if (ahead && selector.source(i) < i) {
        (heads ? next.head_targets : next.neuron_targets)[size_t(selector.source(i))].push_back(i);
      }
    }
  }
  next.plan = std::move(plan);
  sketch_head(next);
  const size_t layers = next.plan ? size_t(c_.layers) * kMaxTokens : 0, ff = size_t(c_.ff);
  next.widest_rank = (next.widest_rank + 15) / 16 * 16;
  next.neuron_scores.get(layers * ff + 16);
  next.head_scores.get(layers * size_t(c_.heads) + 16);
  next.neuron_hidden.get(layers * size_t(next.widest_rank) + 16);
  next.head_hidden.get(layers * size_t(next.widest_rank) + 16);
  next.gate.get(kMaxTokens * ff + 16);
  next.up.get(kMaxTokens * ff + 16);
  Counters none(c_.layers);
  planned_ = std::move(next);  // nothing fails any more
  counters_ = std::move(none);
}

}  // namespace dejavu
