// Shared by the bindings: array types and the parsing of names.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <string>

#include "config.h"
#include "plan.h"

namespace dejavu {

namespace nb = nanobind;

template <typename T, int N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

Isa parse_isa(const std::string& name);  // std::invalid_argument: unknown, or not supported here
Codec parse_codec(const std::string& name);
KvType parse_kv(const std::string& name);
Activation parse_activation(const std::string& name, float threshold = 0.0f);

Config parse_config(const nb::dict& values);  // std::invalid_argument: a field is missing or out of range
std::unique_ptr<Plan> parse_plan(const nb::dict& plan, const Config& config);

void bind_gemm(nb::module_& m);
void bind_rows(nb::module_& m);
void bind_parts(nb::module_& m);
void bind_kernels(nb::module_& m);
void bind_learn(nb::module_& m);
void bind_engine(nb::module_& m);

}  // namespace dejavu
