// One step of decoding, as one thread sees it: one token of each of up to kMaxTokens sequences through all layers.
// Each thread keeps the residual streams to itself and repeats the cheap steps (norms, picking, adding up partial
// sums), so that a dense layer needs three barriers: after q, k, v; after attention; after the MLP. Attention by
// positions takes one more, and more than kRepeatedReduction threads take two more.
//   decode.cc            the walk through the layers
//   decode_attention.cc  one attention block: which heads, their q, k, v
//   decode_attend.cc     attention and o
//   decode_mlp.cc        one MLP block: which neurons, and their sum
//   decode_score.cc      what neurons and heads are chosen by
#pragma once

#include <chrono>

#include "engine.h"
#include "select.h"

namespace dejavu {

using Clock = std::chrono::steady_clock;

inline constexpr int kScoredTogether = 16;  // threads share neurons to score in units of so many

// A range that is shared out: what is this thread's, and, of long ranges, a last part in pieces that go to whoever is
// done first. Cores differ in speed, on shared machines from moment to moment.
struct Dealt {
  Range own;
  int begin = 0, size = 0, pieces = 0;
};

struct Engine::Decoder {
  Engine& e;
  const Step& s;
  const int thread, threads;
  Worker& w;
  const Config& c;
  const RowKernels& rows;
  const Plan* const plan;  // null: dense

  float* x[kMaxTokens];            // residual streams
  float* block_input[kMaxTokens];  // of the current block: the norm of x
  void* input[kMaxTokens];         // the same, prepared for dot products
  float *attn_partial[kMaxTokens], *mlp_partial[kMaxTokens];
  float* rope[kMaxTokens];  // cos and sin; then those of layers with a local RoPE
  int position[kMaxTokens];
  int32_t* chosen[kMaxTokens];  // neurons, ascending
  int chosen_count[kMaxTokens];
  bool apart = false;      // each thread has a list of its own
  int pieces = 0;          // whose sums `finish` adds too
  Part part = Part::rest;  // that time since `since` belongs to; thread 0 keeps count
  Clock::time_point since;

  Decoder(Engine& engine, const Step& step, int thread);
  void run();

 private:
  // decode.cc
  void enter(Part next);
  void barrier();
  void logits();
  void sketched_logits(const char* along, float* const* out);
  void prepare(const float* weight, const float* bias);
  const float* turn(int layer, int token) const;
  void finish(std::vector<float>& partials, const float* first_bias, const float* bias, const float* post_norm,
              const float* norm_weight, const float* norm_bias);
  // Shares out `n` things of so many bytes, in multiples of `unit`; and calls body(range, piece) for all that comes to
  // this thread; -1: its own.
  Dealt deal(int n, int unit, size_t unit_bytes) const;
  template <typename Body>
  void take(const Dealt& dealt, int layer, Body body) const {
    body(dealt.own, -1);
    while (dealt.pieces) {
      const int piece = e.next_pieces_[size_t(layer)].fetch_add(1, std::memory_order_relaxed);
      if (piece >= dealt.pieces) break;
      const int begin = dealt.begin + piece * dealt.size;
      body({begin, begin + dealt.size}, piece);
    }
  }
  // Neurons that this thread scores.
  Range scored() const { return share(e.own_neurons(), kScoredTogether, thread, threads); }
  float* piece_sum(int piece) const { return e.piece_sums_.data() + size_t(piece) * e.partial_floats_; }
  // Asks for what the next stage reads first, so that it arrives while this thread waits for the others.
  void fetch_rows(const Bundles& b, int bundle, int n) const;  // n rows, from the first of the bundle on
  void fetch_bundles(const Bundles& b, Range bundles) const;
  void fetch_tiles(const Tiles& t, Range tiles) const;
  void fetch_attention(int i) const;
  void fetch_mlp(int i) const;
  // Dots of rows for several tokens.
  void dot(const Bundles& b, int bundle, int first, int n, const void* const* in, int tokens, float* const* out) const;

  // decode_attention.cc
  void attention(int i);
  void choose_heads(int i);
  void pick_heads(int i);
  bool head_chosen(int token, int head) const { return w.heads[size_t(token * c.heads + head)] != 0; }
  bool heads_alike(int i) const;
  bool group_needed(int i, int token, int group) const;
  // Fills w.units with those of `count` that any token wants.
  template <typename Wanted>
  void gather_units(int count, Wanted wanted) {
    w.units.clear();
    for (int u = 0; u < count; ++u) {
      for (int t = 0; t < s.n; ++t) {
        if (!wanted(t, u)) continue;
        w.units.push_back(u);
        break;
      }
    }
  }
  void queries(int i, int head, int count);
  void keys_and_values(int i, int unit, int count);
  void new_keys_and_values(int i, int unit, int count);

  // decode_attend.cc
  void attend_all(int i);
  bool positions_pay(int i) const;
  int neighbours(int i, int first, int end) const;
  void attend_positions(int i);
  void join_positions(int token, int head, int count, float* out) const;

  // decode_mlp.cc
  void mlp(int i, float* const* output);
  void choose_neurons(int i);
  void choose_apart(int i);
  void dense_mlp(int i, float* const* output);
  void listed_mlp(int i, float* const* output);
  void mlp_of_one(int i, const Dealt& dealt, const int32_t* list, float* output);
  void neuron_dots(const Layer& layer, const Selector& selector, int token, int first, int rows, const int32_t* ids,
                   int n, float* out);
  int hidden_values(const Layer& layer, const Selector& selector, int token, int32_t* ids, int n, float* h);
  int open_gates(const Layer& layer, int32_t* ids, float* gate, int n);
  void sum_neurons(const Layer& layer, const Selector& selector, int token, int begin, int end, float* output);
  void compensate(int i, float* const* output);

  // decode_score.cc: the two stages of scoring; a barrier lies between them, and another before the scores are read.
  // The selector of layer T may read the input of an earlier layer m (Selector::source), and then
  //   of neurons: score in the MLP of m, barrier, score_hidden in the attention of m + 1, barrier, picked in the MLP of
  //   T; of heads: score in the attention of m, barrier, score_hidden behind it, barrier, picked in the attention of T.
  void score(int target, bool heads);         // hidden values of low-rank predictors; scores of everything else
  void score_hidden(int target, bool heads);  // scores of low-rank predictors
  // Of all units of a layer for one token: scores, and a low-rank predictor's hidden values.
  float* scores_of(int layer, int token, bool heads) const {
    const Buffer& all = heads ? e.planned_.head_scores : e.planned_.neuron_scores;
    return all.floats() + size_t(layer * kMaxTokens + token) * size_t(heads ? c.heads : c.ff);
  }
  float* hidden_of(int layer, int token, bool heads) const {
    const Buffer& all = heads ? e.planned_.head_hidden : e.planned_.neuron_hidden;
    return all.floats() + size_t(layer * kMaxTokens + token) * size_t(e.planned_.widest_rank);
  }
};

}  // namespace dejavu
