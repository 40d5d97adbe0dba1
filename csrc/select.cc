#include "select.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace dejavu {

namespace {

// The k-th highest of n scores; `scratch` may be where they are.
float highest(const float* scores, int n, int k, float* scratch) {
  constexpr int kBits = 11, kBins = 1 << kBits, kFew = 256;
  uint32_t last = 0, above = 0;  // bin of the k-th; scores in bins after it
  int candidates = n;
  if (n > kFew) {  // a histogram of their leading bits leaves few candidates to be put in order
    uint32_t counts[kBins] = {};
    auto bin = [](float score) {  // ascending with the score
      uint32_t bits;
      std::memcpy(&bits, &score, sizeof(bits));
      return (bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000u)) >> (32 - kBits);  // no branch: signs are noise
    };
    for (int i = 0; i < n; ++i) ++counts[bin(scores[i])];
    for (last = kBins; above + counts[--last] < uint32_t(k);) above += counts[last];
    candidates = 0;
    for (int i = 0; i < n; ++i) {
      const float score = scores[i];
      scratch[candidates] = score;
      candidates += bin(score) == last;
    }
  } else if (scratch != scores) {
    std::memcpy(scratch, scores, size_t(n) * sizeof(float));
  }
  const auto wanted = long(k) - long(above) - 1;
  std::nth_element(scratch, scratch + wanted, scratch + candidates, std::greater<float>());
  return scratch[wanted];
}

// A value that almost surely more than k of n scores exceed, and few more: by a sample of them.
float likely_floor(const float* scores, int n, int k, float* scratch) {
  constexpr int kSample = 256, kWorthIt = 2048;
  const float share = float(k) / float(n);
  // Of the k highest a sample holds share * kSample on average, with the deviation of a binomial distribution; four
  // deviations more make a miss unlikely, and a miss costs one look at all scores.
  const float deviation = std::sqrt(share * (1 - share) * kSample);
  const int rank = int(share * kSample + 4 * deviation) + 2;
  if (n < kWorthIt || rank > kSample / 2) return -std::numeric_limits<float>::infinity();
  for (int i = 0; i < kSample; ++i) scratch[i] = scores[long(n) * i / kSample];
  return highest(scratch, kSample, rank, scratch);
}

}  // namespace

int pick(const Kernels& kernels, const Selector& selector, const float* scores, int count, float* scratch,
         int32_t* list) {
  const auto all = [&] {
    for (int i = 0; i < count; ++i) list[i] = i;
    return count;
  };
  if (selector.k == 0) return kernels.above(scores, count, selector.threshold, list);
  if (selector.k >= count) return all();
  int n = kernels.above(scores, count, likely_floor(scores, count, selector.k, scratch), list);
  if (n < selector.k) n = all();  // the sample misled
  for (int i = 0; i < n; ++i) scratch[i] = scores[list[i]];
  const float least = highest(scratch, n, selector.k, scratch);
  int over = 0, kept = 0;
  for (int i = 0; i < n; ++i) over += scores[list[i]] > least;
  int ties = selector.k - over;  // places left for scores equal to the least one, lower units first
  for (int i = 0; i < n; ++i) {  // no branches: who is chosen cannot be guessed
    const float score = scores[list[i]];
    const int tie = int(score == least) & int(ties > 0);
    ties -= tie;
    list[kept] = list[i];
    kept += int(score > least) | tie;
  }
  return kept;
}

float length_of(const float* v, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += v[i] * v[i];
  return std::sqrt(sum);
}

float random_score(uint64_t seed, int layer, int position, int unit) {
  uint64_t z = (seed ^ (uint64_t(layer) << 48) ^ (uint64_t(position) << 24) ^ uint64_t(unit)) + 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return float((z ^ (z >> 31)) >> 40) * (1.0f / 16777216.0f);
}

}  // namespace dejavu
