#include "pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dejavu {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

constexpr int kSpinsBeforeYield = 500;  // some 30 microseconds: longer waits mean that a thread lost its core
constexpr auto kSpinBeforeSleep = std::chrono::milliseconds(2);

}  // namespace

Pool::Pool(int threads) : size_(threads) {
  for (int i = 1; i < threads; ++i) threads_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    generation_.fetch_add(1);
  }
  wake_.notify_all();
  for (auto& thread : threads_) thread.join();
}

void Pool::run(const std::function<void(int)>& job) {
  if (size_ > 1) {
    job_ = &job;
    running_.store(size_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1);  // sequentially consistent, as asleep_: a worker is seen asleep or sees the job
    if (asleep_.load() > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_all();
    }
  }
  job(0);
  for (int spins = 0; size_ > 1 && running_.load(std::memory_order_acquire) > 0; ++spins) {
    spins < kSpinsBeforeYield ? relax() : std::this_thread::yield();
  }
}

void Pool::work(int thread) {
  unsigned seen = 0;
  for (;;) {
    const auto start = std::chrono::steady_clock::now();
    for (int spins = 1; generation_.load(std::memory_order_acquire) == seen; ++spins) {
      relax();
      if (spins % 1024 == 0 && std::chrono::steady_clock::now() - start > kSpinBeforeSleep) {
        std::unique_lock<std::mutex> lock(mutex_);
        asleep_.fetch_add(1);
        wake_.wait(lock, [&] { return generation_.load() != seen; });
        asleep_.fetch_sub(1);
      }
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    (*job_)(thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void Pool::barrier() {
  if (size_ == 1) return;
  const unsigned phase = phase_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    phase_.store(phase + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; phase_.load(std::memory_order_acquire) == phase; ++spins) {
    spins < kSpinsBeforeYield ? relax() : std::this_thread::yield();
  }
}

}  // namespace dejavu
