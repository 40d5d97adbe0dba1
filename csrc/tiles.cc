#include "tiles.h"

#include <cstring>

namespace dejavu {
namespace {

constexpr uint32_t kEach = 0x01010101;  // one bit of each byte of a quad

// body(codes, quad, place, other): for every quad of a row, where the tile has the first codes of its group for the
// row's lane, and the places of its two pairs of weights in the stored order.
template <typename Body>
void each_quad(const Tiles& t, int lane, Body body) {
  const RowLayout& layout = t.layout;
  for (int g = 0; g < layout.groups; ++g) {
    const bool permuted = g < layout.blocks * kBlockGroups;
    const int first = permuted ? g / kBlockGroups * kBlock + g % kBlockGroups * 2 : g * kGroup;
    const int apart = permuted ? 32 : 2;  // of pairs
    const size_t codes = size_t(g) * size_t(t.bits) * 64 + size_t(4 * lane);
    for (int q = 0; q < kQuads; ++q) body(codes, q, first + 2 * q * apart, first + (2 * q + 1) * apart);
  }
}

uint32_t load_quad(const uint8_t* p) {
  uint32_t quad;
  std::memcpy(&quad, p, 4);
  return quad;
}

// Quad q of a group for all rows of a tile: the leading bits at their place in unsigned codes.
void load_quads(int bits, const uint8_t* group, int q, uint32_t* quads) {
  const bool two = bits == 3;  // higher bits lie two by two, or four by four
  const uint8_t *high = group + (two ? q / 4 : q / 2) * 64, *lowest = group + (bits - 1) * 64;
  const int shift = two ? q % 4 * 2 : q % 2 * 4;
  const uint32_t mask = kEach * (two ? 3u : 15u);
  for (int lane = 0; lane < kTileRows; ++lane) {
    uint32_t quad = load_quad(high + 4 * lane) >> shift & mask;
    if (bits != 4) quad = quad << 1 | (load_quad(lowest + 4 * lane) >> q & kEach);
    quads[lane] = quad << (8 - bits);
  }
}

void add_quad(uint8_t* p, uint32_t bits) {
  const uint32_t quad = load_quad(p) | bits;
  std::memcpy(p, &quad, 4);
}

}  // namespace

void put_in_tile(const Tiles& to, int neuron, int row, const Row& from) {
  uint8_t* tile = const_cast<uint8_t*>(to.tile(neuron / kTileRows, row));  // a view of memory that is being filled
  const int lane = neuron % kTileRows, left = 8 - to.bits;
  each_quad(to, lane, [&](size_t at, int q, int place, int other) {
    uint32_t quad = 0;
    std::memcpy(&quad, from.codes + place, 2);
    std::memcpy(reinterpret_cast<uint8_t*>(&quad) + 2, from.codes + other, 2);
    quad = (quad ^ kEach * 128) >> left & kEach * ((1u << to.bits) - 1);
    if (to.bits != 4) {  // a plane of the lowest bit
      add_quad(tile + at + size_t(to.bits - 1) * 64, (quad & kEach) << q);
      quad = quad >> 1 & kEach * 15;
    }
    if (to.bits == 3) {
      add_quad(tile + at + size_t(q / 4) * 64, quad << (q % 4 * 2));
    } else {
      add_quad(tile + at + size_t(q / 2) * 64, quad << (q % 2 * 4));
    }
  });
  for (int g = 0; g < to.layout.groups; ++g) {
    std::memcpy(tile + to.scales_at() + size_t(g * kTileRows + lane) * 2, from.scales + g * 2, 2);
  }
}

void take_tile(const Tiles& from, int tile, int n, int row, uint8_t* codes) {
  const RowLayout& layout = from.layout;
  const size_t stride = layout.code_bytes;
  const uint8_t* base = from.tile(tile, row);
  const auto group = [&](int g) { return base + size_t(g) * size_t(from.bits) * 64; };
  uint32_t quads[kBlockGroups][kTileRows];
  for (int b = 0; b < layout.blocks; ++b) {
    for (int q = 0; q < kQuads; ++q) {
      for (int g = 0; g < kBlockGroups; ++g) load_quads(from.bits, group(b * kBlockGroups + g), q, quads[g]);
      for (int lane = 0; lane < n; ++lane) {  // pair u of group g lies at place u * 16 + g
        uint16_t first[kBlockGroups], second[kBlockGroups];
        for (int g = 0; g < kBlockGroups; ++g) {
          first[g] = uint16_t(quads[g][lane]), second[g] = uint16_t(quads[g][lane] >> 16);
        }
        uint8_t* to = codes + size_t(lane) * stride + size_t(b * kBlock + 4 * q * kBlockGroups);
        std::memcpy(to, first, sizeof first);
        std::memcpy(to + sizeof first, second, sizeof second);
      }
    }
  }
  for (int g = layout.blocks * kBlockGroups; g < layout.groups; ++g) {
    for (int q = 0; q < kQuads; ++q) {
      load_quads(from.bits, group(g), q, quads[0]);
      for (int lane = 0; lane < n; ++lane) {
        std::memcpy(codes + size_t(lane) * stride + size_t(g * kGroup + 4 * q), &quads[0][lane], 4);
      }
    }
  }
}

}  // namespace dejavu
