// The table of kernels that one instruction set provides. Each kernel's plain twin is in isa/vec_portable.h's build of
// the same source; the specification is the NumPy executor.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "layout.h"
#include "learn.h"
#include "tiles.h"

namespace dejavu {

struct Activation {
  enum Kind : int { relu = 0, silu = 1, gelu = 2, gelu_tanh = 3, relu2 = 4, fatrelu = 5, shifted_relu = 6, drelu = 7 };
  Kind kind = relu;
  float threshold = 0.0f;  // of fatrelu and shifted_relu
  bool exact_zeros() const { return kind != silu && kind != gelu && kind != gelu_tanh; }
};
enum class KvType : int { f32 = 0, f16 = 1, bf16 = 2, int8 = 3 };
inline constexpr int kKvTypeCount = 4;

// Keys of 16 neighbouring positions are stored together, transposed: [head_dim][16]; scores of 16 positions then need
// no horizontal sums. Values are stored [position][head_dim].
inline constexpr int kKeyTile = 16;

struct MlpArgs {
  const Bundles* bundles;   // rows: gate, up, down (gated) or up, down
  const int32_t* selected;  // compact list of neurons; null: neuron i is i
  int begin, end;           // range of the list (or of the neurons)
  bool gated;
  Activation activation;
  const float* gate_bias;  // [neurons] or null
  const float* up_bias;    // [neurons] or null
  const void* input;       // prepared
  float* output;           // accumulator, stored order; added to
};

// Tokens that the kernels named `many` take at once: 1 to this many.
inline constexpr int kMaxTokens = 8;

// As MlpArgs, for several tokens.
struct MlpManyArgs {
  const Bundles* bundles;
  const int32_t* selected;  // the union of what the tokens use
  const uint8_t* masks;     // null, or by index of the list (of the neurons): bit t says that token t uses the neuron
  int begin, end;
  bool gated;
  Activation activation;
  const float* gate_bias;
  const float* up_bias;
  int tokens;
  const void* const* inputs;  // [tokens]
  float* const* outputs;      // [tokens]
};

// Later bits of int8 rows (Codec::low3 and after) have prepare and dot_list. Kernels named `many` give each token
// the bits that the one for a single token gives; weights are read once for all.
struct RowKernels {
  // x[d] -> the form that dot products take; grouped codecs: int16 codes with one scale per group.
  void (*prepare)(const RowLayout&, const float* x, void* input);
  // out[i] = row(bundle, first + i) . x for i < n; what lies beyond the bundle's last row are the next bundles' rows
  void (*dot)(const Bundles&, int bundle, int first, int n, const void* input, float* out);
  // outputs[t] += sum over i < n, r < rows of coefficients[t][i * rows + r] * row(list[i], r), with all rows of each
  // bundle of a list; stored order. The coefficients of a bundle are rounded apart from the others'.
  void (*axpy)(const Bundles&, const int32_t* list, int n, const float* const* coefficients, int tokens,
               float* const* outputs);
  // A whole MLP over a list of neurons: dots, activation, axpys, bundle by bundle.
  void (*mlp)(const MlpArgs&);
  // outs[t][i] = row(bundle, first + i) . x_t
  void (*dot_many)(const Bundles&, int bundle, int first, int n, const void* const* inputs, int tokens,
                   float* const* outs);
  // Without masks, or where a token's list is the union, the bits of `mlp`.
  void (*mlp_many)(const MlpManyArgs&);
  // out[i * rows + r] = row(list[i], first + r) . x for i < n, r < rows
  void (*dot_list)(const Bundles&, int first, int rows, const int32_t* list, int n, const void* input, float* out);
  // out[i] = the row of number picked[i] . x, the rows of all bundles being counted through
  void (*dot_picked)(const Bundles&, const int32_t* picked, int n, const void* input, float* out);
  // output += sum over i < n of coefficients[i] * row(list[i], row)
  void (*axpy_list)(const Bundles&, int row, const int32_t* list, int n, const float* coefficients, float* output);
  // Weights [begin, end) of a row in stored order; begin and end are multiples of 64, or `padded`.
  void (*decode)(const RowLayout&, Row row, int begin, int end, float* out);
};

// Query heads that share one pass over their group's cache, at most.
inline constexpr int kMostHeads = 4;

struct Kernels {
  RowKernels rows[kCodecCount];
  // outs[r][i] = row first + r of neuron 16 * begin + i . x by its leading `bits`, r < rows, i < n; x as int8 rows take
  // it. With a list of tiles, sixteen neurons of each.
  void (*tile_dot)(const Tiles&, int bits, int first, int rows, const int32_t* list, int begin, int n,
                   const void* input, float* const* outs);

  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n,
                     float* out);                // bias: or null
  void (*add)(float* x, const float* y, int n);  // x += y
  void (*activate)(Activation, const float* gate, const float* up, int n,
                   float* out);  // act(gate) * up (drelu: * relu(up)); up null: act(gate)
  // In place; -inf is allowed, not everywhere. Returns the logarithm of the sum of the exponentials.
  float (*softmax)(float* x, int n);
  void (*softcap)(float* x, float cap, int n);  // x = cap * tanh(x / cap)

  // Attention of `heads` query heads over a block of the cache of their group. `scales` are per position (int8), else
  // null; the scores of one head lie `ld` floats behind those of the one before. `next`: what is read after this
  // block's keys or values, the next block's, which is fetched meanwhile; or null.
  //
  // scores[n][j] = scale * q[n] . k_j for j in [begin, end); begin is a multiple of 16; reads whole tiles, writes up to
  // the next multiple of 16. q: [heads][head_dim]
  void (*scores[kKvTypeCount])(const float* q, int heads, const void* keys, const void* next, const float* scales,
                               int head_dim, int begin, int end, float scale, float* scores, size_t ld);
  // out[n][head_dim] += sum over j in [begin, end) of weights[n][j] * v_j
  void (*mix[kKvTypeCount])(const float* weights, size_t ld, int heads, const void* values, const void* next,
                            const float* scales, int head_dim, int begin, int end, float* out);
  // One position into the cache.
  void (*store_key[kKvTypeCount])(const float* k, int head_dim, int position, void* keys, float* scales);
  void (*store_value[kKvTypeCount])(const float* v, int head_dim, int position, void* values, float* scales);
  // One tile of keys -> float32 [head_dim][16], rows `ld` floats apart; one position's values -> float32 [head_dim]
  void (*load_keys[kKvTypeCount])(const void* keys, const float* scales, int head_dim, int tile, float* out, size_t ld);
  void (*load_value[kKvTypeCount])(const void* values, const float* scales, int head_dim, int position, float* out);

  // The places of what exceeds `least`, in rising order, and how many they are; `list` has room for n.
  int (*above)(const float* x, int n, float least, int32_t* list);
  // dst[c][r] = src[r][c]
  void (*transpose)(const float* src, size_t src_ld, int rows, int cols, float* dst, size_t dst_ld);
  // Reads every byte once, as 1, 4 or 8 sequences side by side: measures read bandwidth.
  uint64_t (*read)(const void* data, size_t bytes, int streams);

  LearnKernels learn[2];  // float32, bf16
};

const Kernels& kernels(Isa isa);

inline size_t kv_element_size(KvType t) { return t == KvType::f32 ? 4 : t == KvType::int8 ? 1 : 2; }

}  // namespace dejavu
