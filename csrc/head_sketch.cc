// Logits from the leading bits of the head's rows; the specification is dejavu.plan.VocabularySketch.
#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "engine.h"
#include "parts.h"

namespace dejavu {
namespace {

// Of which all sums stay in the first cache while they are added up.
constexpr int kTilesAtOnce = 64, kRowsAtOnce = 256;

}  // namespace

Tiles Engine::tiles_of(const Bundles& rows, int bits, Buffer& memory) {
  Tiles tiles(rows.layout.d, bits, 1, rows.count * rows.rows);
  tiles.base = reinterpret_cast<const uint8_t*>(memory.get(tiles.bytes() / sizeof(float)));
  std::memset(memory.data.get(), 0, tiles.bytes());
  pool_.run([&](int thread) {
    const Range mine = share(rows.count, 1, thread, pool_.size());
    for (int i = mine.begin; i < mine.end; ++i) leading_parts(rows, i, tiles);
  });
  return tiles;
}

void Engine::sketch_head(Planned& planned) {
  planned.lead = planned_.lead, planned.lead_bytes = planned_.lead_bytes;
  if (!planned.plan || !planned.plan->head.bits) return;
  const HeadSketch& sketch = planned.plan->head;
  if (head_.layout.codec != Codec::int8) {
    throw std::invalid_argument("the plan reads the vocabulary by leading bits, which only int8 rows have");
  }
  const int stored = sketch.bits == 3 ? 3 : 4;
  if (planned.lead.bits != stored) {
    Buffer memory;
    planned.lead = tiles_of(head_, stored, memory);
    planned.lead_bytes = std::move(memory.data);
  }
  if (sketch.along) {
    const Bundles missing(RowLayout(Codec::int8, sketch.along), head_.rows, head_.count, sketch.missing.data());
    planned.missing = tiles_of(missing, 4, planned.missing_bytes);
    float* place = planned.direction_bytes.get(sketch.directions.size() / sizeof(float));
    std::memcpy(place, sketch.directions.data(), sketch.directions.size());
    planned.directions =
        Bundles(RowLayout(Codec::f32, c_.embed_dim), sketch.along, 1, reinterpret_cast<uint8_t*>(place));
  }
  planned.along_mean.assign(size_t(sketch.along), 0.0f);
  if (sketch.mean.empty()) return;
  if (sketch.along) {
    k_.rows[int(Codec::f32)].dot(planned.directions, 0, 0, sketch.along, sketch.mean.data(), planned.along_mean.data());
  }
  const RowKernels& rows = k_.rows[int(head_.layout.codec)];
  std::vector<char> input(head_.layout.input_bytes());
  std::vector<float> leading(size_t(c_.vocab));
  float *shift = planned.shift.get(size_t(c_.vocab)), *out = leading.data();
  rows.prepare(head_.layout, sketch.mean.data(), input.data());
  rows.dot(head_, 0, 0, c_.vocab, input.data(), shift);
  k_.tile_dot(planned.lead, sketch.bits, 0, 1, nullptr, 0, c_.vocab, input.data(), &out);
  for (int v = 0; v < c_.vocab; ++v) shift[v] -= leading[size_t(v)];
}

void Engine::prepare_sketched(const float* x, void* input, void* along, float* room) const {
  k_.rows[int(Codec::int8)].prepare(head_.layout, x, input);
  if (!planned_.missing.count) return;
  const int n = planned_.directions.rows;
  k_.rows[int(Codec::f32)].dot(planned_.directions, 0, 0, n, x, room);
  for (int j = 0; j < n; ++j) room[j] -= planned_.along_mean[size_t(j)];
  k_.rows[int(Codec::int8)].prepare(planned_.missing.layout, room, along);
}

void Engine::leading_logits(Range range, const void* input, const void* along, float* logits) const {
  alignas(64) float part[kTilesAtOnce * kTileRows];
  for (int tile = range.begin; tile < range.end; tile += kTilesAtOnce) {
    const int first = tile * kTileRows, last = std::min(tile + kTilesAtOnce, range.end) * kTileRows;
    const int n = std::min(last, c_.vocab) - first;
    float *out = logits + first, *more = part;
    k_.tile_dot(planned_.lead, planned_.plan->head.bits, 0, 1, nullptr, tile, n, input, &out);
    if (!planned_.plan->head.mean.empty()) k_.add(out, planned_.shift.data.get() + first, n);
    if (head_bias_) k_.add(out, head_bias_ + first, n);
    if (!planned_.missing.count) continue;
    k_.tile_dot(planned_.missing, 4, 0, 1, nullptr, tile, n, along, &more);
    k_.add(out, more, n);
  }
}

void Engine::exact_logits(const int32_t* rows, int n, const void* input, float* logits) const {
  float found[kRowsAtOnce];
  for (int i = 0; i < n; i += kRowsAtOnce) {
    const int count = std::min(n - i, kRowsAtOnce);
    k_.rows[int(head_.layout.codec)].dot_picked(head_, rows + i, count, input, found);
    for (int r = 0; r < count; ++r) logits[rows[i + r]] = found[r] + (head_bias_ ? head_bias_[rows[i + r]] : 0.0f);
  }
}

}  // namespace dejavu
