// Kernels of `dejavu adapt`: what lies between the matrix products of a training step, each in one pass over memory.
#pragma once

#include <cstddef>

namespace dejavu {

struct Activation;

// Attention scores of documents: [rows][length], row r being that of query r % length, which sees itself and up to
// window - 1 keys before it (0: all).
struct ScoreRows {
  size_t rows;
  int length, window;
  float scale;
};

// Arrays named void* are of the type of the products, float32 or bf16; arithmetic is float32.
struct LearnKernels {
  // out[n][d] = scale x weight with scale[n] = (mean(x^2) + eps)^-1/2
  void (*rms_norm)(const float* x, const float* weight, float eps, size_t n, int d, float* scale, void* out);
  // The gradient by x [n][d], from the one by `out`.
  void (*rms_norm_slope)(const float* x, const float* weight, const float* scale, const void* slope, size_t n, int d,
                         float* out);
  // out[n] = act(gate) * up (drelu: * relu(up)) * mask; up and mask may be null: 1
  void (*activate)(Activation, const void* gate, const void* up, const void* mask, size_t n, void* out);
  // values[n] become 1 where they exceed the threshold, otherwise 0; returns how many do. n <= 2^26
  size_t (*choose)(void* values, float threshold, size_t n);
  // The gradients by gate and up (null as up is).
  void (*activate_slope)(Activation, const void* gate, const void* up, const void* mask, const void* slope, size_t n,
                         void* to_gate, void* to_up);
  // RoPE on the first 2 half of e values of x [n][heads][e], with cos and sin [n][half]; sign -1 turns back.
  void (*rotate)(const void* x, const float* cos, const float* sin, float sign, size_t n, int heads, int e, int half,
                 void* out);
  // Softmax of scale * scores over the keys that a query sees, 0 elsewhere; `room`: float [length]
  void (*attend)(const ScoreRows&, const void* scores, float* room, void* out);
  // The gradient by the scores, from `weights` (what `attend` made) and the gradient by them.
  void (*attend_slope)(const ScoreRows&, const void* weights, const void* slope, void* out);
  // KL(softmax(teacher) || softmax(student)) of logits [v], and its gradient by the student's; `room`: float [2][v]
  double (*divergence)(const void* student, const void* teacher, int v, float* room, void* slope);
};

}  // namespace dejavu
