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
using FloatRows = Array<const float, 2>;
using FloatRowsOut = Array<float, 2>;
using List = Array<const int32_t, 1>;

Bundles view(const std::string& codec, int d, int rows, Bytes packed) {
  if (d <= 0 || rows <= 0) throw std::invalid_argument("d and rows must be positive");
  Bundles b(RowLayout(parse_codec(codec), d), rows, 0, packed.data());
  if (packed.shape(0) % b.stride) throw std::invalid_argument("packed bytes are not a whole number of bundles");
  b.count = int(packed.shape(0) / b.stride);
  return b;
}

void check_rows(const Bundles& b, int bundle, int first, int n) {
  if (bundle < 0 || bundle >= b.count || first < 0 || n < 0 || first > long(b.count - bundle) * b.rows - n) {
    throw std::invalid_argument("bundle or rows out of range");
  }
}

void check_list(const Bundles& b, int row, List list) {
  if (row < 0 || row >= b.rows) throw std::invalid_argument("row out of range");
  for (size_t i = 0; i < list.shape(0); ++i) check_rows(b, list.data()[i], row, 1);
}

std::vector<char> prepared(const Kernels& k, const Bundles& b, Floats x) {
  if (int(x.shape(0)) != b.layout.d) throw std::invalid_argument("x does not have d elements");
  std::vector<char> input(b.layout.input_bytes());
  k.rows[int(b.layout.codec)].prepare(b.layout, x.data(), input.data());
  return input;
}

// accumulator in stored order -> y += it, in natural order
void add_natural(const RowLayout& layout, const float* accumulator, float* y) {
  for (int o = 0; o < layout.padded; ++o) {
    const int i = layout.natural(o);
    if (i >= layout.d) continue;
    y[i] += accumulator[size_t(o)];
    if (layout.codec == Codec::int4) y[i] += accumulator[size_t(layout.padded + i / kGroup)];
  }
}

// What the kernels for several tokens take: pointers to each token's part.
struct Inputs {
  std::vector<char> data;
  std::vector<const void*> pointers;
  Inputs(const Kernels& k, const Bundles& b, FloatRows x) {
    if (int(x.shape(1)) != b.layout.d) throw std::invalid_argument("x is not [tokens, d]");
    const size_t bytes = (b.layout.input_bytes() + 63) / 64 * 64;
    data.resize(bytes * x.shape(0));
    for (size_t t = 0; t < x.shape(0); ++t) {
      pointers.push_back(data.data() + t * bytes);
      k.rows[int(b.layout.codec)].prepare(b.layout, x.data() + t * x.shape(1), data.data() + t * bytes);
    }
  }
};

template <typename T>
std::vector<T*> row_pointers(T* data, size_t rows, size_t width) {
  std::vector<T*> out;
  for (size_t i = 0; i < rows; ++i) out.push_back(data + i * width);
  return out;
}

struct Outputs {
  const RowLayout& layout;
  std::vector<float> data;
  std::vector<float*> pointers;
  Outputs(const Bundles& b, size_t tokens)
      : layout(b.layout),
        data(layout.output_stride() * tokens),
        pointers(row_pointers(data.data(), tokens, layout.output_stride())) {}
  void add_to(FloatRowsOut y) const {
    for (size_t t = 0; t < pointers.size(); ++t) add_natural(layout, pointers[t], y.data() + t * y.shape(1));
  }
};

int check_tokens(size_t a, size_t b) {
  if (a != b || a < 1 || a > size_t(kMaxTokens)) throw std::invalid_argument("1 to 8 tokens, everywhere the same");
  return int(a);
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
          share_out(count, threads, [&](int i) {
            const float* bundle = src + size_t(i) * size_t(rows) * size_t(d);
            const int result = int(pack_bundles(all.layout, bundle, rows, 1, dst + all.stride * size_t(i)));
            int seen = worst.load();
            while (result > seen && !worst.compare_exchange_weak(seen, result)) {
            }
          });
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
      [](const std::string& isa, const std::string& codec, Bytes packed, int rows, List list, FloatRows coefficients,
         FloatRowsOut y) {
        const Bundles b = view(codec, int(y.shape(1)), rows, packed);
        const int tokens = check_tokens(coefficients.shape(0), y.shape(0));
        if (coefficients.shape(1) != list.shape(0) * size_t(rows)) {
          throw std::invalid_argument("coefficients are not one per row of the listed bundles");
        }
        check_list(b, 0, list);
        const Outputs outputs(b, y.shape(0));
        const auto c = row_pointers(coefficients.data(), coefficients.shape(0), coefficients.shape(1));
        kernels(parse_isa(isa))
            .rows[int(b.layout.codec)]
            .axpy(b, list.data(), int(list.shape(0)), c.data(), tokens, outputs.pointers.data());
        outputs.add_to(y);
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("list").noconvert(),
      nb::arg("coefficients").noconvert(), nb::arg("y").noconvert(),
      "y[t] += sum of coefficients[t, i * rows + r] * row(list[i], r)");

  m.def(
      "mlp",
      [](const std::string& isa, const std::string& codec, Bytes packed, bool gated, const std::string& activation,
         Floats x, Array<float, 1> y, std::optional<List> selected, std::optional<Floats> gate_bias,
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
          check_list(b, 0, *selected);
        }
        const std::vector<char> input = prepared(k, b, x);
        std::vector<float> accumulator(b.layout.output_floats());
        k.rows[int(b.layout.codec)].mlp({&b, selected ? selected->data() : nullptr, 0, n, gated,
                                         parse_activation(activation), gate_bias ? gate_bias->data() : nullptr,
                                         up_bias ? up_bias->data() : nullptr, input.data(), accumulator.data()});
        add_natural(b.layout, accumulator.data(), y.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("gated"), nb::arg("activation"),
      nb::arg("x").noconvert(), nb::arg("y").noconvert(), nb::arg("selected") = nb::none(),
      nb::arg("gate_bias") = nb::none(), nb::arg("up_bias") = nb::none(),
      "y += MLP(x) over all neurons, or the selected ones (int32).");

  m.def(
      "dot_many",
      [](const std::string& isa, const std::string& codec, Bytes packed, int rows, int bundle, int first, FloatRows x,
         FloatRowsOut out) {
        const Bundles b = view(codec, int(x.shape(1)), rows, packed);
        const Kernels& k = kernels(parse_isa(isa));
        const int n = int(out.shape(1)), tokens = check_tokens(x.shape(0), out.shape(0));
        check_rows(b, bundle, first, n);
        const Inputs inputs(k, b, x);
        const auto outs = row_pointers(out.data(), out.shape(0), out.shape(1));
        k.rows[int(b.layout.codec)].dot_many(b, bundle, first, n, inputs.pointers.data(), tokens, outs.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("bundle"),
      nb::arg("first"), nb::arg("x").noconvert(), nb::arg("out").noconvert(),
      "out[t, i] = row(bundle, first + i) . x[t]");

  m.def(
      "mlp_many",
      [](const std::string& isa, const std::string& codec, Bytes packed, bool gated, const std::string& activation,
         FloatRows x, FloatRowsOut y, std::optional<List> selected, std::optional<Bytes> masks,
         std::optional<Floats> gate_bias, std::optional<Floats> up_bias) {
        if (x.shape(1) != y.shape(1)) throw std::invalid_argument("x and y differ in length");
        const Bundles b = view(codec, int(x.shape(1)), gated ? 3 : 2, packed);
        const Kernels& k = kernels(parse_isa(isa));
        const int tokens = check_tokens(x.shape(0), y.shape(0));
        for (const auto* bias : {&gate_bias, &up_bias}) {
          if (*bias && int((*bias)->shape(0)) != b.count)
            throw std::invalid_argument("a bias does not have one value per neuron");
        }
        if (selected) check_list(b, 0, *selected);
        const int n = selected ? int(selected->shape(0)) : b.count;
        if (masks && int(masks->shape(0)) != n) throw std::invalid_argument("masks are not one per listed neuron");
        const Inputs inputs(k, b, x);
        const Outputs outputs(b, y.shape(0));
        k.rows[int(b.layout.codec)].mlp_many(
            {&b, selected ? selected->data() : nullptr, masks ? masks->data() : nullptr, 0, n, gated,
             parse_activation(activation), gate_bias ? gate_bias->data() : nullptr, up_bias ? up_bias->data() : nullptr,
             tokens, inputs.pointers.data(), outputs.pointers.data()});
        outputs.add_to(y);
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("gated"), nb::arg("activation"),
      nb::arg("x").noconvert(), nb::arg("y").noconvert(), nb::arg("selected") = nb::none(),
      nb::arg("masks") = nb::none(), nb::arg("gate_bias") = nb::none(), nb::arg("up_bias") = nb::none(),
      "y[t] += MLP(x[t]) over all neurons or the selected ones; bit t of masks[i] says that token t uses neuron i.");

  m.def(
      "dot_list",
      [](const std::string& isa, const std::string& codec, Bytes packed, int rows, int first, List list, FloatRows x,
         FloatRowsOut out) {
        const Bundles b = view(codec, int(x.shape(1)), rows, packed);
        const Kernels& k = kernels(parse_isa(isa));
        const int n = int(list.shape(0)), together = n ? int(out.shape(1)) / n : 1;
        const bool fits = x.shape(0) == 1 && out.shape(0) == 1 && together > 0 && int(out.shape(1)) == n * together;
        if (!fits) throw std::invalid_argument("out is not [1, listed * rows of each]");
        check_list(b, first, list);
        check_list(b, first + together - 1, list);
        const Inputs inputs(k, b, x);
        k.rows[int(b.layout.codec)].dot_list(b, first, together, list.data(), n, inputs.pointers[0], out.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("first"),
      nb::arg("list").noconvert(), nb::arg("x").noconvert(), nb::arg("out").noconvert(),
      "out[0, i * rows of each + r] = row(list[i], first + r) . x[0]");

  m.def(
      "dot_picked",
      [](const std::string& isa, const std::string& codec, Bytes packed, int rows, List picked, FloatRows x,
         FloatRowsOut out) {
        const Bundles b = view(codec, int(x.shape(1)), rows, packed);
        const Kernels& k = kernels(parse_isa(isa));
        const int n = int(picked.shape(0));
        if (x.shape(0) != 1 || out.shape(0) != 1 || int(out.shape(1)) != n) {
          throw std::invalid_argument("out is not [1, picked]");
        }
        for (int i = 0; i < n; ++i) {
          if (picked(i) < 0 || picked(i) >= b.count * rows) throw std::invalid_argument("a row does not exist");
        }
        const Inputs inputs(k, b, x);
        k.rows[int(b.layout.codec)].dot_picked(b, picked.data(), n, inputs.pointers[0], out.data());
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("picked").noconvert(),
      nb::arg("x").noconvert(), nb::arg("out").noconvert(), "out[0, i] = the row of number picked[i] . x[0]");

  m.def(
      "axpy_list",
      [](const std::string& isa, const std::string& codec, Bytes packed, int rows, int row, List list,
         FloatRows coefficients, FloatRowsOut y) {
        const Bundles b = view(codec, int(y.shape(1)), rows, packed);
        const int n = int(list.shape(0));
        if (coefficients.shape(0) != 1 || int(coefficients.shape(1)) != n || y.shape(0) != 1) {
          throw std::invalid_argument("coefficients are not [1, listed], or y is not [1, d]");
        }
        check_list(b, row, list);
        const Outputs outputs(b, 1);
        kernels(parse_isa(isa))
            .rows[int(b.layout.codec)]
            .axpy_list(b, row, list.data(), n, coefficients.data(), outputs.pointers[0]);
        outputs.add_to(y);
      },
      nb::arg("isa"), nb::arg("codec"), nb::arg("packed").noconvert(), nb::arg("rows"), nb::arg("row"),
      nb::arg("list").noconvert(), nb::arg("coefficients").noconvert(), nb::arg("y").noconvert(),
      "y[0] += sum of coefficients[0, i] * row(list[i], row)");
}

}  // namespace dejavu
