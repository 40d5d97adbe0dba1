// Parts of int8 rows: cutting packed rows into sections, and the kernels one by one (for parity tests).
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>

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
  if (bits != 3 && bits != 4) throw std::invalid_argument("rows are cut behind 3 or 4 leading bits");
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

template <typename Body>
void each_bundle(int count, int threads, Body body) {
  const auto work = [&](int thread) {
    const Range mine = share(count, 1, thread, threads);
    for (int i = mine.begin; i < mine.end; ++i) body(i);
  };
  if (threads == 1) return work(0);
  Pool pool(threads);
  pool.run(work);
}

}  // namespace

void bind_parts(nb::module_& m) {
  m.def(
      "nested_bytes",
      [](const std::string& codec, int d, int dots, int leading) {
        const NestedMlp mlp(layout_of(codec, d, dots), dots, 1, leading_bits(leading));
        return std::pair(mlp.lead_bytes(), mlp.rest_bytes());
      },
      nb::arg("codec"), nb::arg("d"), nb::arg("dots"), nb::arg("leading"),
      "Bytes of a neuron in a nested MLP's two sections, cut behind so many leading bits.");

  m.def(
      "leading_bytes",
      [](int d, int rows, int leading) {
        return Bundles(RowLayout(leading_part(leading_bits(leading)), layout_of("int8", d, rows).d), rows, 1).bytes();
      },
      nb::arg("d"), nb::arg("rows"), nb::arg("leading"), "Bytes of a bundle of leading bits.");

  m.def(
      "split_nested",
      [](const std::string& codec, Bytes packed, int d, int dots, int leading, Room lead, Room rest, int threads) {
        const Bundles from = packed_view(layout_of(codec, d, dots), dots + 1, packed);
        const NestedMlp mlp = nested_view(from.layout, dots, from.count, leading, Bytes(lead), Bytes(rest));
        nb::gil_scoped_release release;
        std::memset(lead.data(), 0, lead.shape(0));
        std::memset(rest.data(), 0, rest.shape(0));
        each_bundle(from.count, threads, [&](int i) { split_bundle(from, i, mlp); });
      },
      nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("d"), nb::arg("dots"), nb::arg("leading"),
      nb::arg("lead").noconvert(), nb::arg("rest").noconvert(), nb::arg("threads") = 1,
      "Cuts packed bundles of `dots` rows and a down row into the two sections of a nested MLP.");

  m.def(
      "leading_parts",
      [](Bytes packed, int d, int rows, int leading, Room lead, int threads) {
        const Bundles from = packed_view(layout_of("int8", d, rows), rows, packed);
        const Bundles to(RowLayout(leading_part(leading_bits(leading)), d), rows, from.count, lead.data());
        same_bytes(lead.shape(0), to.bytes(), "lead");
        nb::gil_scoped_release release;
        std::memset(lead.data(), 0, lead.shape(0));
        each_bundle(from.count, threads, [&](int i) { leading_parts(from, i, to); });
      },
      nb::arg("packed").noconvert(), nb::arg("d"), nb::arg("rows"), nb::arg("leading"), nb::arg("lead").noconvert(),
      nb::arg("threads") = 1, "The leading bits of packed bundles of int8 rows.");

  m.def(
      "join_nested",
      [](Bytes lead, Bytes rest, int leading, Array<int8_t, 3> out) {
        const int count = int(out.shape(0)), dots = int(out.shape(1)), d = int(out.shape(2));
        const RowLayout layout = layout_of("int8", d, dots);
        const NestedMlp mlp = nested_view(layout, dots, count, leading, lead, rest);
        std::vector<uint8_t> codes(layout.code_bytes);
        for (int i = 0; i < count; ++i) {
          for (int r = 0; r < dots; ++r) {
            join_parts(layout, mlp.lead.layout.codec, mlp.lead.row(i, r).codes, mlp.low.layout.codec,
                       mlp.low.row(i, r).codes, codes.data());
            int8_t* to = out.data() + (size_t(i) * size_t(dots) + size_t(r)) * size_t(d);
            for (int o = 0; o < layout.padded; ++o) {
              if (layout.natural(o) < d) to[layout.natural(o)] = int8_t(codes[size_t(o)]);
            }
          }
        }
      },
      nb::arg("lead").noconvert(), nb::arg("rest").noconvert(), nb::arg("leading"), nb::arg("out").noconvert(),
      "int8 codes [count, dots, d] from their parts.");

  m.def(
      "nested_dot",
      [](const std::string& isa, const std::string& codec, Bytes lead, Bytes rest, int dots, int leading, int bits,
         int row, Array<const int32_t, 1> list, Array<const float, 1> x, Array<float, 1> out) {
        const int d = int(x.shape(0));
        const RowLayout layout = layout_of(codec, d, dots);
        const size_t each = NestedMlp(layout, dots, 1, leading_bits(leading)).lead_bytes();
        const int count = int(lead.shape(0) / each), n = int(list.shape(0));
        const NestedMlp mlp = nested_view(layout, dots, count, leading, lead, rest);
        const Codec stored = mlp.lead.layout.codec;
        const bool low = bits == 0, fewer = stored == Codec::high4 && (bits == 2 || bits == 3);
        if (low ? !mlp.low.count : bits != planes_of(stored).bits && !fewer) {
          throw std::invalid_argument("bits out of range");
        }
        const Codec read = low ? mlp.low.layout.codec : fewer ? Codec(int(Codec::high4) + 4 - bits) : stored;
        const Kernels& k = kernels(parse_isa(isa));
        const RowKernels& rows = k.rows[int(read)];
        std::vector<char> input(layout.input_bytes());
        rows.prepare(layout, x.data(), input.data());
        const Bundles& from = low ? mlp.low : mlp.lead;
        if (row < 0) {  // all rows of a range of bundles
          const bool two = n == 2 && list.data()[0] >= 0 && list.data()[0] <= list.data()[1] && list.data()[1] <= count;
          if (!two) throw std::invalid_argument("the list is not a range of neurons");
          const int begin = list.data()[0], end = list.data()[1];
          if (out.shape(0) != size_t(end - begin) * size_t(dots)) throw std::invalid_argument("out has another size");
          return rows.dot(from, begin, 0, (end - begin) * from.rows, input.data(), out.data());
        }
        if (row >= dots || out.shape(0) != size_t(n)) throw std::invalid_argument("row or out out of range");
        for (int i = 0; i < n; ++i) {
          if (list.data()[i] < 0 || list.data()[i] >= count) throw std::invalid_argument("neuron out of range");
        }
        rows.dot_list(from, row, 1, list.data(), n, input.data(), out.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("lead").noconvert(), nb::arg("rest").noconvert(), nb::arg("dots"),
      nb::arg("leading"), nb::arg("bits"), nb::arg("row"), nb::arg("list").noconvert(), nb::arg("x").noconvert(),
      nb::arg("out").noconvert(),
      "x times row `row` of the listed neurons by `bits` leading bits (0: by the others); row -1: all rows of the "
      "neurons [list[0], list[1]).");
}

}  // namespace dejavu
