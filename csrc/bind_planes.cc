// Bit planes: cutting packed rows into sections, and the kernels one by one (for parity tests and benchmarks).
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings.h"
#include "pool.h"

namespace dejavu {
namespace {

using Bytes = Array<const uint8_t, 1>;

RowLayout nested_layout(const std::string& codec, int d, int rows, int count) {
  const RowLayout layout(parse_codec(codec), d);
  if (!plane_count(layout.codec)) throw std::invalid_argument("only int8 and int4 have bit planes");
  if (d <= 0 || rows <= 0 || count < 0) throw std::invalid_argument("d and rows must be positive, count not negative");
  return layout;
}

void same_bytes(size_t found, size_t expected, const char* what) {
  if (found != expected) {
    throw std::invalid_argument(std::string(what) + " has " + std::to_string(found) + " bytes instead of " +
                                std::to_string(expected));
  }
}

// With `bundles`: an MLP's two sections. Without: a section with all planes.
Planes view(const std::string& codec, int d, int rows, int count, const Bytes& section,
            const std::optional<Bytes>& bundles) {
  const RowLayout layout = nested_layout(codec, d, rows, count);
  if (bundles) {
    const NestedMlp mlp(layout, rows, count, section.data(), bundles->data());
    same_bytes(section.shape(0), mlp.planes.bytes, "section");
    same_bytes(bundles->shape(0), mlp.down.bytes(), "bundles");
    return mlp.planes;
  }
  const Planes planes(layout, rows, count, plane_count(layout.codec), section.data());
  same_bytes(section.shape(0), planes.bytes, "section");
  return planes;
}

void check_planes(const Planes& planes, int first, int last) {
  if (first < 0 || first >= last || last > planes.planes) throw std::invalid_argument("planes out of range");
}

}  // namespace

void bind_planes(nb::module_& m) {
  m.def(
      "nested_bundle_bytes",
      [](const std::string& codec, int d, int dots) {
        return NestedMlp(nested_layout(codec, d, dots, 1), dots, 1).down.stride;
      },
      nb::arg("codec"), nb::arg("d"), nb::arg("dots"),
      "Bytes of a neuron's bundle beside the streamed planes: the rest of its `dots` rows, and the down row.");

  m.def(
      "split_planes",
      [](const std::string& codec, Bytes packed, int d, int rows, int dots, Array<uint8_t, 1> section,
         std::optional<Array<uint8_t, 1>> bundles, int threads) {
        Bundles from(nested_layout(codec, d, rows, 0), rows, 0, packed.data());
        if (packed.shape(0) % from.stride)
          throw std::invalid_argument("packed bytes are not a whole number of bundles");
        if (dots != (bundles ? rows - 1 : rows)) throw std::invalid_argument("a bundle has one row after its dots");
        from.count = int(packed.shape(0) / from.stride);
        const std::optional<Bytes> rest = bundles ? std::optional<Bytes>(*bundles) : std::nullopt;
        const Planes planes = view(codec, d, dots, from.count, Bytes(section), rest);
        const NestedMlp mlp(from.layout, dots, from.count, section.data(), bundles ? bundles->data() : nullptr);
        nb::gil_scoped_release release;
        std::memset(section.data(), 0, section.shape(0));
        if (bundles) std::memset(bundles->data(), 0, bundles->shape(0));
        const auto split_share = [&](int thread) {
          const Range r = share(from.count, 1, thread, threads);
          for (int i = r.begin; i < r.end; ++i) split_bundle(from, i, planes, bundles ? &mlp.down : nullptr);
        };
        if (threads > 1) {
          Pool pool(threads);
          pool.run(split_share);
        } else {
          threads = 1;
          split_share(0);
        }
      },
      nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("d"), nb::arg("rows"), nb::arg("dots"),
      nb::arg("section").noconvert(), nb::arg("bundles").none().noconvert(), nb::arg("threads") = 1,
      "Cuts packed bundles into planes of their first `dots` rows; the row after them goes to `bundles`.");

  m.def(
      "planes_dot",
      [](const std::string& isa, const std::string& codec, Bytes section, std::optional<Bytes> bundles, int rows,
         int count, std::optional<Array<const int32_t, 1>> units, int begin, int end, int first, int last,
         Array<const float, 1> x, Array<float, 1> out) {
        const Planes planes = view(codec, int(x.shape(0)), rows, count, section, bundles);
        check_planes(planes, first, last);
        const int n = units ? int(units->shape(0)) : count;
        if (begin < 0 || begin > end || end > n) throw std::invalid_argument("begin and end out of range");
        for (int i = 0; units && i < n; ++i) {
          if (units->data()[i] < 0 || units->data()[i] >= count) throw std::invalid_argument("unit out of range");
        }
        if (out.shape(0) != size_t(end - begin) * size_t(rows)) throw std::invalid_argument("out is not [units, rows]");
        const Kernels& k = kernels(parse_isa(isa));
        std::vector<char> input(planes.layout.input_bytes());
        k.rows[int(planes.layout.codec)].prepare(planes.layout, x.data(), input.data());
        k.planes.dot(planes, units ? units->data() : nullptr, begin, end, first, last, input.data(), out.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("section").noconvert(), nb::arg("bundles").none().noconvert(),
      nb::arg("rows"), nb::arg("count"), nb::arg("units").none().noconvert(), nb::arg("begin"), nb::arg("end"),
      nb::arg("first"), nb::arg("last"), nb::arg("x").noconvert(), nb::arg("out").noconvert(),
      "out[(i - begin) * rows + r] = (estimate(last) - estimate(first)) of row r of unit list[i] . x");

  m.def(
      "planes_decode",
      [](const std::string& isa, const std::string& codec, Bytes section, std::optional<Bytes> bundles,
         Array<float, 3> out) {
        const int count = int(out.shape(0)), rows = int(out.shape(1)), d = int(out.shape(2));
        const Planes planes = view(codec, d, rows, count, section, bundles);
        const RowLayout& layout = planes.layout;
        const Kernels& k = kernels(parse_isa(isa));
        std::vector<float> stored(size_t(layout.padded));
        for (int i = 0; i < count; ++i) {
          for (int r = 0; r < rows; ++r) {
            for (int begin = 0; begin < layout.padded; begin += 64) {  // in pieces, as the engine asks for them
              const int end = begin + 64 < layout.padded ? begin + 64 : layout.padded;
              k.planes.decode(planes, i, r, begin, end, stored.data() + begin);
            }
            float* to = out.data() + (size_t(i) * size_t(rows) + size_t(r)) * size_t(d);
            for (int o = 0; o < layout.padded; ++o) {
              if (layout.natural(o) < d) to[layout.natural(o)] = stored[size_t(o)];
            }
          }
        }
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("section").noconvert(), nb::arg("bundles").none().noconvert(),
      nb::arg("out").noconvert(), "The exact weights of all rows of all units, [count, rows, d].");
}

}  // namespace dejavu
