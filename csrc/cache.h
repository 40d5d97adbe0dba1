// Keys and values of one sequence, in blocks of 128 positions that several sequences may share.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "kernels.h"

namespace dejavu {

inline constexpr int kCacheBlock = 128;

// Blocks that caches have given back: the system takes longer to hand out memory than a step takes to fill it.
class BlockStore {
 public:
  static constexpr size_t kMost = 64 << 20, kBlocks = 256;  // bytes and blocks that are kept
  BlockStore() { kept_.reserve(kBlocks); }
  BlockStore(const BlockStore&) = delete;
  ~BlockStore();
  void* take(size_t bytes);  // not initialised. Throws std::bad_alloc.
  void give(void* block, size_t bytes);

 private:
  std::mutex mutex_;
  std::vector<std::pair<size_t, void*>> kept_;
  size_t bytes_ = 0;
};

class Cache {
 public:
  // `owner`: the number of the engine whose keys and values they are, see Engine::owns; `store`: its blocks
  Cache(KvType type, int layers, int kv_heads, int head_dim, uint64_t owner = 0,
        std::shared_ptr<BlockStore> store = std::make_shared<BlockStore>());

  KvType type() const { return type_; }
  uint64_t owner() const { return owner_; }
  int length() const { return length_; }
  size_t bytes() const { return blocks_.size() * block_bytes_ + inputs_.size() * sizeof(Line); }
  void truncate(int length);            // 0 <= length <= length()
  std::unique_ptr<Cache> fork() const;  // shares blocks; a shared block is copied before it is written
  bool in_use = false;                  // by a call that runs without Python's lock; under which it is set and read

  // Makes room for `count` more positions, all blocks that they touch being this sequence's own. Throws std::bad_alloc.
  void reserve(int count);
  void advance(int count) { length_ += count; }

  // Policy `recompute`: which trailing positions lack K and V, per layer and head, and the layer inputs to compute them
  // from, prepared for dot products, for the last `buffer` positions. `length` counts the position that is being added.
  void track(int buffer, size_t input_bytes);  // starts with nothing missing; no effect if already tracking
  int tracked() const { return buffer_; }      // the buffer, or 0
  bool tracking() const { return buffer_ > 0; }
  void stop_tracking();
  int missing(int layer, int head, int length) const { return length - have_[size_t(layer * kv_heads_ + head)]; }
  int complete(int layer, int head, int length);  // all up to `length` are there now; returns how many were missing
  void keep_input(int layer, int position, const void* input);
  const void* kept_input(int layer, int position) const {
    return inputs_.data() + size_t(layer * buffer_ + position % buffer_) * input_lines_;
  }

  int block_count(int length) const { return (length + kCacheBlock - 1) / kCacheBlock; }
  // Base of one head's piece of a block; positions inside are 0..127.
  void* keys(int block, int layer, int head) const { return at(block, layer, head, 0); }
  void* values(int block, int layer, int head) const { return at(block, layer, head, 1); }
  float* key_scales(int block, int layer, int head) const { return scales_at(block, layer, head, 0); }
  float* value_scales(int block, int layer, int head) const { return scales_at(block, layer, head, 1); }

 private:
  struct alignas(64) Line {
    char bytes[64];
  };
  void* at(int block, int layer, int head, int which) const {
    char* p = static_cast<char*>(blocks_[size_t(block)].get());
    return p + (size_t(layer * kv_heads_ + head) * 2 + size_t(which)) * piece_bytes_;
  }
  float* scales_at(int block, int layer, int head, int which) const {
    if (type_ != KvType::int8) return nullptr;
    return reinterpret_cast<float*>(static_cast<char*>(at(block, layer, head, which)) +
                                    size_t(kCacheBlock) * size_t(head_dim_));
  }
  std::shared_ptr<void> new_block() const;

  KvType type_;
  uint64_t owner_;
  int layers_, kv_heads_, head_dim_;
  int length_ = 0, buffer_ = 0;
  size_t input_bytes_ = 0, input_lines_ = 0;
  std::vector<int> have_;     // [layers, kv_heads] positions that have K and V
  std::vector<Line> inputs_;  // [layers, buffer, input_lines]
  size_t piece_bytes_, block_bytes_;
  std::shared_ptr<BlockStore> store_;
  std::vector<std::shared_ptr<void>> blocks_;
};

}  // namespace dejavu
