// The native executor: a model's weights as views into one packed buffer, and the forward passes over them.
// decode.cc runs one token of one sequence (matrix-vector, every thread in step through the layers);
// batch.h runs many tokens at once (prefill, several sequences; blocked matrix products over the same weights).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cache.h"
#include "config.h"
#include "gemm.h"
#include "pool.h"

namespace dejavu {

struct Section {
  const uint8_t* data;
  size_t bytes;
};
using Sections = std::map<std::string, Section>;

struct Layer {
  const float *attn_norm, *attn_norm_bias, *mlp_norm, *mlp_norm_bias, *attn_post_norm, *mlp_post_norm;
  const float *q_norm, *k_norm;
  const float *q_bias, *k_bias, *v_bias, *o_bias, *gate_bias, *up_bias, *down_bias;
  Bundles heads;  // per query head: head_dim rows of q, head_dim rows of o (transposed)
  Bundles kv;     // per K/V head: head_dim rows of k, head_dim rows of v
  Bundles mlp;    // per neuron: gate, up, down (transposed), or up, down
};

// A piece of a batch: `count` tokens of one sequence, rows [row, row + count) of the batch.
struct Segment {
  Cache* cache;
  int row, count;
};

enum class Logits { none, last, all };  // last: of each segment's last token

// Where a batched pass writes what happens inside it; null: not wanted. Float32, natural order, [layers, tokens,
// width].
struct Capture {
  float *attn_input = nullptr, *mlp_input = nullptr;  // width d: residual stream entering the block, before its norm
  float* hidden = nullptr;                            // width ff: what the down rows are multiplied with
  float* gate = nullptr;                              // width ff: act(gate) alone (ungated: as hidden)
  float* head_norm = nullptr;                         // width heads: L2 norm of the mixed values
};

class Engine {
 public:
  // Throws std::invalid_argument, naming the section, when a section is missing or of another size than the
  // configuration says.
  Engine(const Config& config, Codec codec, Codec head_codec, const Sections& sections, int threads, Isa isa);

  const Config& config() const { return c_; }
  Isa isa() const { return isa_; }
  int threads() const { return pool_.size(); }

  // One token of one sequence. `logits` [vocab], or null.
  void decode(int32_t token, Cache& cache, float* logits);
  // Many tokens. `logits` [segments or tokens, vocab] as `which` says.
  void forward(const int32_t* tokens, const std::vector<Segment>& segments, Logits which, float* logits,
               const Capture& capture = {});

 private:
  struct Buffer {  // grows, never shrinks, is not initialised; aligned to cache lines
    float* get(size_t floats);
    struct Free {
      void operator()(float* p) const;
    };
    std::unique_ptr<float, Free> data;
    size_t size = 0;
  };
  struct Worker {
    Buffer x, normed, branch, input, head, scores, rope, scratch, packed, c0, c1;
  };
  struct Batch;        // batch.h
  struct BatchThread;  // batch.h

  // Pieces that both passes share. Vectors have d floats in natural order unless they say otherwise.
  void norm(const float* x, const float* weight, const float* bias, float* out) const;
  void embed(int32_t token, int position, float* scratch, float* x) const;
  void rope_table(int position, int length, bool local, float* cos_sin) const;         // [rope_dim / 2] cos, then sin
  void finish_query(const Layer& layer, int head, const float* rope, float* q) const;  // bias, norm, RoPE
  void finish_key(const Layer& layer, int head, const float* rope, float* k) const;
  void store(Cache& cache, int layer, int head, int position, const float* k, const float* v) const;
  void attend(const Cache& cache, int layer, int head, int position, const float* q, float* scores, float* out) const;
  void add_branch(float* x, float* branch, const float* bias, const float* post_norm, const float* norm_weight,
                  const float* norm_bias) const;
  void to_natural(const float* stored, float* out) const;  // an axpy accumulator, minima added
  const float* head_input(const float* x, float* normed, float* projected) const;
  void finish_logits(float* logits, int first, int n) const;
  bool local_rope(int layer) const { return !c_.local_inv_freq.empty() && c_.windowed[size_t(layer)]; }

  // decode.cc
  void decode_on(int thread, int32_t token, Cache& cache, float* logits);
  void reduce(int thread, std::vector<float>& partials, float* branch);

  const Config c_;
  const Isa isa_;
  const Kernels& k_;
  const Gemm& gemm_;
  RowLayout layout_;
  std::vector<int32_t> natural_;  // stored order -> natural order
  std::vector<Layer> layers_;
  Bundles embed_, head_, proj_in_, proj_out_;
  const float *positions_, *embed_norm_, *embed_norm_bias_, *final_norm_, *final_norm_bias_, *head_bias_;
  Pool pool_;
  std::mutex mutex_;  // one forward pass at a time
  std::vector<Worker> workers_;
  // Per thread one accumulator of a branch's output; attention and MLP alternate, so that a thread may start the next
  // branch while others still read the last.
  std::vector<float> attn_partials_, mlp_partials_;
  size_t partial_floats_;
  Buffer q_;
  std::unique_ptr<Batch> batch_;

 public:
  ~Engine();
};

}  // namespace dejavu
