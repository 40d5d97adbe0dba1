// A model's configuration as Python gives it, checked.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "bindings.h"

namespace dejavu {
namespace {

template <typename T>
T field(const nb::dict& values, const char* name) {
  if (!values.contains(name)) throw std::invalid_argument(std::string("config field ") + name + " is missing");
  try {
    return nb::cast<T>(values[name]);
  } catch (const nb::cast_error&) {
    throw std::invalid_argument(std::string("config field ") + name + " has the wrong type");
  }
}

constexpr int kMost = 1 << 28;  // so that sums of a few do not overflow

int positive(const nb::dict& values, const char* name) {
  const int value = field<int>(values, name);
  if (value <= 0 || value > kMost)
    throw std::invalid_argument(std::string("config field ") + name + " is out of range");
  return value;
}

}  // namespace

Config parse_config(const nb::dict& v) {
  Config c;
  c.vocab = positive(v, "vocab"), c.d = positive(v, "d"), c.layers = positive(v, "layers");
  c.heads = positive(v, "heads"), c.kv_heads = positive(v, "kv_heads"), c.head_dim = positive(v, "head_dim");
  c.ff = positive(v, "ff"), c.max_context = positive(v, "max_context"), c.embed_dim = positive(v, "embed_dim");
  c.refined = field<int>(v, "refined");
  if (c.refined < 0 || c.refined >= c.ff) throw std::invalid_argument("config field refined is out of range");
  c.activation = parse_activation(field<std::string>(v, "activation"), field<float>(v, "activation_threshold"));
  c.gated = field<bool>(v, "gated"), c.rms = field<bool>(v, "rms"), c.pre_norm = field<bool>(v, "pre_norm");
  c.parallel_residual = field<bool>(v, "parallel_residual"), c.post_norms = field<bool>(v, "post_norms");
  c.final_norm = field<bool>(v, "final_norm"), c.embed_norm = field<bool>(v, "embed_norm");
  c.qk_norm = field<bool>(v, "qk_norm");
  c.norm_eps = field<float>(v, "norm_eps"), c.embed_scale = field<float>(v, "embed_scale");
  c.scale = field<float>(v, "scale"), c.attn_softcap = field<float>(v, "attn_softcap");
  c.logit_softcap = field<float>(v, "logit_softcap");
  c.window = field<int>(v, "window");
  for (const bool w : field<std::vector<bool>>(v, "windowed")) c.windowed.push_back(w);
  const std::string position = field<std::string>(v, "position");
  if (position != "rope" && position != "alibi" && position != "learned") {
    throw std::invalid_argument("position " + position + " is unknown");
  }
  c.position = position == "rope" ? Position::rope : position == "alibi" ? Position::alibi : Position::learned;
  c.position_offset = field<int>(v, "position_offset"), c.rope_dim = field<int>(v, "rope_dim");
  c.rope_attention_factor = field<float>(v, "rope_attention_factor");
  c.inv_freq = field<std::vector<float>>(v, "inv_freq");
  c.local_inv_freq = field<std::vector<float>>(v, "local_inv_freq");
  c.dynamic_context = field<int>(v, "dynamic_context"), c.dynamic_factor = field<float>(v, "dynamic_factor");
  c.rope_theta = field<float>(v, "rope_theta");
  c.alibi_slopes = field<std::vector<float>>(v, "alibi_slopes");

  const size_t half = size_t(c.rope_dim) / 2;
  if (int64_t(c.heads) * c.head_dim > kMost) throw std::invalid_argument("heads * head_dim is out of range");
  if (c.heads % c.kv_heads) throw std::invalid_argument("heads is not a multiple of kv_heads");
  if (c.windowed.size() != size_t(c.layers)) throw std::invalid_argument("windowed does not have one value per layer");
  if (c.position_offset < 0 || c.window < 0) {
    throw std::invalid_argument("position_offset and window cannot be negative");
  }
  if (c.position_offset > kMost - c.max_context) throw std::invalid_argument("position_offset is out of range");
  if (c.window == 0 && std::count(c.windowed.begin(), c.windowed.end(), 1)) {
    throw std::invalid_argument("layers are windowed, but window is 0");
  }
  if (c.rope_dim < 0 || c.rope_dim > c.head_dim) throw std::invalid_argument("rope_dim is beyond head_dim");
  if (c.position == Position::rope && (c.inv_freq.size() != half || c.rope_dim % 2)) {
    throw std::invalid_argument("inv_freq does not have rope_dim / 2 values");
  }
  if (!c.local_inv_freq.empty() && c.local_inv_freq.size() != half) {
    throw std::invalid_argument("local_inv_freq does not have rope_dim / 2 values");
  }
  if (!c.alibi_slopes.empty() && c.alibi_slopes.size() != size_t(c.heads)) {
    throw std::invalid_argument("alibi_slopes does not have one value per head");
  }
  if (c.parallel_residual && (!c.pre_norm || c.post_norms)) {
    throw std::invalid_argument("parallel_residual goes with pre_norm and without post_norms");
  }
  if (c.parallel_residual && c.heads * c.head_dim < c.d) {
    throw std::invalid_argument("parallel_residual needs heads * head_dim >= d");
  }
  return c;
}

}  // namespace dejavu
