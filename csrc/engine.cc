#include "engine.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>

#include "batch.h"
#include "order.h"

namespace dejavu {
namespace {

class Reader {
 public:
  explicit Reader(const Sections& sections) : sections_(sections) {}

  const float* vector(const std::string& name, size_t floats, bool required) const {
    auto it = sections_.find(name);
    if (it == sections_.end()) {
      if (required) throw std::invalid_argument("section " + name + " is missing");
      return nullptr;
    }
    check(name, it->second, floats * sizeof(float));
    return reinterpret_cast<const float*>(it->second.data);
  }

  Bundles bundles(const std::string& name, const RowLayout& layout, int rows, int count) const {
    auto it = sections_.find(name);
    if (it == sections_.end()) throw std::invalid_argument("section " + name + " is missing");
    Bundles b(layout, rows, count, it->second.data);
    check(name, it->second, b.bytes());
    return b;
  }

  NestedMlp nested(const std::string& layer, const RowLayout& layout, int dots, int count, int leading) const {
    const Section lead = find(layer + "lead"), rest = find(layer + "mlp");
    const NestedMlp mlp(layout, dots, count, leading, lead.data, rest.data);
    check(layer + "lead", lead, mlp.lead_bytes());
    check(layer + "mlp", rest, mlp.rest_bytes());
    return mlp;
  }

 private:
  Section find(const std::string& name) const {
    auto it = sections_.find(name);
    if (it == sections_.end()) throw std::invalid_argument("section " + name + " is missing");
    return it->second;
  }
  static void check(const std::string& name, const Section& section, size_t bytes) {
    if (section.bytes != bytes) {
      throw std::invalid_argument("section " + name + " has " + std::to_string(section.bytes) + " bytes instead of " +
                                  std::to_string(bytes));
    }
    if (reinterpret_cast<uintptr_t>(section.data) % 64) {
      throw std::invalid_argument("section " + name + " is not aligned to 64 bytes");
    }
  }
  const Sections& sections_;
};

uint64_t next_number() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

int plain_bundles(int rows) { return (rows + kPlainRows - 1) / kPlainRows; }

}  // namespace

float* Engine::Buffer::get(size_t floats) {
  if (floats > size) {
    data.reset();
    size = 0;
    data.reset(static_cast<float*>(allocate(floats * sizeof(float))));
    size = floats;
  }
  return data.get();
}

Engine::Engine(const Config& config, Codec codec, Codec head_codec, const Sections& sections, int leading, int threads,
               Isa isa)
    : c_(config),
      number_(next_number()),
      isa_(isa),
      k_(kernels(isa)),
      gemm_(codec == Codec::f32 ? gemm_f32(isa) : gemm_bf16(isa)),
      layout_(codec, config.d),
      pool_(threads),
      workers_(size_t(threads)),
      next_pieces_(size_t(config.layers) + 1),
      counters_(config.layers),
      batch_(new Batch) {
  // Rows of a model are read by one form of the input and added up in one order: the one of `codec`.
  if (head_codec != codec && !(codec == Codec::int4 && head_codec == Codec::int8)) {
    throw std::invalid_argument("the head's codec is neither the model's nor int8 beside int4");
  }
  // batch.cc hands the products pieces of 32 rows, and adds them up in depths of 32.
  if (32 % gemm_.mr || 32 % gemm_.kr) throw std::logic_error("32 is not a whole number of this product's tiles");
  const Reader read(sections);
  const int d = c_.d, hd = c_.head_dim;

  const RowLayout embed_layout(head_codec, c_.embed_dim);
  embed_ = read.bundles("embed.weight", embed_layout, kPlainRows, plain_bundles(c_.vocab));
  head_ = sections.count("head.weight") ? read.bundles("head.weight", embed_layout, kPlainRows, plain_bundles(c_.vocab))
                                        : embed_;
  if (c_.embed_dim != d) {
    proj_in_ = read.bundles("embed.proj_in", RowLayout(Codec::f32, c_.embed_dim), kPlainRows, plain_bundles(d));
    proj_out_ = read.bundles("embed.proj_out", RowLayout(Codec::f32, d), kPlainRows, plain_bundles(c_.embed_dim));
  }
  const size_t width = size_t(d);
  positions_ = c_.position == Position::learned
                   ? read.vector("embed.position", width * size_t(c_.max_context + c_.position_offset), true)
                   : nullptr;
  embed_norm_ = read.vector("embed.norm.weight", width, c_.embed_norm);
  embed_norm_bias_ = read.vector("embed.norm.bias", width, false);
  final_norm_ = read.vector("final_norm.weight", width, c_.final_norm);
  final_norm_bias_ = read.vector("final_norm.bias", width, false);
  head_bias_ = read.vector("head.bias", size_t(c_.vocab), false);

  const size_t q_width = size_t(c_.heads) * size_t(hd), kv_width = size_t(c_.kv_heads) * size_t(hd);
  for (int i = 0; i < c_.layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    Layer l;
    l.attn_norm = read.vector(p + "attn_norm.weight", width, true);
    l.attn_norm_bias = read.vector(p + "attn_norm.bias", width, false);
    l.mlp_norm = read.vector(p + "mlp_norm.weight", width, true);
    l.mlp_norm_bias = read.vector(p + "mlp_norm.bias", width, false);
    l.attn_post_norm = read.vector(p + "attn_post_norm.weight", width, c_.post_norms);
    l.mlp_post_norm = read.vector(p + "mlp_post_norm.weight", width, c_.post_norms);
    l.q_norm = read.vector(p + "q_norm.weight", size_t(hd), c_.qk_norm);
    l.k_norm = read.vector(p + "k_norm.weight", size_t(hd), c_.qk_norm);
    l.q_bias = read.vector(p + "q.bias", q_width, false);
    l.k_bias = read.vector(p + "k.bias", kv_width, false);
    l.v_bias = read.vector(p + "v.bias", kv_width, false);
    l.o_bias = read.vector(p + "o.bias", width, false);
    l.gate_bias = read.vector(p + "gate.bias", size_t(c_.ff), false);
    l.up_bias = read.vector(p + "up.bias", size_t(c_.ff), false);
    l.down_bias = read.vector(p + "down.bias", width, false);
    l.heads = read.bundles(p + "heads", layout_, hd, c_.heads);
    l.o = read.bundles(p + "o", RowLayout(head_codec, c_.d), hd, c_.heads);
    l.kv = read.bundles(p + "kv", layout_, 2 * hd, c_.kv_heads);
    const int dots = c_.gated ? 2 : 1;
    // The first and the last layer's MLP in the head's codec: see mlp_codec of dejavu/codecs.py.
    const bool end = c_.layers >= 8 && (i == 0 || i == c_.layers - 1);
    const RowLayout mlp_layout(end ? head_codec : codec, c_.d);
    l.nested = sections.count(p + "lead") > 0;
    if (l.nested) {
      if (!leading) throw std::invalid_argument("section " + p + "lead is there, but no leading bits lie apart");
      l.parts = read.nested(p, mlp_layout, dots, c_.ff, leading);
    } else {
      l.mlp = read.bundles(p + "mlp", mlp_layout, dots + 1, c_.ff);
    }
    layers_.push_back(l);
  }

  partial_floats_ = layout_.output_stride();
  for (Worker& w : workers_) w.late.get(size_t(kMaxTokens * hd + c_.rope_dim) + 64);
  set_plan(nullptr);
}

std::unique_ptr<Cache> Engine::new_cache(KvType type) const {
  return std::make_unique<Cache>(type, c_.layers, c_.kv_heads, c_.head_dim, number_, blocks_);
}

Counters Engine::counters() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return counters_;
}

void Engine::reset_counters() {
  std::lock_guard<std::mutex> lock(mutex_);
  counters_ = Counters(c_.layers);
}

long Engine::barrier_cost() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return barrier_cost_;
}

void Engine::set_barrier_cost(long cost) {
  std::lock_guard<std::mutex> lock(mutex_);
  barrier_cost_ = cost;
}

Engine::~Engine() = default;

void Engine::norm(const float* x, const float* weight, const float* bias, float* out) const {
  if (c_.rms) {
    k_.rms_norm(x, weight, c_.norm_eps, c_.d, out);
  } else {
    k_.layer_norm(x, weight, bias, c_.norm_eps, c_.d, out);
  }
}

// `scratch` has room for 2 * padded width of the embedding.
void Engine::embed(int32_t token, int position, float* scratch, float* x) const {
  const RowLayout& layout = embed_.layout;
  float* row = c_.embed_dim == c_.d ? x : scratch + layout.padded;
  k_.rows[int(layout.codec)].decode(layout, embed_.row(token / kPlainRows, token % kPlainRows), 0, layout.padded,
                                    scratch);
  for (int o = 0; o < layout.padded; ++o) {
    const int i = layout.natural(o);
    if (i < layout.d) row[i] = scratch[o] * c_.embed_scale;
  }
  if (row != x) k_.rows[int(Codec::f32)].dot(proj_in_, 0, 0, c_.d, row, x);
  if (positions_) k_.add(x, positions_ + size_t(position + c_.position_offset) * size_t(c_.d), c_.d);
  if (c_.embed_norm) {
    std::memcpy(scratch, x, size_t(c_.d) * sizeof(float));
    norm(scratch, embed_norm_, embed_norm_bias_, x);
  }
}

void Engine::rope_table(int position, int length, bool local, float* cos_sin) const {
  const int half = c_.rope_dim / 2;
  const std::vector<float>& frequencies = local ? c_.local_inv_freq : c_.inv_freq;
  const float factor = local ? 1.0f : c_.rope_attention_factor;
  double growth = 0;  // dynamic NTK: the base is multiplied by this
  if (c_.dynamic_context > 0 && length > c_.dynamic_context && !local) {
    const double ratio = double(c_.dynamic_factor) * length / c_.dynamic_context - (double(c_.dynamic_factor) - 1);
    growth = std::pow(ratio, double(c_.rope_dim) / (c_.rope_dim - 2));
  }
  for (int i = 0; i < half; ++i) {
    float frequency = frequencies[size_t(i)];
    if (growth > 0) frequency = float(std::pow(double(c_.rope_theta) * growth, -2.0 * i / c_.rope_dim));
    const float angle = float(position) * frequency;
    cos_sin[i] = std::cos(angle) * factor;
    cos_sin[half + i] = std::sin(angle) * factor;
  }
}

namespace {

void rotate(const float* cos_sin, int half, float* x) {
  for (int i = 0; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos_sin[i] - b * cos_sin[half + i];
    x[half + i] = b * cos_sin[i] + a * cos_sin[half + i];
  }
}

}  // namespace

void Engine::finish_query(const Layer& layer, int head, const float* rope, float* q) const {
  const int hd = c_.head_dim;
  if (layer.q_bias) k_.add(q, layer.q_bias + size_t(head) * size_t(hd), hd);
  if (c_.qk_norm) k_.rms_norm(q, layer.q_norm, c_.norm_eps, hd, q);
  if (rope) rotate(rope, c_.rope_dim / 2, q);
}

void Engine::finish_key(const Layer& layer, int head, const float* rope, float* k) const {
  const int hd = c_.head_dim;
  if (layer.k_bias) k_.add(k, layer.k_bias + size_t(head) * size_t(hd), hd);
  if (c_.qk_norm) k_.rms_norm(k, layer.k_norm, c_.norm_eps, hd, k);
  if (rope) rotate(rope, c_.rope_dim / 2, k);
}

void Engine::store(Cache& cache, int layer, int head, int position, const float* k, const float* v) const {
  const int block = position / kCacheBlock, at = position % kCacheBlock, type = int(cache.type());
  if (k) {
    k_.store_key[type](k, c_.head_dim, at, cache.keys(block, layer, head), cache.key_scales(block, layer, head));
  }
  if (v) {
    k_.store_value[type](v, c_.head_dim, at, cache.values(block, layer, head), cache.value_scales(block, layer, head));
  }
}

Range Engine::attended(int layer, int position) const {
  const int end = position + 1;
  return {c_.windowed[size_t(layer)] && end > c_.window ? end - c_.window : 0, end};
}

void Engine::attend(const Cache& cache, int layer, int head, int count, int position, Range over, const float* q,
                    float* scores, float* out, float* log_sums) const {
  const int hd = c_.head_dim, kv_head = head / (c_.heads / c_.kv_heads), type = int(cache.type());
  const int first = over.begin, end = over.end, blocks = cache.block_count(end);
  const int aligned = first / kKeyTile * kKeyTile;
  const size_t ld = size_t(blocks) * kCacheBlock;
  for (int b = first / kCacheBlock; b < blocks; ++b) {
    const int base = b * kCacheBlock;
    const int lo = aligned > base ? aligned - base : 0, hi = end - base < kCacheBlock ? end - base : kCacheBlock;
    const void* next = b + 1 < blocks ? cache.keys(b + 1, layer, kv_head) : nullptr;
    k_.scores[type](q, count, cache.keys(b, layer, kv_head), next, cache.key_scales(b, layer, kv_head), hd, lo, hi,
                    c_.scale, scores + base, ld);
  }
  for (int h = 0; h < count; ++h) {
    log_sums[h] = weigh(head + h, position, over, scores + size_t(h) * ld);
  }
  std::memset(out, 0, size_t(count * hd) * sizeof(float));
  for (int b = first / kCacheBlock; b < blocks; ++b) {
    const int base = b * kCacheBlock;
    const int lo = first > base ? first - base : 0, hi = end - base < kCacheBlock ? end - base : kCacheBlock;
    const void* next = b + 1 < blocks ? cache.values(b + 1, layer, kv_head) : nullptr;
    k_.mix[type](scores + base, ld, count, cache.values(b, layer, kv_head), next, cache.value_scales(b, layer, kv_head),
                 hd, lo, hi, out);
  }
}

float Engine::weigh(int head, int position, Range over, float* scores) const {
  const int n = over.end - over.begin;
  float* own = scores + over.begin;
  if (c_.attn_softcap > 0) k_.softcap(own, c_.attn_softcap, n);
  if (!c_.alibi_slopes.empty()) {
    const float slope = c_.alibi_slopes[size_t(head)];
    for (int j = 0; j < n; ++j) own[j] += slope * float(over.begin + j - position);
  }
  return k_.softmax(own, n);
}

// x += branch, with the norms that the family puts around it. `branch` is overwritten.
void Engine::add_branch(float* x, float* branch, const float* bias, const float* post_norm, const float* norm_weight,
                        const float* norm_bias) const {
  if (bias) k_.add(branch, bias, c_.d);
  if (post_norm) k_.rms_norm(branch, post_norm, c_.norm_eps, c_.d, branch);
  k_.add(x, branch, c_.d);
  if (!c_.pre_norm) norm(x, norm_weight, norm_bias, x);
}

void Engine::to_natural(const float* stored, float* out) const {
  to_natural_order(layout_, stored, out);
  if (layout_.codec != Codec::int4) return;
  const float* minima = stored + layout_.padded;
  for (int g = 0; g * kGroup < c_.d; ++g) {
    for (int i = g * kGroup; i < c_.d && i < (g + 1) * kGroup; ++i) out[i] += minima[g];
  }
}

// The vector that the head's rows are multiplied with: final norm, projection. `normed` has d floats, `projected`
// embed_dim.
const float* Engine::head_input(const float* x, float* normed, float* projected) const {
  if (c_.final_norm) {
    norm(x, final_norm_, final_norm_bias_, normed);
    x = normed;
  }
  if (c_.embed_dim == c_.d) return x;
  k_.rows[int(Codec::f32)].dot(proj_out_, 0, 0, c_.embed_dim, x, projected);
  return projected;
}

// `logits` points at the first of n logits that belong to rows [first, first + n) of the head.
void Engine::finish_logits(float* logits, int first, int n) const {
  if (head_bias_) k_.add(logits, head_bias_ + first, n);
  cap_logits(logits, n);
}

void Engine::cap_logits(float* logits, int n) const {
  if (c_.logit_softcap > 0) k_.softcap(logits, c_.logit_softcap, n);
}

}  // namespace dejavu
