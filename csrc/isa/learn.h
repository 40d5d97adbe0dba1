// The kernels of ../learn.h. T: float, or uint16_t for bf16.
#pragma once

#include "../learn.h"
#include "math.h"

namespace {

template <typename T>
inline F take(const T* p, int lanes) {
  if constexpr (sizeof(T) == 4) {
    return get(p, lanes);
  } else {
    if (lanes == W) return Vec::load_bf16(p);
    T whole[W] = {};
    memcpy(whole, p, size_t(lanes) * sizeof(T));
    return Vec::load_bf16(whole);
  }
}

template <typename T>
inline void leave(T* p, F x, int lanes) {
  if constexpr (sizeof(T) == 4) {
    put(p, x, lanes);
  } else {
    if (lanes == W) return Vec::store_bf16(p, x);
    T whole[W];
    Vec::store_bf16(whole, x);
    memcpy(p, whole, size_t(lanes) * sizeof(T));
  }
}

// Lanes from `lanes` on are `rest`.
inline F fill(F x, int lanes, float rest) {
  if (lanes == W) return x;
  float all[W];
  Vec::store(all, x);
  for (int i = lanes; i < W; ++i) all[i] = rest;
  return Vec::load(all);
}

template <typename T>
void learn_rms_norm(const float* x, const float* weight, float eps, size_t n, int d, float* scale, void* out) {
  for (size_t row = 0; row < n; ++row, x += d) {
    T* const y = static_cast<T*>(out) + row * size_t(d);
    F squares = Vec::zero();
    each(d, [&](int i, int lanes) {
      const F v = get(x + i, lanes);
      squares = Vec::fma(v, v, squares);
    });
    scale[row] = 1.0f / sqrtf(Vec::sum(squares) / float(d) + eps);
    const F s = Vec::set1(scale[row]);
    each(d, [&](int i, int lanes) {
      leave(y + i, Vec::mul(Vec::mul(get(x + i, lanes), s), get(weight + i, lanes)), lanes);
    });
  }
}

// y = s x w with s = (mean(x^2) + eps)^-1/2, so dx = s g - s^3 x mean(g x), g = w dy.
template <typename T>
void learn_rms_norm_slope(const float* x, const float* weight, const float* scale, const void* slope, size_t n, int d,
                          float* out) {
  for (size_t row = 0; row < n; ++row, x += d, out += d) {
    const T* const dy = static_cast<const T*>(slope) + row * size_t(d);
    F along = Vec::zero();
    each(d, [&](int i, int lanes) {
      along = Vec::fma(Vec::mul(take(dy + i, lanes), get(weight + i, lanes)), get(x + i, lanes), along);
    });
    const float s = scale[row];
    const F straight = Vec::set1(s), back = Vec::set1(-s * s * s * (Vec::sum(along) / float(d)));
    each(d, [&](int i, int lanes) {
      const F g = Vec::mul(take(dy + i, lanes), get(weight + i, lanes));
      put(out + i, Vec::fma(back, get(x + i, lanes), Vec::mul(straight, g)), lanes);
    });
  }
}

// 1 where x > low, otherwise 0; low >= 0
inline F exceeds(F x, F low) {
  const F huge = Vec::set1(3e38f);
  return Vec::min(Vec::mul(Vec::mul(Vec::abs(Vec::above(x, low)), huge), huge), Vec::set1(1.0f));
}

// The derivative of activation_v.
inline F activation_slope_v(dejavu::Activation activation, F x) {
  const F half = Vec::set1(0.5f), one = Vec::set1(1.0f), threshold = Vec::set1(activation.threshold);
  switch (activation.kind) {
    case dejavu::Activation::relu:
    case dejavu::Activation::drelu:
      return exceeds(x, Vec::zero());
    case dejavu::Activation::relu2:
      return Vec::mul(Vec::set1(2.0f), Vec::max(x, Vec::zero()));
    case dejavu::Activation::fatrelu:
    case dejavu::Activation::shifted_relu:
      return exceeds(x, threshold);
    case dejavu::Activation::silu: {
      const F s = Vec::div(one, Vec::add(one, exp_v(Vec::sub(Vec::zero(), x))));
      return Vec::mul(s, Vec::fma(x, Vec::sub(one, s), one));
    }
    case dejavu::Activation::gelu: {
      const F bell = exp_v(Vec::mul(Vec::set1(-0.5f), Vec::mul(x, x)));
      const F share = Vec::mul(half, Vec::add(one, erf_v(Vec::mul(x, Vec::set1(0.70710678f)))));
      return Vec::fma(Vec::mul(x, Vec::set1(0.39894228f)), bell, share);
    }
    default:
      break;  // gelu_tanh
  }
  const F square = Vec::mul(x, x), c = Vec::set1(0.79788456f);
  const F t = tanh_v(Vec::mul(Vec::mul(c, x), Vec::fma(square, Vec::set1(0.044715f), one)));
  const F inner = Vec::mul(c, Vec::fma(square, Vec::set1(3 * 0.044715f), one));
  const F bent = Vec::mul(Vec::mul(half, x), Vec::mul(Vec::sub(one, Vec::mul(t, t)), inner));
  return Vec::fma(half, Vec::add(one, t), bent);
}

// body(start, lanes) for every piece of n values
template <typename Body>
inline void each_of(size_t n, Body body) {
  size_t i = 0;
  for (; i + W <= n; i += W) body(i, W);
  if (i < n) body(i, int(n - i));
}

template <typename T>
void learn_activate(dejavu::Activation activation, const void* gate, const void* up, const void* mask, size_t n,
                    void* out) {
  const bool both = activation.kind == dejavu::Activation::drelu;
  each_of(n, [&](size_t i, int lanes) {
    F h = activation_v(activation, take(static_cast<const T*>(gate) + i, lanes));
    if (up) {
      const F u = take(static_cast<const T*>(up) + i, lanes);
      h = Vec::mul(h, both ? Vec::max(u, Vec::zero()) : u);
    }
    if (mask) h = Vec::mul(h, take(static_cast<const T*>(mask) + i, lanes));
    leave(static_cast<T*>(out) + i, h, lanes);
  });
}

template <typename T>
size_t learn_choose(void* values, float threshold, size_t n) {
  const F low = Vec::set1(threshold);
  F count = Vec::zero();  // whole numbers below 2^24 in each of eight lanes or more: exact
  each_of(n, [&](size_t i, int lanes) {
    T* const x = static_cast<T*>(values) + i;
    const F chosen = fill(exceeds(Vec::sub(take(x, lanes), low), Vec::zero()), lanes, 0.0f);
    count = Vec::add(count, chosen);
    leave(x, chosen, lanes);
  });
  float counts[W];
  Vec::store(counts, count);
  size_t total = 0;
  for (const float lane : counts) total += size_t(lane);
  return total;
}

template <typename T>
void learn_activate_slope(dejavu::Activation activation, const void* gate, const void* up, const void* mask,
                          const void* slope, size_t n, void* to_gate, void* to_up) {
  const bool both = activation.kind == dejavu::Activation::drelu;
  each_of(n, [&](size_t i, int lanes) {
    const F g = take(static_cast<const T*>(gate) + i, lanes);
    F s = take(static_cast<const T*>(slope) + i, lanes);
    if (mask) s = Vec::mul(s, take(static_cast<const T*>(mask) + i, lanes));
    const F bent = Vec::mul(s, activation_slope_v(activation, g));
    if (!up) {
      leave(static_cast<T*>(to_gate) + i, bent, lanes);
      return;
    }
    const F u = take(static_cast<const T*>(up) + i, lanes);
    leave(static_cast<T*>(to_gate) + i, Vec::mul(bent, both ? Vec::max(u, Vec::zero()) : u), lanes);
    F by_up = Vec::mul(s, activation_v(activation, g));
    if (both) by_up = Vec::mul(by_up, exceeds(u, Vec::zero()));
    leave(static_cast<T*>(to_up) + i, by_up, lanes);
  });
}

template <typename T>
void learn_rotate(const void* from, const float* cos, const float* sin, float sign, size_t n, int heads, int e,
                  int half, void* to) {
  const T* x = static_cast<const T*>(from);
  T* y = static_cast<T*>(to);
  const F turn = Vec::set1(sign);
  for (size_t token = 0; token < n; ++token, cos += half, sin += half) {
    for (int head = 0; head < heads; ++head, x += e, y += e) {
      each(half, [&](int i, int lanes) {
        const F a = take(x + i, lanes), b = take(x + half + i, lanes);
        const F c = get(cos + i, lanes), s = Vec::mul(turn, get(sin + i, lanes));
        leave(y + i, Vec::sub(Vec::mul(a, c), Vec::mul(b, s)), lanes);
        leave(y + half + i, Vec::fma(a, s, Vec::mul(b, c)), lanes);
      });
      memcpy(y + 2 * half, x + 2 * half, size_t(e - 2 * half) * sizeof(T));
    }
  }
}

inline int first_seen(const dejavu::ScoreRows& at, int query) {
  return at.window > 0 && query >= at.window ? query - at.window + 1 : 0;
}

template <typename T>
void learn_attend(const dejavu::ScoreRows& at, const void* scores, float* room, void* out) {
  const F scale = Vec::set1(at.scale);
  for (size_t row = 0; row < at.rows; ++row) {
    const int query = int(row % size_t(at.length)), begin = first_seen(at, query), n = query + 1 - begin;
    const T* const x = static_cast<const T*>(scores) + row * size_t(at.length);
    T* const y = static_cast<T*>(out) + row * size_t(at.length);
    each(n, [&](int i, int lanes) { put(room + i, Vec::mul(scale, take(x + begin + i, lanes)), lanes); });
    softmax(room, n);
    memset(y, 0, size_t(begin) * sizeof(T));
    each(n, [&](int i, int lanes) { leave(y + begin + i, get(room + i, lanes), lanes); });
    memset(y + query + 1, 0, size_t(at.length - query - 1) * sizeof(T));
  }
}

template <typename T>
void learn_attend_slope(const dejavu::ScoreRows& at, const void* weights, const void* slope, void* out) {
  const F scale = Vec::set1(at.scale);
  for (size_t row = 0; row < at.rows; ++row) {
    const int query = int(row % size_t(at.length)), begin = first_seen(at, query), n = query + 1 - begin;
    const T* const w = static_cast<const T*>(weights) + row * size_t(at.length) + begin;
    const T* const g = static_cast<const T*>(slope) + row * size_t(at.length) + begin;
    T* const y = static_cast<T*>(out) + row * size_t(at.length);
    F along = Vec::zero();
    each(n, [&](int i, int lanes) { along = Vec::fma(take(w + i, lanes), take(g + i, lanes), along); });
    const F mean = Vec::set1(Vec::sum(along));
    memset(y, 0, size_t(begin) * sizeof(T));
    each(n, [&](int i, int lanes) {
      const F off = Vec::sub(take(g + i, lanes), mean);
      leave(y + begin + i, Vec::mul(scale, Vec::mul(take(w + i, lanes), off)), lanes);
    });
    memset(y + query + 1, 0, size_t(at.length - query - 1) * sizeof(T));
  }
}

// exp(x - max(x)) to `out`; returns its sum, and the maximum to `highest`.
template <typename T>
inline float exponentials(const T* x, int v, float* out, float* highest) {
  F most = Vec::set1(-INFINITY);
  each(v, [&](int i, int lanes) { most = Vec::max(most, fill(take(x + i, lanes), lanes, -INFINITY)); });
  *highest = Vec::maximum(most);
  const F shift = Vec::set1(*highest);
  F total = Vec::zero();
  each(v, [&](int i, int lanes) {
    const F e = fill(exp_v(Vec::sub(take(x + i, lanes), shift)), lanes, 0.0f);
    put(out + i, e, lanes);
    total = Vec::add(total, e);
  });
  return Vec::sum(total);
}

template <typename T>
double learn_divergence(const void* student, const void* teacher, int v, float* room, void* slope) {
  const T *const s = static_cast<const T*>(student), *const t = static_cast<const T*>(teacher);
  float *const q = room, *const p = room + v;
  float most_s, most_t;
  const float total_s = exponentials(s, v, q, &most_s), total_t = exponentials(t, v, p, &most_t);
  const F to_q = Vec::set1(1.0f / total_s), to_p = Vec::set1(1.0f / total_t), shift = Vec::set1(most_t - most_s);
  F ahead = Vec::zero();
  each(v, [&](int i, int lanes) {
    const F share = Vec::mul(get(p + i, lanes), to_p);
    const F by = Vec::sub(Vec::sub(take(t + i, lanes), take(s + i, lanes)), shift);
    ahead = Vec::fma(share, fill(by, lanes, 0.0f), ahead);
    leave(static_cast<T*>(slope) + i, Vec::sub(Vec::mul(get(q + i, lanes), to_q), share), lanes);
  });
  return double(Vec::sum(ahead)) + log(double(total_s)) - log(double(total_t));
}

template <typename T>
constexpr dejavu::LearnKernels learn_kernels() {
  return {learn_rms_norm<T>, learn_rms_norm_slope<T>, learn_activate<T>,
          learn_choose<T>,   learn_activate_slope<T>, learn_rotate<T>,
          learn_attend<T>,   learn_attend_slope<T>,   learn_divergence<T>};
}

}  // namespace
