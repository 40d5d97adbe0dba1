#include "pool.h"

#include <unistd.h>

#include <chrono>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dejavu {
namespace {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb" ::: "memory");  // waits as long as x86's pause; `yield` does nothing on most cores
#endif
}

constexpr int kSpinsBeforeYield = 500;  // some 30 microseconds: longer waits mean that a thread lost its core
constexpr auto kSpinBeforeSleep = std::chrono::milliseconds(2);

constexpr int kMostThreads = 1024;

int checked(int threads) {
  if (threads >= 1 && threads <= kMostThreads) return threads;
  throw std::invalid_argument("threads is " + std::to_string(threads) + "; from 1 to " + std::to_string(kMostThreads) +
                              " are possible");
}

// Ends the process where a job throws: the other threads would wait at a barrier for ever.
void call(const std::function<void(int)>& job, int thread) noexcept { job(thread); }

}  // namespace

Pool::Pool(int threads) : size_(checked(threads)), process_(getpid()), crew_(new Crew) {
  crew_->threads.reserve(size_t(size_ - 1));
  try {
    for (int i = 1; i < size_; ++i) crew_->threads.emplace_back([this, i] { work(i); });
  } catch (...) {
    stop();
    throw;
  }
}

Pool::~Pool() {
  if (getpid() == process_) {
    stop();
    return;
  }
  // A fork has none of the threads, and can neither join them nor destroy what they may hold or wait for.
  static_cast<void>(crew_.release());
}

void Pool::stop() {
  {
    std::lock_guard<std::mutex> lock(crew_->mutex);
    stop_ = true;
    generation_.fetch_add(1);
  }
  crew_->wake.notify_all();
  for (auto& thread : crew_->threads) thread.join();
}

void Pool::run(const std::function<void(int)>& job) {
  if (size_ > 1) {
    if (getpid() != process_) {
      throw std::runtime_error(
          "this process is a fork of the one that started the threads: load the model after forking");
    }
    job_ = &job;
    running_.store(size_ - 1, std::memory_order_relaxed);
    generation_.fetch_add(1);  // sequentially consistent, as asleep_: a worker is seen asleep or sees the job
    if (asleep_.load() > 0) {
      std::lock_guard<std::mutex> lock(crew_->mutex);
      crew_->wake.notify_all();
    }
  }
  call(job, 0);
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
        std::unique_lock<std::mutex> lock(crew_->mutex);
        asleep_.fetch_add(1);
        crew_->wake.wait(lock, [&] { return generation_.load() != seen; });
        asleep_.fetch_sub(1);
      }
    }
    seen = generation_.load(std::memory_order_acquire);
    if (stop_) return;
    call(*job_, thread);
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
