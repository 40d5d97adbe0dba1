#include "batch.h"

namespace dejavu {

void Engine::BatchThread::mlp(int i) {
  const Layer& layer = e.layers_[size_t(i)];
  capture_input(b.capture.mlp_input, i);
  prepare(layer.mlp_norm, layer.mlp_norm_bias);
  const Range neurons = share(c.ff, kPiece, thread, threads);
  for (int n0 = neurons.begin; n0 < neurons.end; n0 += kPiece) {
    const int n = least(neurons.end - n0, kPiece);
    hidden(i, n0, n);
    if (b.capture.hidden) k.transpose(c1, b.ld, n, total, piece(b.capture.hidden, i, c.ff) + n0, size_t(c.ff));
    if (b.capture.gate) {
      k.transpose(c.gated ? c0 : c1, b.ld, n, total, piece(b.capture.gate, i, c.ff) + n0, size_t(c.ff));
    }
    gemm.pack_at(c1, b.ld, total, n, products.at((void*)b.left.get(0), n0, gemm.mr), gemm.panel_bytes_a(c.ff));
  }
  e.pool_.barrier();
  const auto down_row = [&](int r) { return layer.mlp.row(r, c.gated ? 2 : 1); };
  products.axpy(products.packed_rows(e.layout_, down_row), c.ff, b.left.get(0), total, columns, scratch, packed,
                b.branch.get(0), size_t(padded));
  if (c.parallel_residual) {
    for (int t = mine.begin; t < mine.end; ++t) k.add(row(b.x, t, c.d), row(b.q, t, q_width), c.d);
  }
  close(layer.down_bias, layer.mlp_post_norm, layer.mlp_norm, layer.mlp_norm_bias);
}

// c1[n x tokens] = what the down rows of neurons [n0, n0 + n) are multiplied with; c0: act(gate) if it is captured.
void Engine::BatchThread::hidden(int i, int n0, int n) {
  const Layer& layer = e.layers_[size_t(i)];
  const auto multiply = [&](int part, const float* bias, float* out) {
    const auto row_at = [&](int r) { return layer.mlp.row(n0 + r, part); };
    products.dot(products.packed_rows(e.layout_, row_at), n, padded, b.input.get(0), total, scratch, packed, out, b.ld);
    for (int r = 0; bias && r < n; ++r) {
      for (int t = 0; t < total; ++t) out[size_t(r) * b.ld + size_t(t)] += bias[n0 + r];
    }
  };
  multiply(c.gated ? 1 : 0, layer.up_bias, c1);
  if (c.gated) multiply(0, layer.gate_bias, c0);
  for (int r = 0; r < n; ++r) {
    float *up = c1 + size_t(r) * b.ld, *gate = c0 + size_t(r) * b.ld;
    k.activate(c.activation, c.gated ? gate : up, c.gated ? up : nullptr, total, up);
    if (c.gated && b.capture.gate) k.activate(c.activation, gate, nullptr, total, gate);
  }
}

}  // namespace dejavu
