// The threads of one engine. All of them run one function together and meet at barriers inside it;
// a thread that waits spins for a moment, then lets others run, then sleeps.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace wkv::engine {

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return count_; }
  // Calls work(0) here and work(1) … work(threads − 1) on the others; returns when all are done.
  void run(const std::function<void(int)>& work);
  // Inside work: returns when every thread has called it as often.
  void barrier();

 private:
  void start();
  void serve(int index, uint32_t epoch);
  void wait(const std::atomic<uint32_t>& value, uint32_t old, std::atomic<int>& sleepers, long patience_us);

  const int count_;
  int process_ = 0;
  const std::function<void(int)>* work_ = nullptr;
  std::unique_ptr<std::vector<std::thread>> workers_;
  bool stop_ = false;
  // Each on a line of its own: they are written by different threads.
  alignas(64) std::atomic<uint32_t> epoch_{0};
  alignas(64) std::atomic<int> idle_sleepers_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  alignas(64) std::atomic<int> barrier_sleepers_{0};
};

}  // namespace wkv::engine
