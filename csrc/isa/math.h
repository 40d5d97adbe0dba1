// Elementary functions and norms over Vec. Included after one vec_*.h.
#pragma once

#include "../kernels.h"

namespace {

using F = Vec::F;
constexpr int W = Vec::W;

// exp within 2 ulp: x = n ln 2 + r, |r| <= ln(2) / 2, a polynomial of degree 6 in r (Taylor coefficients), times 2^n.
inline F exp_v(F x) {
  x = Vec::min(Vec::max(x, Vec::set1(-104.0f)), Vec::set1(88.72f));
  const F n = Vec::round(Vec::mul(x, Vec::set1(1.44269504f)));
  F r = Vec::fma(n, Vec::set1(-0.693359375f), x);
  r = Vec::fma(n, Vec::set1(2.12194440e-4f), r);
  F p = Vec::set1(1.0f / 720.0f);
  p = Vec::fma(p, r, Vec::set1(1.0f / 120.0f));
  p = Vec::fma(p, r, Vec::set1(1.0f / 24.0f));
  p = Vec::fma(p, r, Vec::set1(1.0f / 6.0f));
  p = Vec::fma(p, r, Vec::set1(0.5f));
  p = Vec::fma(p, r, Vec::set1(1.0f));
  p = Vec::fma(p, r, Vec::set1(1.0f));
  return Vec::scale2(p, n);
}

inline F tanh_v(F x) {
  const F one = Vec::set1(1.0f), t = exp_v(Vec::mul(Vec::abs(x), Vec::set1(-2.0f)));
  return Vec::copysign(Vec::div(Vec::sub(one, t), Vec::add(one, t)), x);
}

// Abramowitz and Stegun 7.1.26; absolute error at most 1.5e-7.
inline F erf_v(F x) {
  const F a = Vec::abs(x), one = Vec::set1(1.0f);
  const F t = Vec::div(one, Vec::fma(a, Vec::set1(0.3275911f), one));
  F p = Vec::set1(1.061405429f);
  p = Vec::fma(p, t, Vec::set1(-1.453152027f));
  p = Vec::fma(p, t, Vec::set1(1.421413741f));
  p = Vec::fma(p, t, Vec::set1(-0.284496736f));
  p = Vec::fma(p, t, Vec::set1(0.254829592f));
  const F e = exp_v(Vec::sub(Vec::zero(), Vec::mul(a, a)));
  return Vec::copysign(Vec::sub(one, Vec::mul(Vec::mul(p, t), e)), x);
}

inline F activation_v(dejavu::Activation activation, F x) {
  const F half = Vec::set1(0.5f), one = Vec::set1(1.0f), threshold = Vec::set1(activation.threshold);
  switch (activation.kind) {
    case dejavu::Activation::relu:
    case dejavu::Activation::drelu:
      return Vec::max(x, Vec::zero());
    case dejavu::Activation::relu2:
      return Vec::mul(Vec::max(x, Vec::zero()), Vec::max(x, Vec::zero()));
    case dejavu::Activation::fatrelu:
      return Vec::above(x, threshold);
    case dejavu::Activation::shifted_relu:
      return Vec::max(Vec::sub(x, threshold), Vec::zero());
    case dejavu::Activation::silu:
      return Vec::div(x, Vec::add(one, exp_v(Vec::sub(Vec::zero(), x))));
    case dejavu::Activation::gelu:
      return Vec::mul(Vec::mul(half, x), Vec::add(one, erf_v(Vec::mul(x, Vec::set1(0.70710678f)))));
    default:
      break;  // gelu_tanh
  }
  const F inner = Vec::mul(Vec::mul(x, Vec::set1(0.79788456f)), Vec::fma(Vec::mul(x, x), Vec::set1(0.044715f), one));
  return Vec::mul(Vec::mul(half, x), Vec::add(one, tanh_v(inner)));
}

// body(vector of x, lanes) for every piece of x[n]; the last piece may be partial
template <typename Body>
inline void each(int n, Body body) {
  int i = 0;
  for (; i + W <= n; i += W) body(i, W);
  if (i < n) body(i, n - i);
}

inline F get(const float* p, int lanes) {
  return lanes == W ? Vec::load(p) : lanes == 4 ? Vec::load_four(p) : Vec::load_n(p, lanes);
}
inline void put(float* p, F x, int lanes) {
  lanes == W ? Vec::store(p, x) : lanes == 4 ? Vec::store_four(p, x) : Vec::store_n(p, x, lanes);
}

void activate(dejavu::Activation activation, const float* gate, const float* up, int n, float* out) {
  const bool both = activation.kind == dejavu::Activation::drelu;
  each(n, [&](int i, int lanes) {
    F x = activation_v(activation, get(gate + i, lanes));
    if (up) {
      const F u = get(up + i, lanes);
      x = Vec::mul(x, both ? Vec::max(u, Vec::zero()) : u);
    }
    put(out + i, x, lanes);
  });
}

void rms_norm(const float* x, const float* weight, float eps, int n, float* out) {
  F squares = Vec::zero();
  each(n, [&](int i, int lanes) {
    F v = get(x + i, lanes);
    squares = Vec::fma(v, v, squares);
  });
  const F scale = Vec::set1(1.0f / sqrtf(Vec::sum(squares) / float(n) + eps));
  each(n, [&](int i, int lanes) {
    put(out + i, Vec::mul(Vec::mul(get(x + i, lanes), scale), get(weight + i, lanes)), lanes);
  });
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int n, float* out) {
  F total = Vec::zero();
  each(n, [&](int i, int lanes) { total = Vec::add(total, get(x + i, lanes)); });
  const float mean = Vec::sum(total) / float(n);
  const F center = Vec::set1(mean);
  F squares = Vec::zero();
  each(n, [&](int i, int lanes) {
    F v = Vec::sub(get(x + i, lanes), center);
    if (lanes < W) {  // lanes beyond the end hold -mean
      float rest[W] = {};
      put(rest, v, lanes);
      v = Vec::load(rest);
    }
    squares = Vec::fma(v, v, squares);
  });
  const float variance = Vec::sum(squares) / float(n);
  const F scale = Vec::set1(1.0f / sqrtf(variance + eps));
  each(n, [&](int i, int lanes) {
    F v = Vec::mul(Vec::mul(Vec::sub(get(x + i, lanes), center), scale), get(weight + i, lanes));
    put(out + i, bias ? Vec::add(v, get(bias + i, lanes)) : v, lanes);
  });
}

void add(float* x, const float* y, int n) {
  each(n, [&](int i, int lanes) { put(x + i, Vec::add(get(x + i, lanes), get(y + i, lanes)), lanes); });
}

float softmax(float* x, int n) {
  float highest = x[0];
  int i = 0;
  if (n >= W) {
    F m = Vec::load(x);
    for (i = W; i + W <= n; i += W) m = Vec::max(m, Vec::load(x + i));
    highest = Vec::maximum(m);
  }
  for (; i < n; ++i) highest = x[i] > highest ? x[i] : highest;
  const F shift = Vec::set1(highest);
  float total = 0.0f;
  F totals = Vec::zero();
  each(n, [&](int j, int lanes) {
    F e = exp_v(Vec::sub(get(x + j, lanes), shift));
    put(x + j, e, lanes);
    if (lanes == W) {
      totals = Vec::add(totals, e);
    } else {
      for (int k = 0; k < lanes; ++k) total += x[j + k];
    }
  });
  total += Vec::sum(totals);
  const F scale = Vec::set1(1.0f / total);
  each(n, [&](int j, int lanes) { put(x + j, Vec::mul(get(x + j, lanes), scale), lanes); });
  return highest + logf(total);
}

void softcap(float* x, float cap, int n) {
  const F c = Vec::set1(cap), inverse = Vec::set1(1.0f / cap);
  each(n, [&](int i, int lanes) { put(x + i, Vec::mul(c, tanh_v(Vec::mul(get(x + i, lanes), inverse))), lanes); });
}

}  // namespace
