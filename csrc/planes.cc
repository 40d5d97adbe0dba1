#include "planes.h"

#include <cstring>

namespace dejavu {
namespace {

// The unsigned codes of chunk `c` of a row, each at its place.
void gather(const RowLayout& layout, const uint8_t* codes, int c, uint8_t* to) {
  const bool block = c * kChunk < layout.blocks * kBlock;
  const int n = layout.padded - c * kChunk < kChunk ? kGroup : kChunk;
  std::memset(to, 0, kChunk);
  if (layout.codec == Codec::int8) {
    codes += c * kChunk;
    for (int i = 0; i < n; ++i) to[chunk_place(block, i)] = uint8_t(codes[i] + 128);
  } else {
    codes += c * kChunk / 2;
    for (int i = 0; i < n; ++i) {
      const int byte = block ? i % 32 : i / 32 * 16 + i % 16, high = block ? i / 32 : i % 32 / 16;
      to[chunk_place(block, i)] = codes[byte] >> (4 * high) & 15;
    }
  }
}

// One plane of a chunk, eight bytes at a time; `left`: bits of the code below the plane.
void pack_plane(const uint8_t* places, int width, int left, uint8_t* to) {
  const uint64_t mask = uint64_t((1 << width) - 1) * 0x0101010101010101u;
  uint64_t packed[kChunk / 8] = {};
  for (int i = 0; i < kChunk / 8; ++i) {
    uint64_t codes;
    std::memcpy(&codes, places + 8 * i, 8);
    packed[i % width] |= (codes >> left & mask) << (i / width * width);
  }
  std::memcpy(to, packed, size_t(width) * 8);
}

// Where a view was made over memory that is being filled.
uint8_t* writable(const uint8_t* p) { return const_cast<uint8_t*>(p); }

}  // namespace

void split_bundle(const Bundles& from, int bundle, const Planes& planes, const Bundles* down) {
  const RowLayout& layout = from.layout;
  for (int r = 0; r < planes.rows; ++r) {
    const Row row = from.row(bundle, r);
    std::memcpy(writable(planes.scale(bundle, r)), row.scales, layout.scale_bytes);
    for (int c = 0; c * kChunk < layout.padded; ++c) {
      uint8_t places[kChunk];
      gather(layout, row.codes, c, places);
      for (int p = 0; p < planes.planes; ++p) {
        const int width = plane_width(p);
        pack_plane(places, width, planes.rest(p + 1), writable(planes.row(p, bundle, r)) + c * width * 8);
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
