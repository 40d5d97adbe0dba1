// How rows of weights lie in memory. Every matrix of the model is kept as rows of one length (d_model): rows that are
// multiplied with the block's input (q, k, v, gate, up, head: a dot product each) and rows that are added to the
// block's output (o, down, transposed: an axpy each). What belongs to one neuron or one head lies side by side, in a
// bundle.
#pragma once

#include <cstddef>
#include <cstdint>

namespace dejavu {

// low3, low4 and low5 are what follows the leading five, four or three bits of int8 rows; see parts.h.
enum class Codec : int { f32 = 0, bf16 = 1, int8 = 2, int4 = 3, low3 = 4, low4 = 5, low5 = 6 };
inline constexpr int kCodecCount = 7;
inline constexpr bool is_grouped(Codec c) { return c >= Codec::int8; }
inline constexpr bool is_planes(Codec c) { return c >= Codec::int4; }

// Grouped codecs, all but f32 and bf16: groups of 32 weights share a float16 scale (int4: and a float16 minimum).
inline constexpr int kGroup = 32;
// Sixteen groups form a block, stored transposed: element o of a block is weight 2 * (o / 32) + o % 2 of group
// (o % 32) / 2. Lane l of a vector of 16 then holds group l, and one multiplication applies 16 scales.
// Groups after the last whole block (the tail) are stored in natural order.
inline constexpr int kBlockGroups = 16;
inline constexpr int kBlock = kGroup * kBlockGroups;

// Codes of fewer than eight bits (int4, and the later bits of int8) lie in planes of 1, 2 or 4 bits, those of a block
// one after the other. A block has eight vectors of 64 elements; byte 2 i (2 i + 1) of a vector is its element i (32 +
// i), stored order, so that four neighbouring bytes belong to one group. 8 / w vectors share 64 bytes of a plane of w
// bits, the first one in the lowest bits. Tail, behind all blocks: each plane as a whole, 4 w bytes of each group. Of
// four bits the first sixteen weights are in the lower halves; of fewer, in the order 0, 16, 1, 17 ..., the first four
// (of two bits: eight) are in the lowest bits.
inline constexpr int kVector = 64, kNibbleChunk = 2 * kVector;
struct Plane {
  int bits;   // of a code
  int shift;  // where they are in it
};
struct Planes {
  int count, bits;  // in all
  Plane plane[2];
};
inline constexpr Planes planes_of(Codec c) {
  return c == Codec::low5   ? Planes{2, 5, {{4, 0}, {1, 4}}}
         : c == Codec::low3 ? Planes{2, 3, {{2, 0}, {1, 2}}}
                            : Planes{1, 4, {{4, 0}, {0, 0}}};
}
struct Place {
  int byte, shift;
};
// Where element `o` of the blocks lies in rows of four bits.
inline constexpr Place nibble_of(int o) {
  return {o / kNibbleChunk * kVector + o % 32 * 2 + o / 32 % 2, o / kVector % 2 * 4};
}

// bf16: of each whole 32 weights the i-th and the (16 + i)-th share a word of four bytes, the first one its lower half:
// a shift and a mask make float32 of sixteen words. What is left of a row is stored in natural order.
inline constexpr int kFloatUnit = 32;
inline constexpr int bf16_place(int d, int i) {
  return i < d / kFloatUnit * kFloatUnit ? i / kFloatUnit * kFloatUnit + i % 16 * 2 + i % kFloatUnit / 16 : i;
}

inline constexpr int block_to_natural(int o) { return (o % 32 / 2) * kGroup + o / 32 * 2 + o % 2; }

struct RowLayout {
  Codec codec = Codec::f32;
  int d = 0;       // weights of a row
  int padded = 0;  // d rounded up to whole groups; padding is zero
  int groups = 0;
  int blocks = 0;  // whole blocks; permuted part of the row
  size_t code_bytes = 0;
  size_t scale_bytes = 0;  // groups * f16 scales; int4: then groups * f16 minima

  RowLayout() = default;
  RowLayout(Codec codec_, int d_) : codec(codec_), d(d_) {
    const bool grouped = is_grouped(codec);
    groups = grouped ? (d + kGroup - 1) / kGroup : 0;
    padded = grouped ? groups * kGroup : d;
    blocks = groups / kBlockGroups;
    switch (codec) {
      case Codec::f32:
        code_bytes = size_t(d) * 4;
        break;
      case Codec::bf16:
        code_bytes = size_t(d) * 2;
        break;
      case Codec::int8:
        code_bytes = size_t(padded), scale_bytes = size_t(groups) * 2;
        break;
      case Codec::int4:
        code_bytes = size_t(padded) / 2, scale_bytes = size_t(groups) * 4;
        break;
      default:
        code_bytes = size_t(groups) * 4 * size_t(planes_of(codec).bits), scale_bytes = size_t(groups) * 2;
        break;
    }
  }

  // Place of element `o` of the stored order in the natural order.
  int natural(int o) const { return o < blocks * kBlock ? o / kBlock * kBlock + block_to_natural(o % kBlock) : o; }
  // Groups after the last whole block.
  int tails() const { return groups - blocks * kBlockGroups; }
  // Bytes of the input vector in the form that dot products take (see Kernels::prepare); and of grouped codecs, where
  // in them the codes lie once more, as bytes (see GroupedInput).
  size_t bytes_at() const { return (size_t(padded) * 2 + size_t(groups) * 8 + 63) / 64 * 64; }
  size_t input_bytes() const {
    return is_grouped(codec) ? bytes_at() + size_t(padded) * 4 + size_t(kGroup) * 2 : size_t(d) * 4;
  }
  // Floats of an output accumulator: `padded` in stored order, then (int4) one per group for the minima.
  size_t output_floats() const { return size_t(padded) + size_t(codec == Codec::int4 ? groups : 0); }
  // From the accumulator of one token to that of the next: an odd number of cache lines, as the first-level cache has
  // room for few lines whose addresses differ by a power of two.
  size_t output_stride() const { return (output_floats() + 15) / 16 * 16 | 16; }
};

struct Row {
  const uint8_t* codes;
  const uint8_t* scales;
};

// `count` bundles of `rows` rows: [codes of row 0, codes of row 1, ..., scales of row 0, ...], padded to 64 bytes.
struct Bundles {
  RowLayout layout;
  int rows = 0;
  int count = 0;
  size_t stride = 0;
  const uint8_t* base = nullptr;

  Bundles() = default;
  Bundles(RowLayout layout_, int rows_, int count_, const uint8_t* base_ = nullptr)
      : layout(layout_), rows(rows_), count(count_), base(base_) {
    stride = (size_t(rows) * (layout.code_bytes + layout.scale_bytes) + 63) / 64 * 64;
  }
  size_t bytes() const { return stride * size_t(count); }
  Row row(int bundle, int r) const {
    const uint8_t* b = base + stride * size_t(bundle);
    return {b + size_t(r) * layout.code_bytes, b + size_t(rows) * layout.code_bytes + size_t(r) * layout.scale_bytes};
  }
};

// The order in which n rows are read: as kStreams sequences side by side, which come from memory about one and a half
// times as fast as one (docs/kernels.md).
struct Streams {
  static constexpr int kStreams = 4;
  int each, whole;
  explicit Streams(int n) : each(n / kStreams), whole(each * kStreams) {}
  int operator()(int i) const {
    return i < whole ? int(unsigned(i) % kStreams) * each + int(unsigned(i) / kStreams) : i;
  }
};

// Rows of matrices without neurons or heads (embedding, head, projections) go in bundles of this many.
inline constexpr int kPlainRows = 16;

// Encodes row-major float32 [count * rows, d] into bundles; padding rows and bytes are zero. The definition of each
// codec is the NumPy twin, dejavu/codecs.py; the two agree bit for bit.
enum class PackResult { ok, not_finite, out_of_range };  // out of range: a scale does not fit float16
PackResult pack_bundles(const RowLayout& layout, const float* src, int rows, int count, uint8_t* dst);
void unpack_row(const RowLayout& layout, Row row, float* dst);  // natural order, d floats
float half_to_float(uint16_t h);
uint16_t float_to_half(float f);

}  // namespace dejavu
