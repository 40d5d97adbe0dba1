#include "planes.h"

#include <cstring>

namespace dejavu {
namespace {

// The unsigned code of element `o` of the stored order.
uint8_t unsigned_code(const RowLayout& layout, const uint8_t* codes, int o) {
  if (layout.codec == Codec::int8) return uint8_t(codes[o] + 128);
  if (o < layout.blocks * kBlock) return codes[o / 64 * 32 + o % 32] >> (o / 32 % 2 * 4) & 15;
  return codes[o / kGroup * (kGroup / 2) + o % 16] >> (o % kGroup / 16 * 4) & 15;
}

// Where a view was made over memory that is being filled.
uint8_t* writable(const uint8_t* p) { return const_cast<uint8_t*>(p); }

}  // namespace

void split_bundle(const Bundles& from, int bundle, const Planes& planes, const Bundles* down) {
  const RowLayout& layout = from.layout;
  for (int r = 0; r < planes.rows; ++r) {
    const Row row = from.row(bundle, r);
    std::memcpy(writable(planes.scale(bundle, r)), row.scales, layout.scale_bytes);
    for (int o = 0; o < layout.padded; ++o) {
      const int code = unsigned_code(layout, row.codes, o), place = chunk_place(layout, o);
      for (int p = 0; p < planes.planes; ++p) {
        const int width = plane_width(p), bytes = 8 * width;
        const int field = code >> planes.rest(p + 1) & ((1 << width) - 1);
        writable(planes.row(p, bundle, r))[o / kChunk * bytes + place % bytes] |=
            uint8_t(field << place / bytes * width);
      }
    }
  }
  if (down) {
    const Row row = from.row(bundle, planes.rows), to = down->row(bundle, 0);
    std::memcpy(writable(to.codes), row.codes, layout.code_bytes);
    std::memcpy(writable(to.scales), row.scales, layout.scale_bytes);
  }
}

}  // namespace dejavu
