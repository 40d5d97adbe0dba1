// One batched pass, as one thread sees it: many tokens through all layers, by matrix products.
//   batch.cc             the walk through the layers
//   batch_attention.cc   one attention block: q, k, v, attention, o
//   prompt_attention.cc  attention of all tokens of a prompt, two products per head and 32 queries
//   batch_mlp.cc         one MLP block
//   batch_head.cc        logits
//   batch_select.cc      what a plan leaves out
#pragma once

#include <utility>

#include "engine.h"
#include "products.h"

namespace dejavu {

// What the threads share. Buffers stay for the next pass; sizes are in floats unless they say bytes.
struct Engine::Batch {
  const int32_t* tokens;
  const std::vector<Segment>* segments;
  Logits which;
  float* logits;
  Capture capture;
  const Plan* plan;  // null: dense

  int total;                          // tokens
  size_t ld;                          // of products with one column per token
  std::vector<int> position, length;  // per token; length: of its sequence after the pass
  std::vector<Cache*> cache;          // per token
  size_t keys_stride, values_stride;  // bytes of one K/V head in `keys` and `values`

  Buffer x;             // [tokens, d] residual stream
  Buffer input;         // packed B: normed x, transposed
  Buffer q, k, v;       // [tokens, heads * head_dim], [tokens, kv_heads * head_dim]
  Buffer mixed;         // [tokens, heads * head_dim] attention output
  Buffer left;          // packed A: attention output, or the MLP's activations
  Buffer branch;        // [tokens, padded] output of attention or MLP, stored order
  Buffer rope;          // [tokens, rope_dim], and again for local layers
  Buffer keys, values;  // packed B, per K/V head

  // Under a plan.
  int slots;                                      // layers whose masks are known at a time
  std::vector<uint8_t> neuron_masks, head_masks;  // [slots, tokens, units], layer % slots
  Buffer hidden, gate;                            // [tokens, ff] what the down rows are multiplied with; act(gate)
  Buffer stand_in;                                // [tokens, widest rank] hidden values of the compensator
  std::vector<Counters> touched;                  // per thread

  void start(Engine& engine, const int32_t* tokens, const std::vector<Segment>& segments, bool sparse, Logits which,
             float* logits, const Capture& capture);
  void start_plan(Engine& engine);
};

struct Engine::BatchThread {
  Engine& e;
  Batch& b;
  const Config& c;
  const Kernels& k;
  const Gemm& gemm;
  const Products products;
  Worker& w;
  const int thread, threads;
  const int total, padded, q_width, kv_width;
  const Range mine;     // of the tokens, in whole panels of B
  const Range panels;   // of the tokens, in whole panels of A
  const Range columns;  // of the output
  float *x, *line, *normed, *scratch, *c0, *c1, *scores;
  void* packed;

  BatchThread(Engine& engine, int thread);
  void run();

 private:
  // batch.cc
  void prepare(const float* weight, const float* bias);
  void close(const float* bias, const float* post_norm, const float* norm_weight, const float* norm_bias,
             const LowRank* stand_in = nullptr);
  void capture_input(float* captured, int layer);
  const float* turn(int layer, int token) const;
  float* row(Buffer& buffer, int token, int width) const { return buffer.floats() + size_t(token) * size_t(width); }
  // One layer's piece of a captured array.
  float* piece(float* captured, int layer, int width) const {
    return captured + size_t(layer) * size_t(total) * size_t(width);
  }

  void attention(int layer);  // batch_attention.cc
  void project(int layer);
  void cache_keys_and_values(int layer);
  void attend_prompt(const Segment& segment, int layer);  // prompt_attention.cc
  void pack_keys_and_values(const Segment& segment, int layer, int end);
  void mask_scores(int layer, int head, int position, int from, int n, float* scores);
  void mlp(int layer);  // batch_mlp.cc
  void hidden(int layer, int first, int n, bool keep_gate);
  void logits();  // batch_head.cc
  void few_logits();
  void many_logits();
  void sketched_logits();
  const float* logits_input(int row);

  // batch_select.cc
  void choose(int layer, bool heads);
  void choose_for(int target, bool heads, int token);
  std::pair<const void*, const void*> prepare_one(int layer, bool heads, int token);
  uint8_t* mask(int layer, bool heads, int token) const;
  void set_mask(const Selector& selector, const float* scores, int units, uint8_t* mask);
  void mask_heads(int layer, int token);
  void mask_neurons(int layer, int token);
  void compensate(const LowRank& stand_in, int token, float* out);
};

}  // namespace dejavu
