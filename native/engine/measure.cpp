#include "engine/measure.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>

#include "engine/dispatch.hpp"
#include "engine/pool.hpp"

namespace wkv::engine {

namespace {

double seconds(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double read_bandwidth(size_t bytes, int threads, int repeats, const std::string& instruction_set) {
  const Kernels& k = kernels(instruction_set);
  Pool pool(threads);
  const size_t each = bytes / size_t(pool.threads()) / 4096 * 4096;
  if (each == 0) return 0;
  const std::unique_ptr<uint8_t[]> data(new uint8_t[each * size_t(pool.threads())]);
  std::atomic<uint64_t> sum{0};
  pool.run([&](int t) { std::memset(data.get() + each * size_t(t), t + 1, each); });
  double best = 0;
  for (int i = 0; i < repeats; ++i) {
    const double took = seconds([&] {
      pool.run([&](int t) { sum += k.read(data.get() + each * size_t(t), each); });
    });
    best = std::max(best, double(each) * double(pool.threads()) / took);
  }
  return sum.load() == 1 ? 0 : best;  // the sum is used, so the reads cannot be left out
}

double product_peak(Format format, int threads, const std::string& instruction_set) {
  const Kernels& k = kernels(instruction_set);
  Pool pool(threads);
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    std::atomic<double> done{0};
    const double took = seconds([&] {
      pool.run([&](int) {
        float sink[16];
        const double n = k.peak(format, 400000, sink);
        double old = done.load();
        while (!done.compare_exchange_weak(old, old + n)) {
        }
      });
    });
    best = std::max(best, done.load() / took);
  }
  return best;
}

}  // namespace wkv::engine
