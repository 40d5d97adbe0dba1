// Scores of neurons and heads; the specification is dejavu/reference/selection.py. Functions here work on one token and
// a range of units, so that decoding shares them out to threads and the batched pass takes them token by token.
#include <cmath>

#include "engine.h"

namespace dejavu {
namespace {

// x + bias of neurons [begin, begin + n); x itself where there is no bias.
const float* biased(const float* x, const float* bias, int begin, int n, float* room) {
  for (int i = 0; bias && i < n; ++i) room[i] = x[i] + bias[begin + i];
  return bias ? room : x;
}

}  // namespace

const void* Engine::to_input8(const void* input, void* scratch) const {
  if (is_grouped(layout_.codec)) return input;  // the same form
  k_.rows[int(Codec::int8)].prepare(RowLayout(Codec::int8, c_.d), (const float*)input, scratch);
  return scratch;
}

void Engine::hidden_of(const LowRank& map, Range range, const void* input8, float* hidden) const {
  const int n = range.end - range.begin;
  if (n > 0) k_.rows[int(Codec::int8)].dot(map.a.view(), 0, range.begin, n, input8, hidden + range.begin);
  if (!map.relu) return;
  for (int i = range.begin; i < range.end; ++i) hidden[i] = hidden[i] > 0 ? hidden[i] : 0;
}

void Engine::output_of(const LowRank& map, Range range, const float* hidden, void* room, float* output) const {
  if (range.end <= range.begin) return;
  k_.rows[int(Codec::int8)].prepare(map.b.view().layout, hidden, room);
  prepared_output_of(map, range, room, output + range.begin);
}

void Engine::prepared_output_of(const LowRank& map, Range range, const void* hidden, float* output) const {
  const int n = range.end - range.begin;
  k_.tile_dot(map.b.view(), LeadingRows::kBits, 0, 1, nullptr, range.begin / kTileRows, n, hidden, &output);
  k_.add(output, map.bias.data() + range.begin, n);
}

void Engine::score_staged(const Selector& selector, Range range, const float* hidden, void* room, float* scores) const {
  output_of(selector.low_rank, range, hidden, room, scores);  // and leaves the prepared hidden values in `room`
  if (selector.rule != Rule::products) return;
  constexpr int kScored = 256;
  alignas(64) float up[kScored], above[kScored], below[kScored];
  for (int begin = range.begin; begin < range.end; begin += kScored) {
    const int n = range.end - begin < kScored ? range.end - begin : kScored;
    float* out = scores + begin;
    const float* spread = selector.spread[0].data() + begin;
    for (int i = 0; i < n; ++i) above[i] = out[i] + spread[i], below[i] = out[i] - spread[i];
    k_.activate(c_.activation, above, nullptr, n, above);
    k_.activate(c_.activation, below, nullptr, n, below);
    for (int i = 0; i < n; ++i) out[i] = 0.5f * (above[i] * above[i] + below[i] * below[i]);
    if (!c_.gated) continue;
    prepared_output_of(selector.up, {begin, begin + n}, room, up);
    spread = selector.spread[1].data() + begin;
    const bool rectified = c_.activation.kind == Activation::drelu;
    for (int i = 0; i < n; ++i) {
      float high = up[i] + spread[i], low = up[i] - spread[i];
      if (rectified) high = high > 0 ? high : 0, low = low > 0 ? low : 0;
      out[i] *= 0.5f * (high * high + low * low);
    }
  }
}

void Engine::exact_dots(const Layer& layer, int first, int rows, const int32_t* neurons, int n, const void* input,
                        float* out) const {
  if (layer.nested && layer.parts.cut()) {
    leading_dots(layer, first, rows, neurons, n, input, out);
    return add_low(layer, first, rows, neurons, n, input, out);
  }
  const Bundles& from = layer.nested ? layer.parts.whole : layer.mlp;
  k_.rows[int(from.layout.codec)].dot_list(from, first, rows, neurons, n, input, out);
}

void Engine::leading_dots(const Layer& layer, int first, int rows, const int32_t* neurons, int n, const void* input,
                          float* out) const {
  constexpr int kTiles = 16;
  const Tiles& lead = layer.parts.lead;
  alignas(64) float found[2][kTiles * kTileRows];
  float* const outs[2] = {found[0], found[1]};
  for (int i = 0; i < n;) {
    int32_t tiles[kTiles];
    int count = 0, end = i;  // neurons [i, end) of the list lie in so many tiles
    for (; end < n; ++end) {
      const int tile = neurons[end] / kTileRows;
      if (count && tiles[count - 1] == tile) continue;
      if (count == kTiles) break;
      tiles[count++] = tile;
    }
    k_.tile_dot(lead, lead.bits, first, rows, tiles, 0, count * kTileRows, input, outs);
    for (int at = 0; i < end; ++i) {
      while (tiles[at] != neurons[i] / kTileRows) ++at;
      for (int r = 0; r < rows; ++r) {
        out[i * rows + r] = found[r][at * kTileRows + neurons[i] % kTileRows];
      }
    }
  }
}

void Engine::add_low(const Layer& layer, int first, int rows, const int32_t* neurons, int n, const void* input,
                     float* out) const {
  const Bundles& low = layer.parts.low;
  float rest[2 * kTogether];
  k_.rows[int(low.layout.codec)].dot_list(low, first, rows, neurons, n, input, rest);
  k_.add(out, rest, n * rows);
}

void Engine::score_neurons(const Layer& layer, const Selector& selector, Range range, const void* input, float* gate,
                           float* up, float* scores) const {
  constexpr int kScored = 1024;  // neurons that are read in one go
  const bool sketch = selector.rule == Rule::sketch, gate_only = selector.rule == Rule::threshold && c_.gated;
  const int rows = c_.gated && !gate_only ? 2 : 1, most = sketch ? kScored : kTogether;
  alignas(64) float dots[2 * kScored], gates[kScored], ups[kScored];
  int32_t ids[kTogether];
  for (int begin = range.begin; begin < range.end; begin += most) {
    const int n = range.end - begin < most ? range.end - begin : most;
    float* out = scores + begin;
    if (sketch && layer.parts.cut()) {
      float* const by_row[] = {(c_.gated ? gate : up) + begin, up + begin};
      k_.tile_dot(layer.parts.lead, selector.bits, 0, layer.parts.lead.rows, nullptr, begin / kTileRows, n, input,
                  by_row);
    } else {
      if (sketch) {
        const Bundles& whole = layer.parts.whole;
        k_.rows[int(whole.layout.codec)].dot(whole, begin, 0, n * rows, input, dots);
      } else {
        for (int i = 0; i < n; ++i) ids[i] = begin + i;
        exact_dots(layer, 0, rows, ids, n, input, dots);
      }
      for (int i = 0; c_.gated && i < n; ++i) gate[begin + i] = dots[i * rows];
      for (int i = 0; !gate_only && i < n; ++i) up[begin + i] = dots[i * rows + rows - 1];
    }
    const float* g = biased(gate + begin, layer.gate_bias, begin, n, gates);
    const float* u = gate_only ? nullptr : biased(up + begin, layer.up_bias, begin, n, ups);
    float* values = selector.leading_values ? gate + begin : out;  // what neurons hold by these bits
    k_.activate(c_.activation, c_.gated ? g : u, c_.gated ? u : nullptr, n, values);
    if (!c_.gated && sketch && c_.activation.exact_zeros()) {  // the sign says who is active, the size how surely
      for (int i = 0; i < n; ++i) out[i] = u[i] - c_.activation.threshold;
    } else {
      for (int i = 0; i < n; ++i) out[i] = std::fabs(values[i]);
    }
  }
}

}  // namespace dejavu
