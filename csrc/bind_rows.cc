// Packing, and the row kernels one by one (for parity tests and kernel benchmarks).
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <atomic>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings.h"
#include "pool.h"

namespace dejavu {
namespace {

using Bytes = Array<const uint8_t, 1>;
using Floats = Array<const float, 1>;

Bundles view(const std::string& codec, int d, int rows, Bytes packed) {
  if (d <= 0 || rows <= 0) throw std::invalid_argument("d and rows must be positive");
  Bundles b(RowLayout(parse_codec(codec), d), rows, 0, packed.data());
  if (packed.shape(0) % b.stride) throw std::invalid_argument("packed bytes are not a whole number of bundles");
  b.count = int(packed.shape(0) / b.stride);
  return b;
}

void check_rows(const Bundles& b, int bundle, int first, int n) {
  if (bundle < 0 || bundle >= b.count || first < 0 || n < 0 || first + n > b.rows) {
    throw std::invalid_argument("bundle or rows out of range");
  }
}

std::vector<char> prepared(const Kernels& k, const Bundles& b, Floats x) {
  if (int(x.shape(0)) != b.layout.d) throw std::invalid_argument("x does not have d elements");
  std::vector<char> input(b.layout.input_bytes());
  k.rows[int(b.layout.codec)].prepare(b.layout, x.data(), input.data());
  return input;
}

// accumulator in stored order -> y += it, in natural order
void add_natural(const RowLayout& layout, const std::vector<float>& accumulator, float* y) {
  for (int o = 0; o < layout.padded; ++o) {
    const int i = layout.natural(o);
    if (i >= layout.d) continue;
    y[i] += accumulator[size_t(o)];
    if (layout.codec == Codec::int4) y[i] += accumulator[size_t(layout.padded + i / kGroup)];
  }
}

}  // namespace

void bind_rows(nb::module_& m) {
  m.def(
      "bundle_bytes",
      [](const std::string& codec, int d, int rows) {
        if (d <= 0 || rows <= 0) throw std::invalid_argument("d and rows must be positive");
        return Bundles(RowLayout(parse_codec(codec), d), rows, 1).stride;
      },
      nb::arg("codec"), nb::arg("d"), nb::arg("rows"), "Bytes of one bundle of `rows` rows of `d` weights.");

  m.def(
      "pack",
      [](const std::string& codec, Array<const float, 3> weights, Array<uint8_t, 1> out, int threads) {
        const int count = int(weights.shape(0)), rows = int(weights.shape(1)), d = int(weights.shape(2));
        if (d <= 0 || rows <= 0) throw std::invalid_argument("d and rows must be positive");
        const Bundles all(RowLayout(parse_codec(codec), d), rows, count);
        if (out.shape(0) != all.bytes()) throw std::invalid_argument("out does not have bundle_bytes * count bytes");
        std::atomic<int> worst{0};
        {
          nb::gil_scoped_release release;
          const float* src = weights.data();
          uint8_t* dst = out.data();
          auto pack_share = [&](int thread) {
            const Range r = share(count, 1, thread, threads);
            if (r.begin == r.end) return;
            const size_t at = size_t(r.begin) * size_t(rows) * size_t(d);
            const int result =
                int(pack_bundles(all.layout, src + at, rows, r.end - r.begin, dst + all.stride * size_t(r.begin)));
            int seen = worst.load();
            while (result > seen && !worst.compare_exchange_weak(seen, result)) {
            }
          };
          if (threads > 1) {
            Pool pool(threads);
            pool.run(pack_share);
          } else {
            threads = 1;
            pack_share(0);
          }
        }
        if (worst == int(PackResult::not_finite)) throw std::domain_error("weights hold NaN or infinity");
        if (worst == int(PackResult::out_of_range)) throw std::domain_error("a scale does not fit float16");
      },
      nb::arg("codec"), nb::arg("weights").noconvert(), nb::arg("out").noconvert(), nb::arg("threads") = 1,
      "Encodes float32 [count, rows, d] into bundles. ValueError: NaN, infinity, or a scale beyond float16.");

  m.def(
      "unpack",
      [](const std::string& codec, Bytes packed, int d, int rows, Array<float, 3> out) {
        const Bundles b = view(codec, d, rows, packed);
        if (int(out.shape(0)) != b.count || int(out.shape(1)) != rows || int(out.shape(2)) != d) {
          throw std::invalid_argument("out is not [count, rows, d]");
        }
        for (int i = 0; i < b.count; ++i) {
          for (int r = 0; r < rows; ++r) {
            unpack_row(b.layout, b.row(i, r), out.data() + (size_t(i) * size_t(rows) + size_t(r)) * size_t(d));
          }
        }
      },
      nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("d"), nb::arg("rows"), nb::arg("out").noconvert());

  m.def(
      "decode_rows",
      [](const std::string& isa, const std::string& codec, Bytes packed, int d, int rows, Array<float, 3> out) {
        const Bundles b = view(codec, d, rows, packed);
        const Kernels& k = kernels(parse_isa(isa));
        if (int(out.shape(0)) != b.count || int(out.shape(1)) != rows || int(out.shape(2)) != d) {
          throw std::invalid_argument("out is not [count, rows, d]");
        }
        std::vector<float> stored(size_t(b.layout.padded));
        for (int i = 0; i < b.count; ++i) {
          for (int r = 0; r < rows; ++r) {
            // in pieces, as the engine asks for them
            for (int begin = 0; begin < b.layout.padded; begin += 64) {
              const int end = begin + 64 < b.layout.padded ? begin + 64 : b.layout.padded;
              k.rows[int(b.layout.codec)].decode(b.layout, b.row(i, r), begin, end, stored.data() + begin);
            }
            float* to = out.data() + (size_t(i) * size_t(rows) + size_t(r)) * size_t(d);
            for (int o = 0; o < b.layout.padded; ++o) {
              if (b.layout.natural(o) < d) to[b.layout.natural(o)] = stored[size_t(o)];
            }
          }
        }
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("d"), nb::arg("rows"),
      nb::arg("out").noconvert(), "As unpack, by the kernel that the batched pass uses.");

  m.def(
      "dot",
      [](const std::string& isa, const std::string& codec, Bytes packed, int rows, int bundle, int first, Floats x,
         Array<float, 1> out) {
        const Bundles b = view(codec, int(x.shape(0)), rows, packed);
        const Kernels& k = kernels(parse_isa(isa));
        check_rows(b, bundle, first, int(out.shape(0)));
        const std::vector<char> input = prepared(k, b, x);
        k.rows[int(b.layout.codec)].dot(b, bundle, first, int(out.shape(0)), input.data(), out.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("bundle"),
      nb::arg("first"), nb::arg("x").noconvert(), nb::arg("out").noconvert(), "out[i] = row(bundle, first + i) . x");

  m.def(
      "axpy",
      [](const std::string& isa, const std::string& codec, Bytes packed, int rows, int bundle, int first,
         Floats coefficients, Array<float, 1> y) {
        const Bundles b = view(codec, int(y.shape(0)), rows, packed);
        const Kernels& k = kernels(parse_isa(isa));
        check_rows(b, bundle, first, int(coefficients.shape(0)));
        std::vector<float> accumulator(b.layout.output_floats());
        k.rows[int(b.layout.codec)].axpy(b, bundle, first, int(coefficients.shape(0)), coefficients.data(),
                                         accumulator.data());
        add_natural(b.layout, accumulator, y.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("bundle"),
      nb::arg("first"), nb::arg("coefficients").noconvert(), nb::arg("y").noconvert(),
      "y += sum of coefficients[i] * row(bundle, first + i)");

  m.def(
      "mlp",
      [](const std::string& isa, const std::string& codec, Bytes packed, bool gated, const std::string& activation,
         Floats x, Array<float, 1> y, std::optional<Array<const int32_t, 1>> selected, std::optional<Floats> gate_bias,
         std::optional<Floats> up_bias) {
        if (x.shape(0) != y.shape(0)) throw std::invalid_argument("x and y differ in length");
        const Bundles b = view(codec, int(x.shape(0)), gated ? 3 : 2, packed);
        const Kernels& k = kernels(parse_isa(isa));
        for (const auto* bias : {&gate_bias, &up_bias}) {
          if (*bias && int((*bias)->shape(0)) != b.count)
            throw std::invalid_argument("a bias does not have one value per neuron");
        }
        int n = b.count;
        if (selected) {
          n = int(selected->shape(0));
          for (int i = 0; i < n; ++i) check_rows(b, selected->data()[i], 0, 0);
        }
        const std::vector<char> input = prepared(k, b, x);
        std::vector<float> accumulator(b.layout.output_floats());
        k.rows[int(b.layout.codec)].mlp({&b, selected ? selected->data() : nullptr, 0, n, gated,
                                         parse_activation(activation), gate_bias ? gate_bias->data() : nullptr,
                                         up_bias ? up_bias->data() : nullptr, input.data(), accumulator.data()});
        add_natural(b.layout, accumulator, y.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("gated"), nb::arg("activation"),
      nb::arg("x").noconvert(), nb::arg("y").noconvert(), nb::arg("selected") = nb::none(),
      nb::arg("gate_bias") = nb::none(), nb::arg("up_bias") = nb::none(),
      "y += MLP(x) over all neurons, or the selected ones (int32).");
}

}  // namespace dejavu
