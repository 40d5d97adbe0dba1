// What the engine needs to know of a model; the C++ side of dejavu.models.ModelConfig, which documents the fields.
#pragma once

#include <vector>

#include "kernels.h"

namespace dejavu {

enum class Position : int { rope = 0, alibi = 1, learned = 2 };

struct Config {
  int vocab, d, layers, heads, kv_heads, head_dim, ff, max_context, embed_dim;
  int refined;  // of the ff neurons: second copies, the last ones
  Activation activation;
  bool gated, rms, pre_norm, parallel_residual, post_norms, final_norm, embed_norm, qk_norm;
  float norm_eps, embed_scale, scale, attn_softcap, logit_softcap;
  int window;                           // tokens; 0: none
  std::vector<unsigned char> windowed;  // per layer
  Position position;
  int position_offset, rope_dim;
  float rope_attention_factor;
  std::vector<float> inv_freq;        // [rope_dim / 2]
  std::vector<float> local_inv_freq;  // of windowed layers; empty: the same
  // dynamic NTK scaling: beyond this context the base grows with the length; 0: off
  int dynamic_context;
  float dynamic_factor, rope_theta;
  std::vector<float> alibi_slopes;  // [heads]
};

}  // namespace dejavu
