#include <cstring>

#include "batch.h"
#include "order.h"
#include "select.h"

namespace dejavu {

void Engine::BatchThread::logits() {
  e.pool_.barrier();
  const Range captured = share(b.capture.head_input ? total : 0, 1, thread, threads);
  for (int r = captured.begin; r < captured.end; ++r) {
    const size_t width = size_t(c.embed_dim);
    std::memcpy(b.capture.head_input + size_t(r) * width, e.head_input(row(b.x, r, c.d), line, line + c.d), width * 4);
  }
  if (b.which == Logits::none) return;
  if (b.plan && b.plan->head.bits && b.plan->head.exact < c.vocab) {
    sketched_logits();
  } else if (b.which == Logits::last && b.segments->size() < 3) {
    few_logits();
  } else {
    many_logits();
  }
}

// What the head's rows are multiplied with for row r of the logits.
const float* Engine::BatchThread::logits_input(int r) {
  if (b.which == Logits::last) {
    const Segment& s = (*b.segments)[size_t(r)];
    r = s.row + s.count - 1;
  }
  return e.head_input(row(b.x, r, c.d), line, line + c.d);
}

// Of one or two sequences, by matrix-vector products as in decoding.
void Engine::BatchThread::few_logits() {
  const RowKernels& rows = k.rows[int(e.head_.layout.codec)];
  const int count = int(b.segments->size());
  const Range mine_here = share(c.vocab, kPlainRows, thread, threads);
  const int first = mine_here.begin, n = mine_here.end - first;
  const void* in[2] = {};
  float* out[2] = {};
  for (int r = 0; r < count; ++r) {
    float* prepared = scratch + size_t(r) * ((e.head_.layout.input_bytes() + 63) / 64 * 16);
    rows.prepare(e.head_.layout, logits_input(r), prepared);
    in[r] = prepared, out[r] = b.logits + size_t(r) * size_t(c.vocab) + first;
  }
  if (count == 1) {
    rows.dot(e.head_, 0, first, n, in[0], out[0]);
  } else {
    rows.dot_many(e.head_, 0, first, n, in, count, out);
  }
  for (int r = 0; r < count; ++r) e.finish_logits(out[r], first, n);
}

void Engine::BatchThread::many_logits() {
  const RowLayout& layout = e.head_.layout;
  const int count = b.which == Logits::all ? total : int(b.segments->size());
  const size_t panel = gemm.panel_bytes_b(layout.padded);
  const Range inputs = share(count, gemm.nr, thread, threads);
  for (int r0 = inputs.begin; r0 < inputs.end; r0 += gemm.nr) {
    const int n = least(inputs.end - r0, gemm.nr);
    for (int i = 0; i < n; ++i) {
      to_stored_order(layout, logits_input(r0 + i), normed + size_t(i) * size_t(layout.padded));
    }
    gemm.pack_bt(normed, size_t(layout.padded), layout.padded, n,
                 (char*)b.input.floats() + size_t(r0 / gemm.nr) * panel, panel);
  }
  e.pool_.barrier();
  const Range vocabulary = share(c.vocab, kPiece, thread, threads);
  for (int v0 = vocabulary.begin; v0 < vocabulary.end; v0 += kPiece) {
    const int n = least(vocabulary.end - v0, kPiece);
    const auto row_at = [&](int r) { return e.head_.row((v0 + r) / kPlainRows, (v0 + r) % kPlainRows); };
    products.dot(PackedRows{layout, row_at}, n, b.input.floats(), count, scratch, packed, c0, b.ld);
    k.transpose(c0, b.ld, n, count, b.logits + v0, size_t(c.vocab));
    for (int t = 0; t < count; ++t) e.finish_logits(b.logits + size_t(t) * size_t(c.vocab) + v0, v0, n);
  }
}

// All rows by their leading bits, the best of them exactly. Each thread takes whole rows of logits.
void Engine::BatchThread::sketched_logits() {
  const int count = b.which == Logits::all ? total : int(b.segments->size());
  const Range mine_here = share(count, 1, thread, threads);
  Selector best;
  best.k = b.plan->head.exact;
  float* room = w.picking.floats();
  int32_t* list = reinterpret_cast<int32_t*>(room + c.vocab);
  float *along = w.along.floats(), *along_room = along + e.along_bytes() / sizeof(float);
  for (int r = mine_here.begin; r < mine_here.end; ++r) {
    float* out = b.logits + size_t(r) * size_t(c.vocab);
    e.prepare_sketched(logits_input(r), scratch, along, along_room);
    e.leading_logits({0, e.planned_.lead.tiles()}, scratch, along, out);
    const int n = pick(e.k_, best, out, c.vocab, room, list);
    e.exact_logits(list, n, scratch, out);
    e.cap_logits(out, c.vocab);
  }
}

}  // namespace dejavu
