// Moving memory: a transpose, and reading for the measure of bandwidth. Included after math.h.
#pragma once

#include "math.h"

namespace {

// Blocked so that both sides stay in cache lines; the inner block is left to the compiler.
void transpose(const float* src, size_t src_ld, int rows, int cols, float* dst, size_t dst_ld) {
  constexpr int kTile = 16;
  for (int r = 0; r < rows; r += kTile) {
    for (int c = 0; c < cols; c += kTile) {
      const int nr = rows - r < kTile ? rows - r : kTile, nc = cols - c < kTile ? cols - c : kTile;
      for (int j = 0; j < nc; ++j) {
        for (int i = 0; i < nr; ++i) {
          dst[size_t(c + j) * dst_ld + size_t(r + i)] = src[size_t(r + i) * src_ld + size_t(c + j)];
        }
      }
    }
  }
}

// Reads n floats once, as `Streams` sequences side by side.
template <int Streams>
F read(const float* p, size_t n) {
  constexpr int kVectors = 8 / Streams;
  constexpr size_t step = kVectors * W;
  constexpr size_t kAhead = 2048 / Streams;  // floats; without it one core does not keep enough lines under way
  const size_t length = n / Streams;
  F acc[8];
  for (int i = 0; i < 8; ++i) acc[i] = Vec::zero();
  for (size_t i = 0; i + step <= length; i += step) {
    for (int s = 0; s < Streams; ++s) {
      const float* at = p + size_t(s) * length + i;
      for (size_t line = 0; line < step; line += 16) Vec::prefetch(at + line + kAhead);
      for (int v = 0; v < kVectors; ++v) {
        acc[s * kVectors + v] = Vec::max(acc[s * kVectors + v], Vec::load(at + v * W));
      }
    }
  }
  for (int i = 1; i < 8; ++i) acc[0] = Vec::max(acc[0], acc[i]);
  return acc[0];
}

uint64_t read(const void* data, size_t bytes, int streams) {
  const float* p = (const float*)data;
  const size_t n = bytes / 4;
  const F found = streams == 8 ? read<8>(p, n) : streams == 4 ? read<4>(p, n) : read<1>(p, n);
  return uint64_t(Vec::maximum(found));  // what it is does not matter; that it depends on every byte does
}

}  // namespace
