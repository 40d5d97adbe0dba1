#include "parts.h"

#include <cstring>

namespace dejavu {
namespace {

// Where a view was made over memory that is being filled.
uint8_t* writable(const uint8_t* p) { return const_cast<uint8_t*>(p); }

// body(first element, stride, first byte, shift in the byte, n): where elements `first`, `first + 1`, ... of a row of
// `c` have the bits of a plane: in every `stride`-th byte.
template <typename Body>
void each_run(const RowLayout& layout, Codec c, int number, Body body) {
  const Planes all = planes_of(c);
  const int w = all.plane[number].bits, per = 8 / w;
  const size_t before = number ? size_t(all.plane[0].bits) : 0;
  for (int b = 0; b < layout.blocks; ++b) {
    for (int v = 0; v < kBlock / kVector; ++v) {
      const size_t byte = size_t(kVector) * (size_t(b * all.bits) + before + size_t(v / per));
      for (int part = 0; part < 2; ++part) {
        body(b * kBlock + v * kVector + part * 32, 2, byte + size_t(part), v % per * w, 32);
      }
    }
  }
  const size_t start = size_t(kVector) * size_t(layout.blocks * all.bits);
  const int tails = layout.groups - layout.blocks * kBlockGroups;
  for (int t = 0; t < tails; ++t) {
    const size_t byte = start + 4 * (before * size_t(tails) + size_t(w * t));
    const int group = layout.blocks * kBlock + t * kGroup;
    for (int field = 0; field < per; ++field) {
      if (w == 4) {
        body(group + field * 16, 1, byte, field * w, 16);
      } else {
        for (int part = 0; part < 2; ++part) {
          body(group + part * 16 + field * 2 * w, 2, byte + size_t(part), field * w, 2 * w);
        }
      }
    }
  }
}

// The lowest bits of every code of an int8 row, as the planes of `c`.
void cut_row(const RowLayout& layout, const Row& row, Codec c, const Row& to) {
  const Planes all = planes_of(c);
  for (int p = 0; p < all.count; ++p) {
    const int down = all.plane[p].shift, mask = (1 << all.plane[p].bits) - 1;
    uint8_t* codes = writable(to.codes);
    each_run(layout, c, p, [&](int first, int stride, size_t byte, int shift, int n) {
      const uint8_t* source = row.codes + first;
      for (int i = 0; i < n; ++i) {
        const int field = ((source[i] ^ 128) >> down & mask) << shift;
        codes[byte + size_t(i * stride)] = uint8_t(codes[byte + size_t(i * stride)] | field);
      }
    });
  }
  std::memcpy(writable(to.scales), row.scales, layout.scale_bytes);
}

void copy_row(const RowLayout& layout, const Row& from, const Row& to) {
  std::memcpy(writable(to.codes), from.codes, layout.code_bytes);
  std::memcpy(writable(to.scales), from.scales, layout.scale_bytes);
}

// codes |= the fields of a vector of bytes, those of even bytes, then those of odd ones: in a form that compilers make
// vectors of.
void add_vector(const uint8_t* __restrict source, int shift, int mask, int back, uint8_t* __restrict codes) {
  const auto fields = uint16_t(mask * 0x101);
  uint16_t pairs[kVector / 2];
  std::memcpy(pairs, source, sizeof pairs);
  for (uint16_t& pair : pairs) pair = uint16_t((pair >> shift & fields) << back);
  for (int i = 0; i < kVector / 2; ++i) codes[i] |= uint8_t(pairs[i]);
  for (int i = 0; i < kVector / 2; ++i) codes[kVector / 2 + i] |= uint8_t(pairs[i] >> 8);
}

// codes |= the planes of `c`
void gather(const RowLayout& layout, Codec c, const uint8_t* from, uint8_t* codes) {
  const Planes all = planes_of(c);
  for (int p = 0; p < all.count; ++p) {
    const int back = all.plane[p].shift, mask = (1 << all.plane[p].bits) - 1;
    each_run(layout, c, p, [&](int first, int stride, size_t byte, int shift, int n) {
      if (n == kVector / 2) {  // nearly all
        if (byte % 2 == 0) add_vector(from + byte, shift, mask, back, codes + first);
        return;
      }
      for (int i = 0; i < n; ++i) {
        codes[first + i] = uint8_t(codes[first + i] | (from[byte + size_t(i * stride)] >> shift & mask) << back);
      }
    });
  }
}

}  // namespace

NestedMlp::NestedMlp(const RowLayout& layout, int dots, int count, int bits, const uint8_t* leading,
                     const uint8_t* rest) {
  down = Bundles(layout, 1, count, rest);
  if (layout.codec != Codec::int8) {
    whole = Bundles(layout, dots, count, leading);
    return;
  }
  lead = Tiles(layout.d, bits, dots, count, leading);
  low = Bundles(RowLayout(other_part(bits), layout.d), dots, count, rest);
  if (rest) down.base = rest + low.bytes();
}

void split_bundle(const Bundles& from, int bundle, const NestedMlp& mlp) {
  for (int r = 0; r < mlp.dots(); ++r) {
    const Row row = from.row(bundle, r);
    if (mlp.cut()) {
      put_in_tile(mlp.lead, bundle, r, row);
      cut_row(from.layout, row, mlp.low.layout.codec, mlp.low.row(bundle, r));
    } else {
      copy_row(from.layout, row, mlp.whole.row(bundle, r));
    }
  }
  copy_row(from.layout, from.row(bundle, mlp.dots()), mlp.down.row(bundle, 0));
}

void leading_parts(const Bundles& from, int bundle, const Tiles& to) {
  for (int r = 0; r < from.rows; ++r) put_in_tile(to, bundle * from.rows + r, 0, from.row(bundle, r));
}

void join_parts(const NestedMlp& mlp, int tile, int n, int row, uint8_t* codes) {
  const RowLayout& layout = mlp.lead.layout;
  const int padded = layout.padded;  // bytes that are written could be those of `layout`, for all that compilers know
  take_tile(mlp.lead, tile, n, row, codes);
  for (int r = 0; r < n; ++r) {
    uint8_t* of_row = codes + size_t(r) * layout.code_bytes;
    gather(layout, mlp.low.layout.codec, mlp.low.row(tile * kTileRows + r, row).codes, of_row);
    for (int i = 0; i < padded; ++i) of_row[i] ^= 128u;
  }
}

void keep_leading(const RowLayout& layout, int bits, uint8_t* codes) {
  const int middle = 1 << (7 - bits), known = -2 * middle, padded = layout.padded;
  for (int i = 0; i < padded; ++i) codes[i] = uint8_t((codes[i] & known) | middle);
}

}  // namespace dejavu
