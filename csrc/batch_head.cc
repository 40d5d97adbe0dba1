#include "batch.h"
#include "order.h"

namespace dejavu {

void Engine::BatchThread::logits() {
  e.pool_.barrier();
  if (b.which == Logits::last && b.segments->size() < 3) {
    few_logits();
  } else {
    many_logits();
  }
}

// Of each segment's last token, by matrix-vector products as in decoding.
void Engine::BatchThread::few_logits() {
  const RowKernels& rows = k.rows[int(e.head_.layout.codec)];
  const Range bundles = share(e.head_.count, 1, thread, threads);
  for (size_t s = 0; s < b.segments->size(); ++s) {
    const Segment& segment = (*b.segments)[s];
    rows.prepare(e.head_.layout, e.head_input(row(b.x, segment.row + segment.count - 1, c.d), line, line + c.d),
                 scratch);
    for (int n = bundles.begin; n < bundles.end; ++n) {
      const int first = n * kPlainRows, count = least(c.vocab - first, kPlainRows);
      float* out = b.logits + s * size_t(c.vocab) + first;
      rows.dot(e.head_, n, 0, count, scratch, out);
      e.finish_logits(out, first, count);
    }
  }
}

void Engine::BatchThread::many_logits() {
  const RowLayout& layout = e.head_.layout;
  const bool all = b.which == Logits::all;
  const int count = all ? total : int(b.segments->size());
  const size_t panel = gemm.panel_bytes_b(layout.padded);
  const Range tokens = share(count, gemm.nr, thread, threads);
  for (int r0 = tokens.begin; r0 < tokens.end; r0 += gemm.nr) {
    const int n = least(tokens.end - r0, gemm.nr);
    for (int i = 0; i < n; ++i) {
      const Segment* s = all ? nullptr : &(*b.segments)[size_t(r0 + i)];
      const float* from = row(b.x, s ? s->row + s->count - 1 : r0 + i, c.d);
      to_stored_order(layout, e.head_input(from, line, line + c.d), normed + size_t(i) * size_t(layout.padded));
    }
    gemm.pack_bt(normed, size_t(layout.padded), layout.padded, n, (char*)b.input.get(0) + size_t(r0 / gemm.nr) * panel,
                 panel);
  }
  e.pool_.barrier();
  const Range vocabulary = share(c.vocab, kPiece, thread, threads);
  for (int v0 = vocabulary.begin; v0 < vocabulary.end; v0 += kPiece) {
    const int n = least(vocabulary.end - v0, kPiece);
    const auto row_at = [&](int r) { return e.head_.row((v0 + r) / kPlainRows, (v0 + r) % kPlainRows); };
    products.dot(products.packed_rows(layout, row_at), n, layout.padded, b.input.get(0), count, scratch, packed, c0,
                 b.ld);
    k.transpose(c0, b.ld, n, count, b.logits + v0, size_t(c.vocab));
    for (int t = 0; t < count; ++t) e.finish_logits(b.logits + size_t(t) * size_t(c.vocab) + v0, v0, n);
  }
}

}  // namespace dejavu
