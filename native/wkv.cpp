#include "wkv.hpp"

#include <algorithm>
#include <cstddef>
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
    // F16C is older than AVX2 and in every processor that has it; not all compilers can ask.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
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

// Below about this many tokens·channels a thread costs more than it saves.
constexpr int64_t kWorthAThread = 16384;

// Rows that one task takes together, so that short packed sequences do not each need a sum of
// gradients; does not depend on the number of threads, nor then does the order of summation.
constexpr int64_t kTokensTogether = 512;

struct Plan {
    int threads;
    std::vector<int64_t> groups;  // first row of each, and the number of rows
    int64_t block, blocks;        // channels in a block, blocks in a row

    Plan(const Inputs& in, int most_threads) : groups{0} {
        threads = static_cast<int>(
            std::clamp<int64_t>(in.tokens * in.channels / kWorthAThread, 1, std::max(most_threads, 1)));
        for (int64_t row = 1; row <= in.rows; ++row)
            if (row == in.rows || in.starts[row] - in.starts[groups.back()] >= kTokensTogether)
                groups.push_back(row);
        // Whole rows, unless they are too wide for a block or too few to keep the threads busy.
        const int64_t widest = kBlockBytes / (in.dtype == DType::f64 ? 8 : 4), narrowest = 64;
        const int64_t n_groups = std::max<int64_t>(groups.size() - 1, 1);
        blocks = std::max<int64_t>((in.channels + widest - 1) / widest, 1);
        if (threads > 1)
            blocks = std::clamp<int64_t>((2 * threads + n_groups - 1) / n_groups, blocks,
                                         std::max(blocks, in.channels / narrowest));
        block = ((in.channels + blocks - 1) / blocks + 15) / 16 * 16;
    }

    // kernel(group, row, c0, c1)
    template <class Kernel> void run(const Inputs& in, const Kernel& kernel) const {
        const int64_t n_groups = groups.size() - 1;
        parallel_for(n_groups * blocks, threads, [&](int64_t task) {
            const int64_t group = task / blocks, c0 = task % blocks * block;
            const int64_t c1 = std::min(c0 + block, in.channels);
            for (int64_t row = groups[group]; row < groups[group + 1] && c0 < c1; ++row)
                kernel(group, row, c0, c1);
        });
    }
};

template <class R>
void sum_groups(const std::vector<double>& parts, void* out, int64_t n, int64_t channels) {
    for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        for (int64_t group = 0; group < n; ++group) sum += parts[group * channels + c];
        static_cast<R*>(out)[c] = static_cast<R>(sum);
    }
}

struct alignas(64) Line {
    std::byte bytes[64];
};

}  // namespace

void wkv_forward(const Inputs& in, const Outputs& out, int threads) {
    const auto kernel = chosen().kernels->forward[static_cast<int>(in.dtype)];
    Plan(in, threads).run(in, [&](int64_t, int64_t row, int64_t c0, int64_t c1) {
        kernel(in, out, row, c0, c1);
    });
}

void wkv_backward(const Inputs& in, const Gradients& grad, int threads) {
    const auto kernel = chosen().kernels->backward[static_cast<int>(in.dtype)];
    const Plan plan(in, threads);
    const int64_t C = in.channels, n_groups = plan.groups.size() - 1;
    std::vector<double> decay(n_groups * C), first(n_groups * C);
    plan.run(in, [&](int64_t group, int64_t row, int64_t c0, int64_t c1) {
        thread_local std::vector<Line> scratch(kScratchBytes / sizeof(Line));
        kernel(in, grad, row, c0, c1, &decay[group * C], &first[group * C], scratch.data());
    });
    const auto sum = in.dtype == DType::f64 ? sum_groups<double> : sum_groups<float>;
    sum(decay, grad.decay, n_groups, C);
    sum(first, grad.first, n_groups, C);
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
