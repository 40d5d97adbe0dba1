// The native executor: a model's weights as views into one packed buffer, and the forward passes over them.
// decoder.h runs one token of each of a few sequences (matrix-vector, every thread in step through the layers), under
// an access plan if one is set; batch.h runs many tokens at once (prefill; blocked matrix products over the same
// weights).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cache.h"
#include "config.h"
#include "gemm.h"
#include "memory.h"
#include "parts.h"
#include "plan.h"
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
  Bundles heads;        // per query head: head_dim rows of q
  Bundles o;            // per query head: head_dim rows of o (transposed), in the head's codec
  Bundles kv;           // per K/V head: head_dim rows of k, head_dim rows of v
  Bundles mlp;          // per neuron: gate, up, down (transposed), or up, down
  bool nested = false;  // then, instead of `mlp`:
  NestedMlp parts;
};
inline const RowLayout& mlp_layout(const Layer& layer) { return (layer.nested ? layer.parts.down : layer.mlp).layout; }

// A piece of a batch: `count` tokens of one sequence, rows [row, row + count) of the batch.
struct Segment {
  Cache* cache;
  int row, count;
};

// Where the time of a decoding step goes. predicting: scoring and picking; rest: embedding, norms, sums of the threads'
// shares; waiting: at barriers, for other threads.
enum class Part : int { attention, mlp, head, predicting, rest, waiting };
inline constexpr const char* kPartNames[] = {"attention", "mlp", "head", "predicting", "rest", "waiting"};
inline constexpr int kParts = 6;

// What ran since the counters were last set to zero.
struct Counters {
  explicit Counters(int layers) : neurons(size_t(layers)), heads(size_t(layers)), mlp_seconds(size_t(layers)) {}

  int64_t tokens = 0, decoded = 0;      // by the plan; decoded one by one, by a plan or dense
  std::vector<int64_t> neurons, heads;  // per layer: touched, summed over tokens
  int64_t recomputed = 0;               // pairs of K and V that were computed late
  double seconds[kParts] = {};          // of thread 0, in decoding
  std::vector<double> mlp_seconds;      // per layer: from the MLP's norm until all threads have added its output
};

enum class Logits { none, last, all };  // last: of each segment's last token

// Where a batched pass writes what happens inside it; null: not wanted. Float32, natural order, [layers, tokens,
// width].
struct Capture {
  float *attn_input = nullptr, *mlp_input = nullptr;  // width d: residual stream entering the block, before its norm
  float* hidden = nullptr;                            // width ff: what the down rows are multiplied with
  float* gate = nullptr;                              // width ff: act(gate) alone (ungated: as hidden)
  float* head_norm = nullptr;                         // width heads: L2 norm of the mixed values
  float* chosen = nullptr;                            // width ff: by the plan, 1 where a token uses a neuron, else 0
  float* head_input = nullptr;                        // [tokens, embed_dim]: what the head multiplies
};

inline constexpr int kTogether = 256;  // neurons worked on at a time: their values stay in the first-level cache

class Engine {
 public:
  // Throws std::invalid_argument, naming the section, when a section is missing or of another size than the
  // configuration says.
  // leading: how many leading bits lie apart, where the sections are those of a nested model; else 0
  Engine(const Config& config, Codec codec, Codec head_codec, const Sections& sections, int leading, int threads,
         Isa isa);

  const Config& config() const { return c_; }
  Isa isa() const { return isa_; }
  int threads() const { return pool_.size(); }

  // Keys and values depend on the model and on how it is packed: a cache works with the engine that made it.
  std::unique_ptr<Cache> new_cache(KvType type) const;
  bool owns(const Cache& cache) const { return cache.owner() == number_; }

  // These wait for the pass that runs, if one does.
  // Throws std::invalid_argument when the plan does not fit the model; then the plan before it stays. Null: dense.
  void set_plan(std::unique_ptr<Plan> plan);
  Counters counters() const;
  void reset_counters();
  // What one more barrier costs, in multiplications of a head by a number of a position's key and value: attention goes
  // by positions where that saves more. Measured. Below zero: wherever there are several threads, and no oracle.
  long barrier_cost() const;
  void set_barrier_cost(long cost);

  // One token of each of `n` sequences. `logits` [n, vocab], or null. `sparse`: by the plan. Where there is no memory,
  // no sequence gets its token.
  void decode(const int32_t* tokens, Cache* const* caches, int n, bool sparse, float* logits);
  // Many tokens. `logits` [segments or tokens, vocab] as `which` says. `sparse`: each token by the plan, which saves
  // nothing here, but gives what decoding would.
  void forward(const int32_t* tokens, const std::vector<Segment>& segments, bool sparse, Logits which, float* logits,
               const Capture& capture = {});

 private:
  struct Buffer {               // grows, never shrinks, is not initialised; aligned to cache lines
    float* get(size_t floats);  // room for so many
    float* floats() const { return data.get(); }
    std::unique_ptr<float, Deallocate> data;
    size_t size = 0;
  };
  struct Worker {
    Buffer x, normed, branch, input, head_room, scores, rope, scratch, packed, c0, c1;
    Buffer predictor, picking, late, joined, along;
    std::vector<int32_t> chosen;  // [tokens, neurons]
    std::vector<uint8_t> heads;   // [tokens, heads] 1: chosen
    std::vector<int32_t> units;
    std::vector<uint8_t> masks;
  };
  struct Step {  // of decoding
    const int32_t* tokens;
    Cache* const* caches;
    int n;
    bool sparse;
    float* logits;
  };
  struct Decoder;  // decoder.h
  // All that decoding these needs: a step itself cannot fail.
  void make_room(Cache* const* caches, int n, bool sparse);
  void put_key_or_value(Cache& cache, int layer, int group, bool values, int position, const float* rope,
                        float* row) const;
  // K or V of a group at positions [begin, end), from the inputs that the cache kept; the last one's may be `now`.
  void late_keys_or_values(Worker& w, Cache& cache, int layer, int group, bool values, int begin, int end,
                           const void* now = nullptr) const;
  void catch_up(Cache& cache);  // computes all that `recompute` left out, and ends it

  // A plan and what it needs, made whole before it takes the place of the one before.
  struct Planned {
    std::unique_ptr<Plan> plan;  // null: dense
    // Per layer: the later layers whose scores are computed from this one's input.
    std::vector<std::vector<int>> neuron_targets, head_targets;
    int widest_rank = 0;
    // Shared by the threads while the sets of a step are found; scores and hidden values per layer, because look-ahead
    // computes them before the layer's turn. [layers, tokens, units]
    Buffer neuron_scores, head_scores, neuron_hidden, head_hidden;
    Buffer gate, up;  // [tokens, neurons]
    // Of a sketch of the head: the leading bits of its rows, and of what they miss along the directions; what they miss
    // of the mean, for every row; the mean along the directions. The leading bits outlive the plan that wanted them.
    Tiles lead, missing;
    Bundles directions;
    std::shared_ptr<float> lead_bytes;
    Buffer missing_bytes, direction_bytes, shift;
    std::vector<float> along_mean;
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
  Range attended(int layer, int position) const;  // the positions that one attends to
  // `count` query heads of one group, from `head` on, over some of these positions: q and out [count][head_dim];
  // scores: room for `count` times the positions of the cache's blocks; log_sums [count]: of the exponentials of the
  // scores, by which what several ranges gave is joined.
  void attend(const Cache& cache, int layer, int head, int count, int position, Range over, const float* q,
              float* scores, float* out, float* log_sums) const;
  // Turns the scores of a head's query into weights: softcap, ALiBi, softmax over these positions. Returns the log sum.
  float weigh(int head, int position, Range over, float* scores) const;
  void add_branch(float* x, float* branch, const float* bias, const float* post_norm, const float* norm_weight,
                  const float* norm_bias) const;
  void to_natural(const float* stored, float* out) const;  // an axpy accumulator, minima added
  const float* head_input(const float* x, float* normed, float* projected) const;
  void finish_logits(float* logits, int first, int n) const;
  void cap_logits(float* logits, int n) const;
  const RowKernels& mlp_rows(const Layer& layer) const { return k_.rows[int(mlp_layout(layer).codec)]; }
  bool local_rope(int layer) const { return !c_.local_inv_freq.empty() && c_.windowed[size_t(layer)]; }

  // score.cc; one token. `input` is prepared for rows of the model, `input8` for rows of int8.
  void hidden_of(const LowRank& map, Range range, const void* input8, float* hidden) const;
  // Scores, or what stands in for skipped neurons; `range` begins with a tile. `room` is for the prepared hidden
  // values.
  void output_of(const LowRank& map, Range range, const float* hidden, void* room, float* output) const;
  void prepared_output_of(const LowRank& map, Range range, const void* hidden, float* output) const;  // of the range
  // low_rank, products: scores of a range from hidden values, as above.
  void score_staged(const Selector& selector, Range range, const float* hidden, void* room, float* scores) const;
  // out[i * rows + r]: the exact dot of row first + r (gate, then up) of the i-th listed neuron; at most kTogether.
  void exact_dots(const Layer& layer, int first, int rows, const int32_t* neurons, int n, const void* input,
                  float* out) const;
  // The same by the leading bits that lie apart, of int8.
  void leading_dots(const Layer& layer, int first, int rows, const int32_t* neurons, int n, const void* input,
                    float* out) const;
  // out += what the leading bits left out.
  void add_low(const Layer& layer, int first, int rows, const int32_t* neurons, int n, const void* input,
               float* out) const;
  // oracle, threshold, sketch: scores [begin, end) and what was computed on the way, without biases: gate and up, exact
  // (threshold: gate alone) or from the leading bits (sketch). Where neurons hold what these say, their values are left
  // in the place of gate. Pointers are to the first of all neurons.
  void score_neurons(const Layer& layer, const Selector& selector, Range range, const void* input, float* gate,
                     float* up, float* scores) const;
  // head_sketch.cc. What a plan with such a sketch needs, from the head's rows:
  void sketch_head(Planned& planned);
  Tiles tiles_of(const Bundles& rows, int bits, Buffer& memory);
  // One token's input x [embed_dim], and what it has along the sketch's directions, for the two that follow; `room` is
  // for as many floats as there are directions.
  void prepare_sketched(const float* x, void* input, void* along, float* room) const;
  size_t along_bytes() const { return planned_.missing.count ? planned_.missing.layout.input_bytes() : 0; }
  // Floats for the above of so many tokens, the room behind them.
  size_t along_floats(int tokens) const {
    return size_t(tokens) * along_bytes() / sizeof(float) + planned_.along_mean.size() + 16;
  }
  // Logits of tiles `range` of the head by their leading bits, and exact ones of the listed rows: biased, as the best
  // are picked by them, not capped.
  void leading_logits(Range range, const void* input, const void* along, float* logits) const;
  void exact_logits(const int32_t* rows, int n, const void* input, float* logits) const;

  const void* to_input8(const void* input, void* scratch) const;  // int8's form of what f32 and bf16 take as floats
  int own_neurons() const { return c_.ff - c_.refined; }
  // Floats of one token's residual stream, or its embedding, and a group of room behind it; and of the input of a block
  // or of the head in the form that dot products take.
  size_t stream_floats() const { return size_t(c_.d > c_.embed_dim ? c_.d : c_.embed_dim) + kGroup; }
  size_t prepared_floats() const {
    const size_t bytes = layout_.input_bytes() + head_.layout.input_bytes() + stream_floats() * sizeof(float);
    return (bytes / sizeof(float) + 31) / 16 * 16;
  }

  const Config c_;
  const uint64_t number_;  // of no other engine of this process
  const Isa isa_;
  const Kernels& k_;
  const Gemm& gemm_;
  RowLayout layout_;
  std::vector<Layer> layers_;
  Bundles embed_, head_, proj_in_, proj_out_;
  const float *positions_, *embed_norm_, *embed_norm_bias_, *final_norm_, *final_norm_bias_, *head_bias_;
  Pool pool_;
  mutable std::mutex mutex_;  // one forward pass at a time
  std::vector<Worker> workers_;
  // Per thread one accumulator of a branch's output; attention and MLP alternate, so that a thread may start the next
  // branch while others still read the last.
  std::vector<float> attn_partials_, mlp_partials_;  // [threads, tokens, partial_floats_]
  size_t partial_floats_;
  // What is dealt in pieces (decoder.h): of each layer's MLP and, last, of the head the next one; and what pieces add
  // up to.
  std::vector<std::atomic<int>> next_pieces_;
  std::vector<float> piece_sums_;  // [pieces, partial_floats_]
  Buffer q_, mixed_;
  // Of attention whose positions are shared out: what the heads give over each thread's, and the log sums.
  Buffer position_outputs_, log_sums_;  // [threads, tokens, heads, head_dim], [threads, tokens, heads]
  Planned planned_;
  Counters counters_;
  long barrier_cost_ = 128 * 1000;
  std::unique_ptr<Batch> batch_;
  const std::shared_ptr<BlockStore> blocks_ = std::make_shared<BlockStore>();

 public:
  ~Engine();
};

}  // namespace dejavu
