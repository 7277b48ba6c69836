#include "wkv.hpp"

#include <algorithm>
#include <stdexcept>

#include "threads.hpp"
#include "wkv_kernels.hpp"

namespace wkv {
namespace {

struct InstructionSet {
    std::string name;
    const Kernels* kernels;
};

std::vector<InstructionSet> supported() {
    std::vector<InstructionSet> sets{{"baseline", &kernels_baseline}};
#ifdef WKV_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c"))
        sets.push_back({"avx2", &kernels_avx2});
    if (sets.size() == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        sets.push_back({"avx512", &kernels_avx512});
#endif
    return sets;
}

InstructionSet& chosen() {
    static InstructionSet set = supported().back();
    return set;
}

// Blocks of a few cache lines a token, smaller where rows are too few to keep the threads busy.
int64_t block_channels(const Inputs& in, int threads) {
    int64_t block = 64;
    while (block > 16 && in.rows * ((in.channels + block - 1) / block) < 2 * threads) block /= 2;
    return block;
}

// Below about this many tokens·channels a thread costs more than it saves.
constexpr int64_t kWorthAThread = 16384;

template <class Kernel> void over_blocks(const Inputs& in, int threads, const Kernel& kernel) {
    threads = static_cast<int>(
        std::clamp<int64_t>(in.tokens * in.channels / kWorthAThread, 1, std::max(threads, 1)));
    const int64_t block = block_channels(in, threads);
    const int64_t blocks = (in.channels + block - 1) / block;
    parallel_for(in.rows * blocks, threads, [&](int64_t task) {
        const int64_t c0 = task % blocks * block;
        kernel(task / blocks, c0, std::min(c0 + block, in.channels));
    });
}

template <class R>
void sum_rows(const std::vector<double>& rows, void* out, int64_t n, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t row = 0; row < n; ++row) sum += rows[row * channels + c];
        static_cast<R*>(out)[c] = static_cast<R>(sum);
    }
}

}  // namespace

void wkv_forward(const Inputs& in, const Outputs& out, int threads) {
    const auto kernel = chosen().kernels->forward[static_cast<int>(in.dtype)];
    over_blocks(in, threads,
                [&](int64_t row, int64_t c0, int64_t c1) { kernel(in, out, row, c0, c1); });
}

void wkv_backward(const Inputs& in, const Gradients& grad, int threads) {
    const auto kernel = chosen().kernels->backward[static_cast<int>(in.dtype)];
    std::vector<double> decay(in.rows * in.channels), first(in.rows * in.channels);
    over_blocks(in, threads, [&](int64_t row, int64_t c0, int64_t c1) {
        kernel(in, grad, decay.data(), first.data(), row, c0, c1);
    });
    const auto sum = in.dtype == DType::f64 ? sum_rows<double> : sum_rows<float>;
    sum(decay, grad.decay, in.rows, in.channels);
    sum(first, grad.first, in.rows, in.channels);
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const auto& set : supported()) names.push_back(set.name);
    return names;
}

std::string instruction_set() { return chosen().name; }

void set_instruction_set(const std::string& name) {
    for (const auto& set : supported())
        if (set.name == name) {
            chosen() = set;
            return;
        }
    std::string message = "instruction set '" + name + "' cannot run on this processor: choose from";
    for (const auto& set : supported()) message += " " + set.name;
    throw std::invalid_argument(message);
}

}  // namespace wkv
