// From scores to a selected set. The specification is dejavu/reference/selection.py.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"
#include "plan.h"

namespace dejavu {

// Writes the ascending list of units that `selector` picks of `count` scored ones and returns its length. `scratch` and
// `list` have room for `count` values. NaN is never picked by a threshold.
int pick(const Kernels& kernels, const Selector& selector, const float* scores, int count, float* scratch,
         int32_t* list);

// Score of the `random` rule: 24 bits of splitmix64 of (seed, layer, position, unit) as a fraction; heads use
// layer + kRandomHeads.
inline constexpr int kRandomHeads = 32768;
float random_score(uint64_t seed, int layer, int position, int unit);

// L2 norm: the oracle's score of a head, by its mixed values.
float length_of(const float* v, int n);

}  // namespace dejavu
