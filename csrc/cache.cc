#include "cache.h"

#include <cstring>

#include "memory.h"

namespace dejavu {

BlockStore::~BlockStore() {
  for (const auto& [bytes, block] : kept_) deallocate(block);
}

void* BlockStore::take(size_t bytes) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& found : kept_) {
      if (found.first != bytes) continue;
      void* block = found.second;
      found = kept_.back();
      kept_.pop_back();
      bytes_ -= bytes;
      return block;
    }
  }
  return allocate(bytes);
}

void BlockStore::give(void* block, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (bytes_ + bytes > kMost || kept_.size() == kBlocks) return deallocate(block);
  kept_.emplace_back(bytes, block);
  bytes_ += bytes;
}

Cache::Cache(KvType type, int layers, int kv_heads, int head_dim, uint64_t owner, std::shared_ptr<BlockStore> store)
    : type_(type), owner_(owner), layers_(layers), kv_heads_(kv_heads), head_dim_(head_dim), store_(std::move(store)) {
  size_t piece = size_t(kCacheBlock) * size_t(head_dim) * kv_element_size(type);
  if (type == KvType::int8) piece += size_t(kCacheBlock) * sizeof(float);
  piece_bytes_ = (piece + 63) / 64 * 64;
  block_bytes_ = piece_bytes_ * 2 * size_t(layers) * size_t(kv_heads);
}

std::shared_ptr<void> Cache::new_block() const {
  const auto give_back = [store = store_, bytes = block_bytes_](void* block) { store->give(block, bytes); };
  std::shared_ptr<void> block(store_->take(block_bytes_), give_back);
  // Kernels read whole tiles of keys: what was never written must be finite.
  std::memset(block.get(), 0, block_bytes_);
  return block;
}

void Cache::truncate(int length) {
  length_ = length;
  blocks_.resize(size_t(block_count(length)));
  for (int& have : have_) have = have < length ? have : length;
}

void Cache::track(int buffer, size_t input_bytes) {
  if (tracking()) return;
  input_bytes_ = input_bytes, input_lines_ = (input_bytes + sizeof(Line) - 1) / sizeof(Line);
  have_.assign(size_t(layers_) * size_t(kv_heads_), length_);
  inputs_.resize(size_t(layers_) * size_t(buffer) * input_lines_);
  buffer_ = buffer;  // last: where there is no memory, it does not track
}

void Cache::stop_tracking() {
  buffer_ = 0;
  have_.clear();
  std::vector<Line>().swap(inputs_);
}

int Cache::complete(int layer, int head, int length) {
  int& have = have_[size_t(layer * kv_heads_ + head)];
  const int were = length - have;
  have = length;
  return were;
}

void Cache::keep_input(int layer, int position, const void* input) {
  std::memcpy(const_cast<void*>(kept_input(layer, position)), input, input_bytes_);
}

std::unique_ptr<Cache> Cache::fork() const {
  auto copy = std::make_unique<Cache>(type_, layers_, kv_heads_, head_dim_, owner_, store_);
  copy->length_ = length_;
  copy->blocks_ = blocks_;
  copy->blocks_.resize(size_t(block_count(length_)));
  copy->buffer_ = buffer_, copy->input_bytes_ = input_bytes_, copy->input_lines_ = input_lines_;
  copy->have_ = have_, copy->inputs_ = inputs_;
  return copy;
}

void Cache::reserve(int count) {
  int from = length_;  // the first position that may be written
  for (int have : have_) from = tracking() && have < from ? have : from;
  const int first = from / kCacheBlock;
  for (int b = first; b < block_count(length_ + count); ++b) {
    if (size_t(b) >= blocks_.size()) {
      blocks_.push_back(new_block());
    } else if (blocks_[size_t(b)].use_count() > 1) {
      auto own = new_block();
      std::memcpy(own.get(), blocks_[size_t(b)].get(), block_bytes_);
      blocks_[size_t(b)] = std::move(own);
    }
  }
}

}  // namespace dejavu
