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

void take_from_tile(const Tiles& from, int neuron, int row, uint8_t* codes) {
  const uint8_t* tile = from.tile(neuron / kTileRows, row);
  each_quad(from, neuron % kTileRows, [&](size_t at, int q, int place, int other) {
    uint32_t quad = from.bits == 3 ? load_quad(tile + at + size_t(q / 4) * 64) >> (q % 4 * 2) & kEach * 3
                                   : load_quad(tile + at + size_t(q / 2) * 64) >> (q % 2 * 4) & kEach * 15;
    if (from.bits != 4) quad = quad << 1 | (load_quad(tile + at + size_t(from.bits - 1) * 64) >> q & kEach);
    quad <<= 8 - from.bits;
    std::memcpy(codes + place, &quad, 2);
    std::memcpy(codes + other, reinterpret_cast<const uint8_t*>(&quad) + 2, 2);
  });
}

}  // namespace dejavu
