// An access plan from Python: every number and shape is checked here, before the engine reads memory by it.
#include <nanobind/stl/string.h>

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "bindings.h"
#include "config.h"
#include "plan.h"

namespace dejavu {
namespace {

using Matrix = Array<const float, 2>;
using Vector = Array<const float, 1>;
using Bytes = Array<const uint8_t, 1>;

template <typename T>
T field(const nb::dict& values, const char* name) {
  if (!values.contains(name)) throw std::invalid_argument(std::string("plan field ") + name + " is missing");
  try {
    return nb::cast<T>(values[name]);
  } catch (const nb::cast_error&) {
    throw std::invalid_argument(std::string("plan field ") + name + " has the wrong type or shape");
  }
}

int between(const nb::dict& values, const char* name, int low, int high) {
  const int value = field<int>(values, name);
  if (value < low || value > high) throw std::invalid_argument(std::string("plan field ") + name + " is out of range");
  return value;
}

void check_finite(const float* values, size_t n, const char* what) {
  for (size_t i = 0; i < n; ++i) {
    if (!std::isfinite(values[i])) throw std::invalid_argument(std::string(what) + " holds NaN or infinity");
  }
}

// a [rank, d], b [maps n, rank], bias [maps n]: maps to n values each, one after the other, from the same hidden
// values. The first has a.
std::vector<LowRank> parse_low_rank(const nb::dict& v, int d, int n, int maps = 1) {
  const Matrix a = field<Matrix>(v, "a"), b = field<Matrix>(v, "b");
  const Vector bias = field<Vector>(v, "bias");
  const size_t rank = a.shape(0), width = size_t(n) * size_t(maps);
  if (rank > (1 << 20) || int(a.shape(1)) != d || b.shape(0) != width || b.shape(1) != rank || bias.shape(0) != width) {
    throw std::invalid_argument("a, b and bias of a low-rank map have shapes that do not fit");
  }
  check_finite(a.data(), rank * size_t(d), "a");
  check_finite(b.data(), rank * width, "b");
  check_finite(bias.data(), width, "bias");
  std::vector<LowRank> found(static_cast<size_t>(maps));
  for (int i = 0; i < maps; ++i) {
    LowRank& p = found[size_t(i)];
    const size_t first = size_t(i) * size_t(n);
    p.rank = int(rank);
    p.relu = field<bool>(v, "relu");
    if (i == 0) p.a = Rows(a.data(), p.rank, d);
    p.b = LeadingRows(b.data() + first * rank, n, p.rank);
    p.bias.assign(bias.data() + first, bias.data() + first + n);
  }
  return found;
}

// `gated`: of the model's MLPs.
Selector parse_selector(const nb::dict& v, int d, int units, bool gated) {
  Selector s;
  const std::string kind = field<std::string>(v, "kind");
  if (kind == "dense") return s;
  if (kind == "static") {
    s.rule = Rule::fixed;
    const auto indices = field<Array<const int32_t, 1>>(v, "indices");
    int last = -1;
    for (size_t i = 0; i < indices.shape(0); ++i) {
      const int32_t index = indices.data()[i];
      if (index <= last || index >= units) throw std::invalid_argument("indices are not ascending and in range");
      s.indices.push_back(last = index);
    }
    return s;
  }
  s.k = between(v, "k", 0, units);
  s.threshold = field<float>(v, "threshold");
  if (std::isnan(s.threshold)) throw std::invalid_argument("threshold is NaN");
  if (kind == "random") {
    s.rule = Rule::random;
    s.seed = field<uint64_t>(v, "seed");
  } else if (kind == "oracle") {
    s.rule = Rule::oracle;
  } else if (kind == "threshold") {
    s.rule = Rule::threshold;
  } else if (kind == "low_rank") {
    s.rule = Rule::low_rank;
    s.lookahead = between(v, "lookahead", 0, 8);
    s.low_rank = std::move(parse_low_rank(v, d, units)[0]);
  } else if (kind == "products") {
    s.rule = Rule::products;
    s.lookahead = between(v, "lookahead", 0, 8);
    const int maps = gated ? 2 : 1;
    std::vector<LowRank> found = parse_low_rank(v, d, units, maps);
    s.low_rank = std::move(found[0]);
    if (gated) s.up = std::move(found[1]);
    const Vector spread = field<Vector>(v, "spread");
    if (spread.shape(0) != size_t(maps) * size_t(units)) throw std::invalid_argument("spread has another size than b");
    check_finite(spread.data(), spread.size(), "spread");
    for (int i = 0; i < maps; ++i) {
      const float* from = spread.data() + size_t(i) * size_t(units);
      s.spread[i].assign(from, from + units);
    }
  } else if (kind == "sketch") {
    s.rule = Rule::sketch;
    s.lookahead = between(v, "lookahead", 0, 8);
    s.bits = between(v, "bits", 2, 5);
    s.leading_values = field<bool>(v, "leading_values");
    if (s.leading_values && s.lookahead) throw std::invalid_argument("a sketch that looks ahead knows no values");
  } else {
    throw std::invalid_argument("selector kind " + kind + " is unknown");
  }
  return s;
}

std::vector<uint8_t> packed_rows(const nb::dict& v, const char* name, size_t bytes) {
  const Bytes found = field<Bytes>(v, name);
  if (found.shape(0) != bytes) throw std::invalid_argument(std::string(name) + " has another size than the head needs");
  return {found.data(), found.data() + bytes};
}

HeadSketch parse_head(const nb::dict& v, const Config& c) {
  HeadSketch head;
  head.bits = between(v, "bits", 2, 4);
  head.exact = between(v, "exact", 1, c.vocab);
  const Vector mean = field<Vector>(v, "mean");
  head.mean.assign(mean.data(), mean.data() + mean.size());
  if (!head.mean.empty() && head.mean.size() != size_t(c.embed_dim)) {
    throw std::invalid_argument("mean is not of the width of the head");
  }
  check_finite(mean.data(), mean.size(), "mean");
  head.along = between(v, "along", 0, c.embed_dim);
  if (!head.along) return head;
  const Bundles directions(RowLayout(Codec::f32, c.embed_dim), head.along, 1);
  head.directions = packed_rows(v, "directions", directions.bytes());
  const int bundles = (c.vocab + kPlainRows - 1) / kPlainRows;
  Bundles missing(RowLayout(Codec::int8, head.along), kPlainRows, bundles);
  head.missing = packed_rows(v, "missing", missing.bytes());
  missing.base = head.missing.data();
  check_finite(reinterpret_cast<const float*>(head.directions.data()), size_t(head.along) * size_t(c.embed_dim),
               "directions");
  for (int row = 0; row < bundles * kPlainRows; ++row) {
    const uint8_t* scales = missing.row(row / kPlainRows, row % kPlainRows).scales;
    for (int g = 0; g < missing.layout.groups; ++g) {
      uint16_t half;
      std::memcpy(&half, scales + 2 * g, 2);
      const float scale = half_to_float(half);
      check_finite(&scale, 1, "missing");
    }
  }
  return head;
}

}  // namespace

std::unique_ptr<Plan> parse_plan(const nb::dict& v, const Config& c) {
  auto plan = std::make_unique<Plan>();
  plan->recompute = field<bool>(v, "recompute");
  plan->buffer = between(v, "buffer", 1, 1 << 16);
  const nb::object vocabulary = field<nb::object>(v, "vocabulary");
  if (!vocabulary.is_none()) plan->head = parse_head(nb::cast<nb::dict>(vocabulary), c);
  const nb::list layers = field<nb::list>(v, "layers");
  if (int(nb::len(layers)) != c.layers) throw std::invalid_argument("the plan has another number of layers");
  for (nb::handle item : layers) {
    const nb::dict values = nb::cast<nb::dict>(item);
    LayerPlan layer;
    layer.neurons = parse_selector(field<nb::dict>(values, "neurons"), c.d, c.ff - c.refined, c.gated);
    layer.heads = parse_selector(field<nb::dict>(values, "heads"), c.d, c.heads, c.gated);
    for (const Rule rule : {Rule::threshold, Rule::products, Rule::sketch}) {
      if (layer.heads.rule == rule) throw std::invalid_argument("heads cannot be selected by what neurons hold");
    }
    if (!values["compensator"].is_none()) {
      layer.compensated = true;
      layer.compensator = std::move(parse_low_rank(field<nb::dict>(values, "compensator"), c.d, c.d)[0]);
    }
    plan->layers.push_back(std::move(layer));
  }
  return plan;
}

}  // namespace dejavu
