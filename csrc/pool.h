// Threads that run one function together. Between jobs a worker spins for a moment, then sleeps: decoding calls come
// every few milliseconds, and waking a sleeping thread costs more than a layer.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace dejavu {

class Pool {
 public:
  // Throws std::invalid_argument unless there are 1 to 1024 threads, std::system_error where they cannot be had.
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int size() const { return size_; }
  // Runs job(thread) on every thread, the caller being thread 0; returns when all are done. One job at a time; a job
  // must not throw. Throws std::runtime_error in a fork of the process that made the pool: the threads are not there.
  void run(const std::function<void(int)>& job);
  // To be called by all threads of a job: none leaves before all have come.
  void barrier();

 private:
  struct Crew {
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> threads;
  };
  void work(int thread);
  void stop();

  const int size_;
  const int process_;  // that has the threads
  const std::function<void(int)>* job_ = nullptr;
  std::atomic<unsigned> generation_{0};
  std::atomic<int> running_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> asleep_{0};
  std::unique_ptr<Crew> crew_;
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

// body(i) for each i < n, on threads that last as long. Throws as Pool does.
template <typename Body>
void share_out(int n, int threads, Body body) {
  Pool pool(threads);
  pool.run([&](int thread) {
    const Range mine = share(n, 1, thread, threads);
    for (int i = mine.begin; i < mine.end; ++i) body(i);
  });
}

}  // namespace dejavu
