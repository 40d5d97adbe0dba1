// Threads that run one function together. Between jobs a worker spins for a moment, then sleeps: decoding calls come
// every few milliseconds, and waking a sleeping thread costs more than a layer.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace dejavu {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return size_; }
  // Runs job(thread) on every thread, the caller being thread 0; returns when all are done. One job at a time; a job
  // must not throw.
  void run(const std::function<void(int)>& job);
  // To be called by all threads of a job: none leaves before all have come.
  void barrier();

 private:
  void work(int thread);

  const int size_;
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
};

// Half-open range of `n` items, in units of `unit`, that falls to one of `threads` threads.
struct Range {
  int begin, end;
};
inline Range share(int n, int unit, int thread, int threads) {
  const long units = (n + unit - 1) / unit;
  const long begin = units * thread / threads * unit, end = units * (thread + 1) / threads * unit;
  return {int(begin < n ? begin : n), int(end < n ? end : n)};
}

}  // namespace dejavu
