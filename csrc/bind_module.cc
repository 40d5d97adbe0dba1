#include <stdexcept>

#include "bindings.h"

namespace dejavu {
namespace {

template <typename T>
T parse(const std::string& name, const char* what, std::initializer_list<const char*> names) {
  int i = 0;
  std::string all;
  for (const char* candidate : names) {
    if (name == candidate) return T(i);
    all += (i++ ? ", " : "") + std::string(candidate);
  }
  throw std::invalid_argument(std::string(what) + " '" + name + "' is unknown; there are: " + all);
}

}  // namespace

Isa parse_isa(const std::string& name) {
  const Isa isa = parse<Isa>(name, "instruction set", {"portable", "avx2", "avx512", "avx512bf16", "amx"});
  if (!isa_supported(isa))
    throw std::invalid_argument("instruction set '" + name + "' is not supported by this machine");
  return isa;
}
Codec parse_codec(const std::string& name) { return parse<Codec>(name, "codec", {"f32", "bf16", "int8", "int4"}); }
KvType parse_kv(const std::string& name) { return parse<KvType>(name, "KV type", {"f32", "f16", "bf16", "int8"}); }
Activation parse_activation(const std::string& name, float threshold) {
  return {parse<Activation::Kind>(name, "activation",
                                  {"relu", "silu", "gelu", "gelu_tanh", "relu2", "fatrelu", "shifted_relu", "drelu"}),
          threshold};
}

}  // namespace dejavu

NB_MODULE(_core, m) {
  m.doc() = "C++ core of dejavu: packing, kernels and the native engine";
  dejavu::bind_gemm(m);
  dejavu::bind_rows(m);
  dejavu::bind_parts(m);
  dejavu::bind_kernels(m);
  dejavu::bind_learn(m);
  dejavu::bind_engine(m);
}
