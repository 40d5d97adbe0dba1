// Attention over one head's cache, for every type of K and V. Included after math.h.
#pragma once

#include "rows_common.h"

namespace {

using dejavu::kKeyTile;
using dejavu::KvType;

template <KvType T>
inline F load_kv(const void* base, size_t index) {
  if constexpr (T == KvType::f32) return Vec::load((const float*)base + index);
  if constexpr (T == KvType::f16) return Vec::load_f16((const uint16_t*)base + index);
  if constexpr (T == KvType::bf16) return Vec::load_bf16((const uint16_t*)base + index);
  if constexpr (T == KvType::int8) return Vec::load_i8((const int8_t*)base + index);
}

// Positions between what is read and what is fetched meanwhile: 8 KB of a head of 64 numbers in f16, the best of 16, 32
// and 64 on an EPYC.
constexpr int kAhead = 64;

// Fetches `n` numbers of a head's keys or values in a block, `offset` behind the first of `position`. Behind the last
// one that is read, `end`, come those of `next`, the block that is read after it, or null.
template <KvType T>
inline void fetch_kv(const void* block, const void* next, int head_dim, int end, int position, int offset, int n) {
  constexpr size_t size = T == KvType::f32 ? 4 : T == KvType::int8 ? 1 : 2;
  if (position >= end) {
    if (!next) return;
    block = next, position -= end;
  }
  const char* p = (const char*)block + (size_t(position) * size_t(head_dim) + size_t(offset)) * size;
  for (size_t at = 0; at < size_t(n) * size; at += 64) Vec::prefetch(p + at);
}

template <KvType T>
inline float get_kv(const void* base, size_t index) {
  if constexpr (T == KvType::f32) return ((const float*)base)[index];
  if constexpr (T == KvType::f16) return dejavu::half_to_float(((const uint16_t*)base)[index]);
  if constexpr (T == KvType::int8) return float(((const int8_t*)base)[index]);
  if constexpr (T == KvType::bf16) {
    const uint32_t bits = uint32_t(((const uint16_t*)base)[index]) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
  }
}

template <KvType T>
inline void put_kv(void* base, size_t index, float x) {
  if constexpr (T == KvType::f32) ((float*)base)[index] = x;
  if constexpr (T == KvType::f16) ((uint16_t*)base)[index] = to_f16(x);
  if constexpr (T == KvType::int8) ((int8_t*)base)[index] = int8_t(x);
  if constexpr (T == KvType::bf16) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    ((uint16_t*)base)[index] = uint16_t(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
}

// Query heads that share one pass over the keys and values of their group: their sums have to be in registers.
constexpr int kHeads = Vec::kTokens > 1 ? Vec::kTokens / 2 : 1;
static_assert(kHeads <= dejavu::kMostHeads, "the engine has room for the scores of so many");

template <KvType T, int N>
inline void scores_of(const float* q, const void* keys, const void* next, const float* scales, int head_dim, int begin,
                      int end, float scale, float* out, size_t ld) {
  constexpr int kChains = 4;
  for (int tile = begin; tile < end; tile += kKeyTile) {
    const size_t base = size_t(tile) * size_t(head_dim);
    for (int h = 0; h < kKeyTile; h += W) {
      F acc[N][kChains];
      DEJAVU_UNROLL for (int n = 0; n < N; ++n) {
        DEJAVU_UNROLL for (int c = 0; c < kChains; ++c) acc[n][c] = Vec::zero();
      }
      int i = 0;
      for (; i + kChains <= head_dim; i += kChains) {
        if (h == 0) fetch_kv<T>(keys, next, head_dim, end, tile + kAhead, i * kKeyTile, kChains * kKeyTile);
        DEJAVU_UNROLL for (int c = 0; c < kChains; ++c) {
          const F key = load_kv<T>(keys, base + size_t((i + c) * kKeyTile + h));
          DEJAVU_UNROLL for (int n = 0; n < N; ++n) {
            acc[n][c] = Vec::fma(Vec::set1(q[n * head_dim + i + c]), key, acc[n][c]);
          }
        }
      }
      for (; i < head_dim; ++i) {
        const F key = load_kv<T>(keys, base + size_t(i * kKeyTile + h));
        DEJAVU_UNROLL for (int n = 0; n < N; ++n) acc[n][0] = Vec::fma(Vec::set1(q[n * head_dim + i]), key, acc[n][0]);
      }
      F factor = Vec::set1(scale);
      if constexpr (T == KvType::int8) factor = Vec::mul(factor, Vec::load(scales + tile + h));
      DEJAVU_UNROLL for (int n = 0; n < N; ++n) {
        const F total = Vec::add(Vec::add(acc[n][0], acc[n][1]), Vec::add(acc[n][2], acc[n][3]));
        Vec::store(out + size_t(n) * ld + tile + h, Vec::mul(total, factor));
      }
    }
  }
}

template <KvType T>
void scores(const float* q, int heads, const void* keys, const void* next, const float* scales, int head_dim, int begin,
            int end, float scale, float* out, size_t ld) {
  each_tokens<kHeads>(heads, [&](auto together, int n) {
    scores_of<T, decltype(together)::value>(q + n * head_dim, keys, next, scales, head_dim, begin, end, scale,
                                            out + size_t(n) * ld, ld);
  });
}

// out[n][i, i + V vectors) += the weighted values of N heads: even and odd positions apart.
template <KvType T, int N, int V>
inline void mix_vectors(const float* weights, size_t ld, const void* values, const void* next, const float* scales,
                        int head_dim, int i, int begin, int end, float* out) {
  F acc[2][N][V];
  DEJAVU_UNROLL for (int n = 0; n < N; ++n) {
    DEJAVU_UNROLL for (int v = 0; v < V; ++v) {
      acc[0][n][v] = Vec::load(out + n * head_dim + i + v * W), acc[1][n][v] = Vec::zero();
    }
  }
  const auto add = [&](int j, F(*to)[V]) {
    F value[V];
    if (i == 0) fetch_kv<T>(values, next, head_dim, end, j + kAhead, 0, head_dim);
    DEJAVU_UNROLL for (int v = 0; v < V; ++v) {
      value[v] = load_kv<T>(values, size_t(j) * size_t(head_dim) + size_t(i + v * W));
    }
    DEJAVU_UNROLL for (int n = 0; n < N; ++n) {
      const float weight = weights[size_t(n) * ld + size_t(j)];
      const F w = Vec::set1(T == KvType::int8 ? weight * scales[j] : weight);
      DEJAVU_UNROLL for (int v = 0; v < V; ++v) to[n][v] = Vec::fma(value[v], w, to[n][v]);
    }
  };
  int j = begin;
  if (j % 2 && j < end) add(j++, acc[1]);
  for (; j + 2 <= end; j += 2) add(j, acc[0]), add(j + 1, acc[1]);
  if (j < end) add(j, acc[0]);
  DEJAVU_UNROLL for (int n = 0; n < N; ++n) {
    DEJAVU_UNROLL for (int v = 0; v < V; ++v) {
      Vec::store(out + n * head_dim + i + v * W, Vec::add(acc[0][n][v], acc[1][n][v]));
    }
  }
}

template <KvType T, int N>
inline void mix_of(const float* weights, size_t ld, const void* values, const void* next, const float* scales,
                   int head_dim, int begin, int end, float* out) {
  constexpr int kVectors = N == 1 ? 4 : 2;
  int i = 0;
  for (; i + kVectors * W <= head_dim; i += kVectors * W) {
    mix_vectors<T, N, kVectors>(weights, ld, values, next, scales, head_dim, i, begin, end, out);
  }
  for (; i + W <= head_dim; i += W) {
    mix_vectors<T, N, 1>(weights, ld, values, next, scales, head_dim, i, begin, end, out);
  }
  for (; i < head_dim; ++i) {
    for (int n = 0; n < N; ++n) {
      for (int j = begin; j < end; ++j) {
        const float weight = weights[size_t(n) * ld + size_t(j)];
        const float w = T == KvType::int8 ? weight * scales[j] : weight;
        out[n * head_dim + i] += w * get_kv<T>(values, size_t(j) * size_t(head_dim) + size_t(i));
      }
    }
  }
}

template <KvType T>
void mix(const float* weights, size_t ld, int heads, const void* values, const void* next, const float* scales,
         int head_dim, int begin, int end, float* out) {
  each_tokens<kHeads>(heads, [&](auto together, int n) {
    mix_of<T, decltype(together)::value>(weights + size_t(n) * ld, ld, values, next, scales, head_dim, begin, end,
                                         out + n * head_dim);
  });
}

// int8: one scale per position and head, largest magnitude / 127.
inline float kv_scale(const float* x, int n) {
  float highest = 0.0f;
  for (int i = 0; i < n; ++i) highest = fabsf(x[i]) > highest ? fabsf(x[i]) : highest;
  return highest / 127.0f;
}

template <KvType T>
void store_key(const float* k, int head_dim, int position, void* keys, float* scales) {
  const size_t at = size_t(position / kKeyTile * kKeyTile) * size_t(head_dim) + size_t(position % kKeyTile);
  float s = 0.0f;
  if constexpr (T == KvType::int8) s = scales[position] = kv_scale(k, head_dim);
  for (int i = 0; i < head_dim; ++i) {
    const float x = T == KvType::int8 ? (s > 0.0f ? rintf(k[i] / s) : 0.0f) : k[i];
    put_kv<T>(keys, at + size_t(i) * kKeyTile, x);
  }
}

template <KvType T>
void store_value(const float* v, int head_dim, int position, void* values, float* scales) {
  const size_t at = size_t(position) * size_t(head_dim);
  float s = 0.0f;
  if constexpr (T == KvType::int8) s = scales[position] = kv_scale(v, head_dim);
  for (int i = 0; i < head_dim; ++i) {
    const float x = T == KvType::int8 ? (s > 0.0f ? rintf(v[i] / s) : 0.0f) : v[i];
    put_kv<T>(values, at + size_t(i), x);
  }
}

template <KvType T>
void load_keys(const void* keys, const float* scales, int head_dim, int tile, float* out, size_t ld) {
  const size_t base = size_t(tile) * kKeyTile * size_t(head_dim);
  for (int i = 0; i < head_dim; ++i) {
    for (int h = 0; h < kKeyTile; h += W) {
      F x = load_kv<T>(keys, base + size_t(i * kKeyTile + h));
      if constexpr (T == KvType::int8) x = Vec::mul(x, Vec::load(scales + tile * kKeyTile + h));
      Vec::store(out + size_t(i) * ld + h, x);
    }
  }
}

template <KvType T>
void load_value(const void* values, const float* scales, int head_dim, int position, float* out) {
  const size_t base = size_t(position) * size_t(head_dim);
  const float s = T == KvType::int8 ? scales[position] : 1.0f;
  int i = 0;
  for (; i + W <= head_dim; i += W) {
    F x = load_kv<T>(values, base + size_t(i));
    if constexpr (T == KvType::int8) x = Vec::mul(x, Vec::set1(s));
    Vec::store(out + i, x);
  }
  for (; i < head_dim; ++i) out[i] = get_kv<T>(values, base + size_t(i)) * s;
}

}  // namespace
