// Which values exceed a threshold.
#pragma once

#include "math.h"

namespace {

int above(const float* x, int n, float least, int32_t* list) {
  const F floor = Vec::set1(least);
  int found = 0, i = 0;
  for (; i + W <= n; i += W) found += Vec::list_above(list + found, i, Vec::load(x + i), floor);  // found <= i: in room
  for (; i < n; ++i) {  // no branch: who is above cannot be guessed
    list[found] = i;
    found += x[i] > least;
  }
  return found;
}

}  // namespace
