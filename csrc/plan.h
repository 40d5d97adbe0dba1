// An access plan as the engine runs it: which neurons and heads of each layer a token touches, and what stands in for
// the rest. The C++ side of dejavu.plan.AccessPlan, which documents the fields.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "memory.h"
#include "tiles.h"

namespace dejavu {

enum class Rule : int { dense, fixed, random, oracle, threshold, low_rank, products, sketch };

// Bytes aligned to cache lines.
using AlignedBytes = std::unique_ptr<uint8_t[], Deallocate>;

// Rows of int8 in bundles of kPlainRows.
class Rows {
 public:
  Rows() = default;
  Rows(const float* values, int rows, int width);  // float32 [rows, width], to be rounded
  const Bundles& view() const { return view_; }

 private:
  AlignedBytes data_;
  Bundles view_;
};

// The four leading bits of rows of int8, in tiles.
class LeadingRows {
 public:
  static constexpr int kBits = 4;
  LeadingRows() = default;
  LeadingRows(const float* values, int rows, int width);
  const Tiles& view() const { return view_; }

 private:
  AlignedBytes data_;
  Tiles view_;
};

// hidden = A y [rank]; output = B hidden plus the bias [n]. A predictor (n units) or a compensator (n = d).
struct LowRank {
  int rank = 0;
  bool relu = false;  // of the hidden values
  Rows a;             // [rank, d]
  LeadingRows b;      // [n, rank]
  std::vector<float> bias;
};

struct Selector {
  Rule rule = Rule::dense;
  int k = 0;  // > 0: the k highest scores; 0: all scores above `threshold`
  float threshold = 0;
  int lookahead = 0;             // of low_rank, products and sketch
  int bits = 0;                  // sketch: leading bits
  bool leading_values = false;   // sketch: neurons hold what these bits say
  uint64_t seed = 0;             // random
  std::vector<int32_t> indices;  // fixed, ascending
  LowRank low_rank;              // low_rank: the predictor; products: of the gate, ungated of up
  LowRank up;                    // products, gated: of up, from the same hidden values; its `a` is empty
  std::vector<float> spread[2];  // products: of the errors of these two maps, [n]

  // Whether scores come in two stages, from hidden values that threads share out too.
  bool staged() const { return rule == Rule::low_rank || rule == Rule::products; }
  // The layer whose block input the scores of layer `layer` are computed from.
  int source(int layer) const { return layer - (lookahead < layer ? lookahead : layer); }
};

struct LayerPlan {
  Selector neurons, heads;
  bool compensated = false;
  LowRank compensator;
};

// Logits from the leading bits of the head's rows: dejavu.plan.VocabularySketch.
struct HeadSketch {
  int bits = 0;                              // 0: there is none
  int exact = 0;                             // so many of the best logits are exact
  std::vector<float> mean;                   // of what the head multiplies; or empty: zero
  int along = 0;                             // how many directions
  std::vector<uint8_t> directions, missing;  // packed rows: one bundle of f32; bundles of int8, `along` wide
};

struct Plan {
  std::vector<LayerPlan> layers;
  bool recompute = false;  // K/V of groups without a selected head are computed when they are next needed
  int buffer = 0;          // recompute: positions that may be missing
  HeadSketch head;
};

}  // namespace dejavu
