// Between the two orders of a vector of d_model values: natural, and the one in which rows are stored (layout.h).
#pragma once

#include "layout.h"

namespace dejavu {

void to_stored_order(const RowLayout& layout, const float* natural, float* stored);   // fills the padding with zeros
void to_natural_order(const RowLayout& layout, const float* stored, float* natural);  // writes d values

}  // namespace dejavu
