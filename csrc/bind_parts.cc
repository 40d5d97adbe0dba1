// Parts of int8 rows: cutting packed rows into sections, and the kernels one by one (for parity tests).
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "bindings.h"
#include "parts.h"
#include "pool.h"

namespace dejavu {
namespace {

using Bytes = Array<const uint8_t, 1>;
using Room = Array<uint8_t, 1>;

RowLayout layout_of(const std::string& codec, int d, int rows) {
  const RowLayout layout(parse_codec(codec), d);
  if (layout.codec != Codec::int8 && layout.codec != Codec::int4) {
    throw std::invalid_argument("only int8 and int4 rows are cut");
  }
  if (d <= 0 || rows <= 0) throw std::invalid_argument("d and rows must be positive");
  return layout;
}

int leading_bits(int bits) {
  if (bits < dejavu::kFewestApart || bits > dejavu::kMostApart)
    throw std::invalid_argument("rows are cut behind 3, 4 or 5 leading bits");
  return bits;
}

void same_bytes(size_t found, size_t expected, const char* what) {
  if (found != expected) {
    throw std::invalid_argument(std::string(what) + " has " + std::to_string(found) + " bytes instead of " +
                                std::to_string(expected));
  }
}

Bundles packed_view(const RowLayout& layout, int rows, const Bytes& packed) {
  Bundles from(layout, rows, 0, packed.data());
  if (packed.shape(0) % from.stride) throw std::invalid_argument("packed bytes are not a whole number of bundles");
  from.count = int(packed.shape(0) / from.stride);
  return from;
}

NestedMlp nested_view(const RowLayout& layout, int dots, int count, int leading, const Bytes& lead, const Bytes& rest) {
  const NestedMlp mlp(layout, dots, count, leading_bits(leading), lead.data(), rest.data());
  same_bytes(lead.shape(0), mlp.lead_bytes(), "lead");
  same_bytes(rest.shape(0), mlp.rest_bytes(), "rest");
  return mlp;
}

}  // namespace

void bind_parts(nb::module_& m) {
  m.def(
      "nested_bytes",
      [](const std::string& codec, int d, int dots, int count, int leading) {
        if (count < 0) throw std::invalid_argument("count must not be negative");
        const NestedMlp mlp(layout_of(codec, d, dots), dots, count, leading_bits(leading));
        return std::pair(mlp.lead_bytes(), mlp.rest_bytes());
      },
      nb::arg("codec"), nb::arg("d"), nb::arg("dots"), nb::arg("count"), nb::arg("leading"),
      "Bytes of a nested MLP's two sections, of `count` neurons cut behind so many leading bits.");

  m.def(
      "leading_bytes",
      [](int d, int rows, int leading) {
        return Tiles(layout_of("int8", d, rows).d, leading_bits(leading), 1, rows).bytes();
      },
      nb::arg("d"), nb::arg("rows"), nb::arg("leading"), "Bytes of the leading bits of `rows` rows.");

  m.def(
      "split_nested",
      [](const std::string& codec, Bytes packed, int d, int dots, int leading, Room lead, Room rest, int threads) {
        const Bundles from = packed_view(layout_of(codec, d, dots), dots + 1, packed);
        const NestedMlp mlp = nested_view(from.layout, dots, from.count, leading, Bytes(lead), Bytes(rest));
        nb::gil_scoped_release release;
        std::memset(lead.data(), 0, lead.shape(0));
        std::memset(rest.data(), 0, rest.shape(0));
        // Sixteen at a time: threads must not write to the same tile.
        share_out((from.count + kTileRows - 1) / kTileRows, threads, [&](int tile) {
          for (int i = tile * kTileRows; i < from.count && i < (tile + 1) * kTileRows; ++i) split_bundle(from, i, mlp);
        });
      },
      nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("d"), nb::arg("dots"), nb::arg("leading"),
      nb::arg("lead").noconvert(), nb::arg("rest").noconvert(), nb::arg("threads") = 1,
      "Cuts packed bundles of `dots` rows and a down row into the two sections of a nested MLP.");

  m.def(
      "join_nested",
      [](Bytes lead, Bytes rest, int leading, Array<int8_t, 3> out) {
        const int count = int(out.shape(0)), dots = int(out.shape(1)), d = int(out.shape(2));
        const RowLayout layout = layout_of("int8", d, dots);
        const NestedMlp mlp = nested_view(layout, dots, count, leading, lead, rest);
        std::vector<uint8_t> codes(layout.code_bytes * kTileRows);
        for (int i = 0; i < mlp.lead.tiles() * dots; ++i) {
          const int tile = i / dots, row = i % dots, first = tile * kTileRows, n = std::min(count - first, kTileRows);
          join_parts(mlp, tile, n, row, codes.data());
          for (int r = 0; r < n; ++r) {
            int8_t* to = out.data() + (size_t(first + r) * size_t(dots) + size_t(row)) * size_t(d);
            const uint8_t* from = codes.data() + size_t(r) * layout.code_bytes;
            for (int o = 0; o < layout.padded; ++o) {
              if (layout.natural(o) < d) to[layout.natural(o)] = int8_t(from[o]);
            }
          }
        }
      },
      nb::arg("lead").noconvert(), nb::arg("rest").noconvert(), nb::arg("leading"), nb::arg("out").noconvert(),
      "int8 codes [count, dots, d] from their parts.");

  m.def(
      "nested_dot",
      [](const std::string& isa, const std::string& codec, Bytes lead, Bytes rest, int dots, int leading, int count,
         int row, Array<const int32_t, 1> list, Array<const float, 1> x, Array<float, 1> out) {
        const RowLayout layout = layout_of(codec, int(x.shape(0)), dots);
        if (count < 0) throw std::invalid_argument("count must not be negative");
        const NestedMlp mlp = nested_view(layout, dots, count, leading, lead, rest);
        const int n = int(list.shape(0));
        if (row < 0 || row >= dots || out.shape(0) != size_t(n)) {
          throw std::invalid_argument("row or out out of range");
        }
        for (int i = 0; i < n; ++i) {
          if (list.data()[i] < 0 || list.data()[i] >= count) throw std::invalid_argument("neuron out of range");
        }
        const Bundles& from = mlp.cut() ? mlp.low : mlp.whole;
        const RowKernels& rows = kernels(parse_isa(isa)).rows[int(from.layout.codec)];
        std::vector<char> input(layout.input_bytes());
        rows.prepare(layout, x.data(), input.data());
        rows.dot_list(from, row, 1, list.data(), n, input.data(), out.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("lead").noconvert(), nb::arg("rest").noconvert(), nb::arg("dots"),
      nb::arg("leading"), nb::arg("count"), nb::arg("row"), nb::arg("list").noconvert(), nb::arg("x").noconvert(),
      nb::arg("out").noconvert(),
      "x times row `row` of the listed neurons, of int8 by the bits behind the leading ones.");

  m.def(
      "tile_dot",
      [](const std::string& isa, Bytes lead, int rows, int leading, int count, int bits, Array<const int32_t, 1> list,
         int begin, int end, Array<const float, 1> x, Array<float, 2> out, int first) {
        const RowLayout layout = layout_of("int8", int(x.shape(0)), rows);
        if (count < 0 || rows > 2) throw std::invalid_argument("count or rows out of range");
        const Tiles tiles(layout.d, leading_bits(leading), rows, count, lead.data());
        same_bytes(lead.shape(0), tiles.bytes(), "lead");
        if (leading != 4 ? bits != leading : bits < 2 || bits > 4) throw std::invalid_argument("bits out of range");
        const int listed = int(list.shape(0));
        if (begin % kTileRows || begin < 0 || end < begin || end > count) {
          throw std::invalid_argument("not a range of neurons that begins with a tile");
        }
        for (int i = 0; i < listed; ++i) {
          if (list.data()[i] < 0 || list.data()[i] >= tiles.tiles()) throw std::invalid_argument("tile out of range");
        }
        const int n = listed ? listed * kTileRows : end - begin;
        const int asked = int(out.shape(0));
        if (first < 0 || asked < 1 || asked > rows - first || out.shape(1) != size_t(n)) {
          throw std::invalid_argument("out has another size");
        }
        const Kernels& k = kernels(parse_isa(isa));
        std::vector<char> input(layout.input_bytes());
        k.rows[int(Codec::int8)].prepare(layout, x.data(), input.data());
        float* const outs[2] = {out.data(), out.data() + (asked - 1) * n};
        k.tile_dot(tiles, bits, first, asked, listed ? list.data() : nullptr, begin / kTileRows, n, input.data(), outs);
      },
      nb::arg("isa"), nb::arg("lead").noconvert(), nb::arg("rows"), nb::arg("leading"), nb::arg("count"),
      nb::arg("bits"), nb::arg("list").noconvert(), nb::arg("begin"), nb::arg("end"), nb::arg("x").noconvert(),
      nb::arg("out").noconvert(), nb::arg("first") = 0,
      "x times rows first, first + 1, ... of the neurons [begin, end), or of the listed tiles, by `bits` leading bits: "
      "[asked rows, n].");
}

}  // namespace dejavu
