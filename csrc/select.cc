#include "select.h"

#include <algorithm>
#include <functional>
#include <new>

namespace dejavu {

Rows::Rows(const float* values, int rows, int width) {
  const int count = (rows + kPlainRows - 1) / kPlainRows;
  const Bundles all(RowLayout(Codec::int8, width), kPlainRows, count);
  std::vector<float> padded(size_t(count) * kPlainRows * size_t(width));
  std::copy(values, values + size_t(rows) * size_t(width), padded.begin());
  data_.reset(static_cast<uint8_t*>(::operator new(all.bytes(), std::align_val_t(64))));
  pack_bundles(all.layout, padded.data(), kPlainRows, count, data_.get());
  view_ = Bundles(all.layout, kPlainRows, count, data_.get());
}

void Rows::Free::operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t(64)); }

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
  std::copy(scores, scores + count, scratch);
  std::nth_element(scratch, scratch + selector.k - 1, scratch + count, std::greater<float>());
  const float least = scratch[selector.k - 1];
  int ties = selector.k;  // places left for scores equal to the least one, lower units first
  for (int i = 0; i < count; ++i) ties -= scores[i] > least;
  for (int i = 0; i < count; ++i) {
    const bool tie = scores[i] == least && ties > 0;
    ties -= tie;
    list[n] = i;
    n += scores[i] > least || tie;
    if (n == selector.k) break;
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
