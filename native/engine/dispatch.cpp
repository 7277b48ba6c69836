#include "engine/dispatch.hpp"

#include <cstring>
#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace wkv::engine {

// A tests' build that is after threads, not arithmetic, does without the others.
#if !defined(WKV_PORTABLE_ONLY) && defined(__x86_64__)
#define WKV_ENGINE_X86
#elif !defined(WKV_PORTABLE_ONLY) && defined(__aarch64__)
#define WKV_ENGINE_ARM
#endif

extern const Kernels k_portable;
#if defined(WKV_ENGINE_X86)
extern const Kernels k_avx2, k_avx_vnni, k_avx512;
#elif defined(WKV_ENGINE_ARM)
extern const Kernels k_neon;
#endif

namespace {

#if defined(WKV_ENGINE_X86)
// __builtin_cpu_supports also asks whether the operating system saves the wide registers. GCC 12
// does not know "avxvnni" by name, so CPUID leaf 7.1 is read directly.
bool has_avx_vnni() {
  uint32_t a = 7, b = 0, c = 1, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (a >> 4 & 1) != 0;
}
#endif

std::vector<const Kernels*> usable() {
  std::vector<const Kernels*> all;
#if defined(WKV_ENGINE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni"))
    all.push_back(&k_avx512);
  if (avx2 && has_avx_vnni()) all.push_back(&k_avx_vnni);
  if (avx2) all.push_back(&k_avx2);
#elif defined(WKV_ENGINE_ARM)
#if defined(__linux__)
  constexpr unsigned long dot_product = 1ul << 20;  // HWCAP_ASIMDDP
  if (getauxval(AT_HWCAP) & dot_product) all.push_back(&k_neon);
#else
  all.push_back(&k_neon);  // every Apple silicon has it
#endif
#endif
  all.push_back(&k_portable);
  return all;
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels* k : usable()) names.emplace_back(k->name);
  return names;
}

const Kernels& kernels(const std::string& name) {
  const auto all = usable();
  if (name.empty()) return *all.front();
  std::string known;
  for (const Kernels* k : all) {
    if (name == k->name) return *k;
    known += (known.empty() ? "" : ", ") + std::string(k->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' cannot run here: choose from " + known);
}

int list_steps(const Layout& l, uint8_t* x) {
  const int steps = block_steps(l.format);
  const size_t bytes = l.format == Format::bf16 || l.format == Format::q4 ? 8 : 4;
  int total = 0;
  for (int b = 0; b < l.blocks; ++b) {
    uint8_t* list = x + l.steps + size_t(b) * size_t(steps);
    const uint8_t* q = x + size_t(b) * size_t(steps) * bytes;
    int count = 0;
    for (int j = 0; j < steps; ++j) {
      uint32_t u[2] = {0, 0};
      std::memcpy(u, q + size_t(j) * bytes, bytes);
      list[count] = uint8_t(j);
      count += (u[0] | u[1]) != 0;
    }
    x[l.counts + size_t(b)] = uint8_t(count);
    total += count;
  }
  return total;
}

}  // namespace wkv::engine
