// The wkv operator in every instruction set, dtype and awkward size, and the threads it runs on:
// what the sanitizers watch, and what runs under emulation of another processor. Values are held
// to the recurrence in double (tests/ops/test_cpu.py holds gradients). Exits with 1 at a difference.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "threads.hpp"
#include "wkv.hpp"

using namespace wkv;

namespace {

void require(bool holds, const std::string& what) {
    if (holds) return;
    std::printf("failed: %s\n", what.c_str());
    std::exit(1);
}

// One call forward and back, in arrays of exactly the sizes that wkv.hpp names.
template <class E, class R> struct Call {
    int64_t rows, length, C, tokens = rows * length;
    std::vector<int64_t> starts;
    std::vector<E> k, v, y, grad_y, grad_k, grad_v;
    std::vector<R> decay, first, num, den, max, num_out, den_out, max_out, checkpoints;
    std::vector<R> grad_decay, grad_first, grad_num, grad_den, grad_max;

    Call(int64_t rows, int64_t length, int64_t C) : rows(rows), length(length), C(C) {
        for (int64_t row = 0; row <= rows; ++row) starts.push_back(row * length);
        for (auto* x : {&k, &v, &y, &grad_y, &grad_k, &grad_v}) x->resize(tokens * C);
        for (auto* x : {&decay, &first, &grad_decay, &grad_first}) x->resize(C);
        for (auto* x : {&num, &den, &max, &num_out, &den_out, &max_out, &grad_num, &grad_den,
                        &grad_max})
            x->resize(rows * C);
        checkpoints.resize((tokens + kSegment - 1) / kSegment * 4 * C);
        std::fill(max.begin(), max.end(), R(-1e38));
    }

    void run(DType dtype, int threads) {
        const Inputs in{dtype, rows, tokens, C, starts.data(), k.data(), v.data(), decay.data(),
                        first.data(), num.data(), den.data(), max.data()};
        wkv_forward(in, {y.data(), num_out.data(), den_out.data(), max_out.data(), checkpoints.data()},
                    threads);
        wkv_backward(in, {grad_y.data(), num_out.data(), den_out.data(), max_out.data(),
                          checkpoints.data(), grad_k.data(), grad_v.data(), grad_decay.data(),
                          grad_first.data(), grad_num.data(), grad_den.data(), grad_max.data()},
                     threads);
    }
};

template <class R> void values_equal_the_recurrence(DType dtype, double tolerance) {
    Call<R, R> call(2, 150, 37);
    std::mt19937 random(0);
    std::normal_distribution<R> normal;
    for (auto& x : call.k) x = 3 * normal(random);
    for (auto* xs : {&call.v, &call.grad_y, &call.first})
        for (auto& x : *xs) x = normal(random);
    for (auto& x : call.decay) x = -std::exp(normal(random));
    call.run(dtype, 3);
    double worst = 0;
    for (int64_t row = 0; row < call.rows; ++row)
        for (int64_t c = 0; c < call.C; ++c) {
            const double w = call.decay[c], u = call.first[c];
            double a = 0, b = 0, p = -1e38;
            for (int64_t t = call.starts[row]; t < call.starts[row + 1]; ++t) {
                const double k = call.k[t * call.C + c], v = call.v[t * call.C + c];
                double q = std::max(p, u + k), old = std::exp(p - q), now = std::exp(u + k - q);
                const double y = (old * a + now * v) / (old * b + now);
                worst = std::max(worst, std::fabs(y - double(call.y[t * call.C + c])));
                q = std::max(p + w, k), old = std::exp(p + w - q), now = std::exp(k - q);
                a = old * a + now * v, b = old * b + now, p = q;
            }
        }
    require(worst <= tolerance, instruction_set() + ": off by " + std::to_string(worst));

    const Call<R, R> before = call;
    call.run(dtype, 1);
    require(call.y == before.y && call.grad_k == before.grad_k &&
                call.grad_decay == before.grad_decay,
            instruction_set() + ": threads change the result");
}

void awkward_sizes_stay_inside_their_arrays() {
    for (int64_t C : {1, 3, 16, 17, 67, 1100, 2049})
        for (int64_t length : {0, 1, 63, 64, 65, 130})
            for (int64_t rows : {0, 1, 3}) {
                Call<float, float>(rows, length, C).run(DType::f32, 3);
                Call<uint16_t, float>(rows, length, C).run(DType::bf16, 2);
                Call<uint16_t, float>(rows, length, C).run(DType::f16, 2);
                Call<double, double>(rows, length, C).run(DType::f64, 4);
            }
    Call<float, float>(0, 0, 0).run(DType::f32, 2);
}

void tasks_run_once_from_any_caller() {
    std::atomic<int64_t> total{0}, thrown{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller)
        callers.emplace_back([&] {
            for (int i = 0; i < 500; ++i) {
                parallel_for(i % 13, 1 + i % 5, [&](int64_t) {
                    ++total;
                    if (i % 7 == 0) parallel_for(3, 2, [&](int64_t) { ++total; });
                });
                try {
                    parallel_for(5, 3, [](int64_t task) {
                        if (task == 2) throw std::runtime_error("task 2");
                    });
                } catch (const std::runtime_error&) {
                    ++thrown;
                }
            }
        });
    for (auto& caller : callers) caller.join();
    int64_t expected = 0;
    for (int i = 0; i < 500; ++i) expected += i % 13 * (i % 7 == 0 ? 4 : 1);
    require(total == 4 * expected, "tasks did not each run once");
    require(thrown == 4 * 500, "an exception was lost");
}

}  // namespace

int main() {
    for (const auto& name : instruction_sets()) {
        set_instruction_set(name);
        values_equal_the_recurrence<float>(DType::f32, 2e-6);
        values_equal_the_recurrence<double>(DType::f64, 1e-13);
        awkward_sizes_stay_inside_their_arrays();
        std::printf("%s: the wkv operator is right\n", name.c_str());
    }
    tasks_run_once_from_any_caller();
    std::printf("threads: every task ran once\n");
}
