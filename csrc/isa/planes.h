// Dot products with bit planes. Included after rows.h.
#pragma once

#include "rows.h"

namespace {

using dejavu::kChunk;
using dejavu::Planes;

// Bits of planes [first, last) of element o, in their place within the code.
inline int plane_code(const Planes& planes, int unit, int row, int first, int last, int o) {
  const int place = dejavu::chunk_place(o < planes.layout.blocks * kBlock, o % kChunk);
  int code = 0;
  for (int p = first; p < last; ++p) {
    const int width = dejavu::plane_width(p), bytes = 8 * width;
    const uint8_t byte = planes.row(p, unit, row)[o / kChunk * bytes + place % bytes];
    code = code << width | ((byte >> place / bytes * width) & ((1 << width) - 1));
  }
  return code << planes.rest(last);
}

// out[(i - begin) * rows + r] = estimate(last) - estimate(first) of row r of unit list[i], times the input
void planes_dot(const Planes& planes, const int32_t* units, int begin, int end, int first, int last, const void* input,
                float* out) {
  const RowLayout& layout = planes.layout;
  const GroupedInput x(layout, input);
  const float offset = planes.offset(first, last);
  for (int i = begin; i < end; ++i) {
    const int unit = units ? units[i] : i;
    for (int r = 0; r < planes.rows; ++r) {
      const uint8_t* scales = planes.scale(unit, r);
      float total = 0;
      for (int g = 0; g < layout.groups; ++g) {
        total += f16(scales + g * 2) * offset * x.sums[g];
        if (layout.codec == Codec::int4 && first == 0) total += f16(scales + (layout.groups + g) * 2) * x.sums[g];
      }
      for (int o = 0; o < layout.padded; ++o) {
        const int g = layout.natural(o) / kGroup;
        total += float(plane_code(planes, unit, r, first, last, o) * x.codes[o]) * f16(scales + g * 2) * x.scales[g];
      }
      *out++ = total;
    }
  }
}

// Weights [begin, end) of a row in stored order, exactly as int8 or int4 have them.
void planes_decode(const Planes& planes, int unit, int row, int begin, int end, float* out) {
  const RowLayout& layout = planes.layout;
  const uint8_t* scales = planes.scale(unit, row);
  for (int o = begin; o < end; ++o) {
    const int g = layout.natural(o) / kGroup, code = plane_code(planes, unit, row, 0, planes.planes, o);
    const float scale = f16(scales + g * 2);
    *out++ = layout.codec == Codec::int8 ? scale * float(code - 128)
                                         : scale * float(code) + f16(scales + (layout.groups + g) * 2);
  }
}

constexpr dejavu::PlaneKernels plane_kernels() { return {planes_dot, planes_decode}; }

}  // namespace
