#include "engine/pool.hpp"

#include <unistd.h>

#include <chrono>

namespace wkv::engine {

namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

constexpr int kSpins = 1000;          // some 40 µs: longer than a barrier takes when all run
constexpr long kBarrierPatience = 500;  // µs of giving way before sleeping, inside a forward
constexpr long kIdlePatience = 1500;    // and between two forwards: a sampler's time

}  // namespace

Pool::Pool(int threads) : count_(threads < 1 ? 1 : threads) { start(); }

Pool::~Pool() {
  if (process_ != int(getpid())) {
    workers_.release();  // a forked child has the records of the threads but not the threads
    return;
  }
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (auto& w : *workers_) w.join();
}

void Pool::start() {
  process_ = int(getpid());
  workers_ = std::make_unique<std::vector<std::thread>>();
  for (int i = 1; i < count_; ++i) workers_->emplace_back(&Pool::serve, this, i, epoch_.load());
}

void Pool::wait(const std::atomic<uint32_t>& value, uint32_t old, std::atomic<int>& sleepers,
                long patience_us) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(patience_us);
  do {
    for (int i = 0; i < 8; ++i) {
      if (value.load(std::memory_order_acquire) != old) return;
      std::this_thread::yield();
    }
  } while (std::chrono::steady_clock::now() < end);
  sleepers.fetch_add(1);
  while (value.load() == old) value.wait(old);
  sleepers.fetch_sub(1);
}

void Pool::barrier() {
  if (count_ == 1) return;
  const uint32_t now = generation_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
    arrived_.store(0, std::memory_order_relaxed);
    // Sequentially consistent on both sides: either this sees the sleeper or the sleeper sees this.
    generation_.fetch_add(1);
    if (barrier_sleepers_.load() > 0) generation_.notify_all();
  } else {
    wait(generation_, now, barrier_sleepers_, kBarrierPatience);
  }
}

void Pool::run(const std::function<void(int)>& work) {
  if (count_ == 1) return work(0);
  if (process_ != int(getpid())) {
    workers_.release();
    arrived_ = 0;
    idle_sleepers_ = barrier_sleepers_ = 0;
    start();
  }
  work_ = &work;
  epoch_.fetch_add(1);
  if (idle_sleepers_.load() > 0) epoch_.notify_all();
  work(0);
  barrier();
}

void Pool::serve(int index, uint32_t seen) {
  for (;;) {
    wait(epoch_, seen, idle_sleepers_, kIdlePatience);
    ++seen;
    if (stop_) return;
    (*work_)(index);
    barrier();
  }
}

}  // namespace wkv::engine
