// The kernels of `dejavu adapt` on torch's tensors, without the GIL: its threads run side by side.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings.h"

namespace dejavu {
namespace {

using Floats = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Values = nb::ndarray<nb::c_contig, nb::device::cpu>;  // float32 or bf16

const LearnKernels& learn(const std::string& isa, const Values& x) {
  const Kernels& k = kernels(parse_isa(isa));
  if (x.dtype() == nb::dtype<float>()) return k.learn[0];
  if (x.dtype().code == uint8_t(nb::dlpack::dtype_code::Bfloat) && x.dtype().bits == 16) return k.learn[1];
  throw std::invalid_argument("values are float32 or bfloat16");
}

void require(bool fits) {
  if (!fits) throw std::invalid_argument("shapes or types of the arrays do not fit together");
}

void same(const Values& a, const Values& b) { require(a.size() == b.size() && a.dtype() == b.dtype()); }

const void* same(const Values& a, const std::optional<Values>& b) {
  if (b) same(a, *b);
  return b ? b->data() : nullptr;
}

ScoreRows score_rows(const Values& scores, int window, float scale) {
  require(scores.ndim() >= 2 && scores.shape(scores.ndim() - 1) == scores.shape(scores.ndim() - 2));
  const size_t length = scores.shape(scores.ndim() - 1);
  return {length ? scores.size() / length : 0, int(length), window, scale};
}

}  // namespace

void bind_learn(nb::module_& m) {
  // Arrays are taken as they are: a converted copy of an output would be lost.
  const auto plain = nb::arg();
  const auto array = nb::arg().noconvert();
  const auto maybe = nb::arg().noconvert().none();

  m.def(
      "learn_rms_norm",
      [](const std::string& isa, Floats x, Floats weight, float eps, Floats scale, Values out) {
        const size_t d = weight.size(), n = scale.size();
        require(x.size() == n * d && out.size() == n * d);
        const LearnKernels& k = learn(isa, out);
        nb::gil_scoped_release release;
        k.rms_norm(x.data(), weight.data(), eps, n, int(d), scale.data(), out.data());
      },
      plain, array, array, plain, array, array);

  m.def(
      "learn_rms_norm_slope",
      [](const std::string& isa, Floats x, Floats weight, Floats scale, Values slope, Floats out) {
        const size_t d = weight.size(), n = scale.size();
        require(x.size() == n * d && slope.size() == n * d && out.size() == n * d);
        const LearnKernels& k = learn(isa, slope);
        nb::gil_scoped_release release;
        k.rms_norm_slope(x.data(), weight.data(), scale.data(), slope.data(), n, int(d), out.data());
      },
      plain, array, array, array, array, array);

  m.def(
      "learn_activate",
      [](const std::string& isa, const std::string& activation, float threshold, Values gate, std::optional<Values> up,
         std::optional<Values> mask, Values out) {
        same(gate, out);
        const void *u = same(gate, up), *chosen = same(gate, mask);
        const LearnKernels& k = learn(isa, gate);
        const Activation a = parse_activation(activation, threshold);
        nb::gil_scoped_release release;
        k.activate(a, gate.data(), u, chosen, gate.size(), out.data());
      },
      plain, plain, plain, array, maybe, maybe, array);

  m.def(
      "learn_choose",
      [](const std::string& isa, Values values, float threshold) {
        constexpr size_t kMost = size_t(1) << 26;
        const LearnKernels& k = learn(isa, values);
        nb::gil_scoped_release release;
        size_t chosen = 0;
        for (size_t at = 0; at < values.size(); at += kMost) {
          char* from = static_cast<char*>(values.data()) + at * values.itemsize();
          chosen += k.choose(from, threshold, std::min(values.size() - at, kMost));
        }
        return chosen;
      },
      plain, array, plain);

  m.def(
      "learn_activate_slope",
      [](const std::string& isa, const std::string& activation, float threshold, Values gate, std::optional<Values> up,
         std::optional<Values> mask, Values slope, Values to_gate, std::optional<Values> to_up) {
        same(gate, slope);
        same(gate, to_gate);
        require(up.has_value() == to_up.has_value());
        const void *u = same(gate, up), *chosen = same(gate, mask);
        same(gate, to_up);
        const LearnKernels& k = learn(isa, gate);
        const Activation a = parse_activation(activation, threshold);
        nb::gil_scoped_release release;
        k.activate_slope(a, gate.data(), u, chosen, slope.data(), gate.size(), to_gate.data(),
                         to_up ? to_up->data() : nullptr);
      },
      plain, plain, plain, array, maybe, maybe, array, array, maybe);

  m.def(
      "learn_rotate",
      [](const std::string& isa, Values x, Floats cos, Floats sin, bool back, Values out) {
        same(x, out);
        require(x.ndim() == 3 && cos.size() == sin.size() && x.shape(0) > 0 && cos.size() % x.shape(0) == 0);
        const size_t half = cos.size() / x.shape(0);
        require(2 * half <= x.shape(2));
        const LearnKernels& k = learn(isa, x);
        nb::gil_scoped_release release;
        k.rotate(x.data(), cos.data(), sin.data(), back ? -1.0f : 1.0f, x.shape(0), int(x.shape(1)), int(x.shape(2)),
                 int(half), out.data());
      },
      plain, array, array, array, plain, array);

  m.def(
      "learn_attend",
      [](const std::string& isa, Values scores, int window, float scale, Values out) {
        same(scores, out);
        const ScoreRows at = score_rows(scores, window, scale);
        const LearnKernels& k = learn(isa, scores);
        nb::gil_scoped_release release;
        std::vector<float> room(size_t(at.length));
        k.attend(at, scores.data(), room.data(), out.data());
      },
      plain, array, plain, plain, array);

  m.def(
      "learn_attend_slope",
      [](const std::string& isa, Values weights, Values slope, int window, float scale, Values out) {
        same(weights, slope);
        same(weights, out);
        const ScoreRows at = score_rows(weights, window, scale);
        const LearnKernels& k = learn(isa, weights);
        nb::gil_scoped_release release;
        k.attend_slope(at, weights.data(), slope.data(), out.data());
      },
      plain, array, array, plain, plain, array);

  m.def(
      "learn_divergence",
      [](const std::string& isa, Values student, Values teacher, Values slope) {
        same(student, teacher);
        same(student, slope);
        require(student.ndim() == 2);
        const LearnKernels& k = learn(isa, student);
        const size_t rows = student.shape(0), v = student.shape(1), bytes = v * student.itemsize();
        nb::gil_scoped_release release;
        std::vector<float> room(2 * v);
        double total = 0;
        for (size_t r = 0; r < rows; ++r) {
          total += k.divergence(static_cast<const char*>(student.data()) + r * bytes,
                                static_cast<const char*>(teacher.data()) + r * bytes, int(v), room.data(),
                                static_cast<char*>(slope.data()) + r * bytes);
        }
        return total;
      },
      plain, array, array, array);
}

}  // namespace dejavu
