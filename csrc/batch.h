// Buffers of the batched pass; see batch.cc. Sizes in floats unless they say bytes.
#pragma once

#include "engine.h"

namespace dejavu {

struct Engine::Batch {
  Buffer x;             // [tokens, d] residual stream
  Buffer input;         // packed B: normed x, transposed
  Buffer q, k, v;       // [tokens, heads * head_dim], [tokens, kv_heads * head_dim]
  Buffer mixed;         // [tokens, heads * head_dim] attention output
  Buffer left;          // packed A: attention output, or the MLP's activations
  Buffer branch;        // [tokens, padded] output of attention or MLP, stored order
  Buffer rope;          // [tokens, rope_dim], and again for local layers
  Buffer keys, values;  // packed B, per K/V head
};

}  // namespace dejavu
