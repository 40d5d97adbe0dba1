#include "select.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <new>

namespace dejavu {

Rows::Rows(const std::vector<float>& values, int rows, int width, int count) {
  const Bundles all(RowLayout(Codec::int8, width), rows, count);
  data_.reset(static_cast<uint8_t*>(::operator new(all.bytes(), std::align_val_t(64))));
  pack_bundles(all.layout, values.data(), rows, count, data_.get());
  view_ = Bundles(all.layout, rows, count, data_.get());
}

Rows Rows::by_rows(const float* values, int rows, int width) {
  const int count = (rows + kPlainRows - 1) / kPlainRows;
  std::vector<float> padded(size_t(count) * kPlainRows * size_t(width));
  std::copy(values, values + size_t(rows) * size_t(width), padded.begin());
  return Rows(padded, kPlainRows, width, count);
}

Rows Rows::by_columns(const float* values, int rows, int width) {
  const int columns = std::min(width, kScoreColumns), count = (width + columns - 1) / columns;
  std::vector<float> blocks(size_t(count) * size_t(rows) * size_t(columns));
  for (int b = 0; b < count; ++b) {
    const int n = std::min(columns, width - b * columns);
    for (int r = 0; r < rows; ++r) {
      const float* from = values + size_t(r) * size_t(width) + size_t(b) * size_t(columns);
      std::copy(from, from + n, blocks.begin() + ((long(b) * rows + r) * columns));
    }
  }
  return Rows(blocks, rows, columns, count);
}

void Rows::Free::operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t(64)); }

namespace {

// The k-th highest of n scores: a histogram of their leading bits leaves few candidates to be put in order.
float highest(const float* scores, int n, int k, float* scratch) {
  constexpr int kBits = 11, kBins = 1 << kBits;
  uint32_t counts[kBins] = {};
  auto bin = [](float score) {  // ascending with the score
    uint32_t bits;
    std::memcpy(&bits, &score, sizeof(bits));
    return (bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u)) >> (32 - kBits);  // no branch: signs are noise
  };
  for (int i = 0; i < n; ++i) ++counts[bin(scores[i])];
  uint32_t last = kBins, above = 0;  // scores in bins after `last`
  while (above + counts[--last] < uint32_t(k)) above += counts[last];
  int candidates = 0;
  for (int i = 0; i < n; ++i) {
    scratch[candidates] = scores[i];
    candidates += bin(scores[i]) == last;
  }
  const auto wanted = long(k) - long(above) - 1;
  std::nth_element(scratch, scratch + wanted, scratch + candidates, std::greater<float>());
  return scratch[wanted];
}

}  // namespace

int pick(const Selector& selector, const float* scores, int count, float* scratch, int32_t* list) {
  int n = 0;
  if (selector.k >= count) {
    for (int i = 0; i < count; ++i) list[n++] = i;
    return n;
  }
  if (selector.k == 0) {
    for (int i = 0; i < count; ++i) {
      list[n] = i;
      n += scores[i] > selector.threshold;
    }
    return n;
  }
  const float least = highest(scores, count, selector.k, scratch);
  int above = 0;
  for (int i = 0; i < count; ++i) above += scores[i] > least;
  int ties = selector.k - above;     // places left for scores equal to the least one, lower units first
  for (int i = 0; i < count; ++i) {  // no branches: who is chosen cannot be guessed
    const int tie = int(scores[i] == least) & int(ties > 0);
    ties -= tie;
    list[n] = i;
    n += int(scores[i] > least) | tie;
  }
  return n;
}

float random_score(uint64_t seed, int layer, int position, int unit) {
  uint64_t z = (seed ^ (uint64_t(layer) << 48) ^ (uint64_t(position) << 24) ^ uint64_t(unit)) + 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return float((z ^ (z >> 31)) >> 40) * (1.0f / 16777216.0f);
}

}  // namespace dejavu
