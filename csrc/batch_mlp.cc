#include "batch.h"

namespace dejavu {

void Engine::BatchThread::mlp(int i) {
  const Layer& layer = e.layers_[size_t(i)];
  const LayerPlan* plan = b.plan ? &b.plan->layers[size_t(i)] : nullptr;
  const bool masked = plan && plan->neurons.rule != Rule::dense;
  const bool by_gate = masked && plan->neurons.rule == Rule::threshold && c.gated;
  capture_input(b.capture.mlp_input, i);
  prepare(layer.mlp_norm, layer.mlp_norm_bias);
  if (b.plan) choose(i, false);
  const size_t left_panel = gemm.panel_bytes_a(c.ff);
  const Range neurons = share(c.ff, kPiece, thread, threads);
  for (int n0 = neurons.begin; n0 < neurons.end; n0 += kPiece) {
    const int n = least(neurons.end - n0, kPiece);
    hidden(i, n0, n, by_gate || b.capture.gate);
    auto keep = [&](const float* from, float* to) { k.transpose(from, b.ld, n, total, to + n0, size_t(c.ff)); };
    if (b.capture.hidden) keep(c1, piece(b.capture.hidden, i, c.ff));
    if (b.capture.gate) keep(c.gated ? c0 : c1, piece(b.capture.gate, i, c.ff));
    if (by_gate) keep(c0, b.gate.floats());
    if (masked) {
      keep(c1, b.hidden.floats());
    } else {
      gemm.pack_at(c1, b.ld, total, n, products.at((void*)b.left.floats(), n0, gemm.mr), left_panel);
    }
  }
  e.pool_.barrier();
  for (int t = panels.begin; plan && t < panels.end; ++t) mask_neurons(i, t);
  if (masked) {
    if (panels.end > panels.begin) {
      gemm.pack_a(row(b.hidden, panels.begin, c.ff), size_t(c.ff), panels.end - panels.begin, c.ff,
                  (char*)b.left.floats() + size_t(panels.begin / gemm.mr) * left_panel, left_panel);
    }
    e.pool_.barrier();
  }
  const auto down_row = [&](int r) {
    return layer.nested ? layer.parts.down.row(r, 0) : layer.mlp.row(r, c.gated ? 2 : 1);
  };
  products.axpy(PackedRows{mlp_layout(layer), down_row}, c.ff, b.left.floats(), total, columns, scratch, packed,
                b.branch.floats(), size_t(padded));
  if (c.parallel_residual) {
    for (int t = mine.begin; t < mine.end; ++t) k.add(row(b.x, t, c.d), row(b.q, t, q_width), c.d);
  }
  close(layer.down_bias, layer.mlp_post_norm, layer.mlp_norm, layer.mlp_norm_bias,
        plan && plan->compensated ? &plan->compensator : nullptr);
}

// c1[n x tokens] = what the down rows of neurons [n0, n0 + n) are multiplied with; c0: act(gate) if it is to be kept.
void Engine::BatchThread::hidden(int i, int n0, int n, bool keep_gate) {
  const Layer& layer = e.layers_[size_t(i)];
  const Selector* selector = b.plan ? &b.plan->layers[size_t(i)].neurons : nullptr;
  const int leading_bits = selector && selector->leading_values ? selector->bits : 0;  // that neurons hold
  const auto multiply = [&](int part, const float* bias, float* out) {
    const RowLayout& layout = mlp_layout(layer);
    const NestedMlp& parts = layer.parts;
    uint8_t* joined = reinterpret_cast<uint8_t*>(w.joined.floats());
    for (int r = 0; parts.cut() && r < n; r += kTileRows) {
      join_parts(parts, (n0 + r) / kTileRows, least(n - r, kTileRows), part, joined + size_t(r) * layout.code_bytes);
    }
    for (int r = 0; parts.cut() && leading_bits && r < n && n0 + r < e.own_neurons(); ++r) {
      keep_leading(layout, leading_bits, joined + size_t(r) * layout.code_bytes);
    }
    const auto row_at = [&](int r) {
      if (!layer.nested) return layer.mlp.row(n0 + r, part);
      if (!parts.cut()) return parts.whole.row(n0 + r, part);
      return Row{joined + size_t(r) * layout.code_bytes, parts.low.row(n0 + r, part).scales};
    };
    products.dot(PackedRows{layout, row_at}, n, b.input.floats(), total, scratch, packed, out, b.ld);
    for (int r = 0; bias && r < n; ++r) {
      for (int t = 0; t < total; ++t) out[size_t(r) * b.ld + size_t(t)] += bias[n0 + r];
    }
  };
  multiply(c.gated ? 1 : 0, layer.up_bias, c1);
  if (c.gated) multiply(0, layer.gate_bias, c0);
  for (int r = 0; r < n; ++r) {
    float *up = c1 + size_t(r) * b.ld, *gate = c0 + size_t(r) * b.ld;
    k.activate(c.activation, c.gated ? gate : up, c.gated ? up : nullptr, total, up);
    if (c.gated && keep_gate) k.activate(c.activation, gate, nullptr, total, gate);
  }
}

}  // namespace dejavu
