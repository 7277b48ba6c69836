// The engine's part of `wkv._native`.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "bindings.hpp"
#include "engine/engine.hpp"
#include "engine/measure.hpp"

namespace nb = nanobind;
using namespace nb::literals;
namespace we = wkv::engine;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::device::cpu, nb::c_contig>;
using Floats = nb::ndarray<const float, nb::device::cpu, nb::c_contig>;
using Floats2 = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu, nb::c_contig>;
using Out3 = nb::ndarray<float, nb::ndim<3>, nb::device::cpu, nb::c_contig>;
using In3 = nb::ndarray<const float, nb::ndim<3>, nb::device::cpu, nb::c_contig>;
using Packed = std::tuple<Bytes, std::string, int, int, int>;  // data, format, rows, cols, lanes
using Numpy = nb::ndarray<nb::numpy, float, nb::c_contig>;
using NumpyBytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>, nb::c_contig>;

// An uninitialised array whose first byte lies on a line of the cache.
uint8_t* aligned(size_t bytes) {
    return static_cast<uint8_t*>(::operator new(std::max<size_t>(bytes, 64), std::align_val_t(64)));
}
nb::capsule owner(uint8_t* p) {
    return nb::capsule(p, [](void* q) noexcept { ::operator delete(q, std::align_val_t(64)); });
}
Numpy new_floats(std::vector<size_t> shape) {
    size_t n = sizeof(float);
    for (size_t s : shape) n *= s;
    uint8_t* p = aligned(n);
    return Numpy(p, shape.size(), shape.data(), owner(p));
}

we::Matrix shape_of(const std::string& format, int rows, int cols, int lanes) {
    we::Matrix m;
    m.format = we::format_from_name(format.c_str());
    m.rows = rows;
    m.cols = cols;
    m.lanes = lanes;
    if (rows < 1 || cols < 1 || rows > (1 << 24) || cols > (1 << 20))
        throw std::invalid_argument("a matrix of " + std::to_string(rows) + " × " + std::to_string(cols) +
                                    " is out of bounds");
    if (lanes != 1 && lanes != 4) throw std::invalid_argument("lanes must be 1 or 4");
    return m;
}

we::Matrix matrix(const Packed& p, const std::string& name = "matrix") {
    const auto& [data, format, rows, cols, lanes] = p;
    we::Matrix m = shape_of(format, rows, cols, lanes);
    if (data.shape(0) != m.bytes())
        throw std::invalid_argument(name + " has " + std::to_string(data.shape(0)) + " bytes: " + format + " [" +
                                    std::to_string(rows) + ", " + std::to_string(cols) + "] takes " +
                                    std::to_string(m.bytes()));
    if (reinterpret_cast<uintptr_t>(data.data()) % 4 != 0)
        throw std::invalid_argument(name + " is not aligned to 4 bytes");
    m.data = data.data();
    return m;
}

struct Cancel {
    std::atomic<bool> flag{false};
};

struct PyEngine {
    nb::object keep;  // the arrays that the weights point into
    std::unique_ptr<we::Engine> engine;

    PyEngine(nb::dict numbers, nb::dict vectors, nb::dict matrices, int threads, const std::string& isa) {
        keep = nb::make_tuple(vectors, matrices);
        we::Weights w;
        const auto number = [&](const char* key) { return nb::cast<int>(numbers[key]); };
        w.hidden = number("hidden");
        w.attention = number("attention");
        w.ffn = number("ffn");
        w.vocab = number("vocab");
        w.epsilon = nb::cast<float>(numbers["epsilon"]);
        const int layers = number("layers");
        if (w.hidden < 1 || w.attention < 1 || w.ffn < 1 || w.vocab < 1 || layers < 1)
            throw std::invalid_argument("every size must be at least 1");
        if (threads < 1 || threads > 1024)
            throw std::invalid_argument("threads is " + std::to_string(threads) + ": give 1 to 1024");

        const auto vector = [&](const std::string& name, int size) {
            if (!vectors.contains(name.c_str())) throw std::invalid_argument("vector " + name + " is missing");
            const auto a = nb::cast<Floats>(vectors[name.c_str()]);
            if (a.ndim() != 1 || int64_t(a.shape(0)) != size)
                throw std::invalid_argument("vector " + name + " must be [" + std::to_string(size) + "]");
            return a.data();
        };
        const auto find = [&](const std::string& name, int rows, int cols, int lanes) {
            if (!matrices.contains(name.c_str())) throw std::invalid_argument("matrix " + name + " is missing");
            const we::Matrix m = matrix(nb::cast<Packed>(matrices[name.c_str()]), name);
            if (m.rows != rows || m.cols != cols || m.lanes != lanes)
                throw std::invalid_argument("matrix " + name + " must be [" + std::to_string(rows) + ", " +
                                            std::to_string(cols) + "] of " + std::to_string(lanes) + " lanes");
            return m;
        };
        const int d = w.hidden, a = w.attention, f = w.ffn;
        w.ln0_weight = vector("blocks.0.ln0.weight", d);
        w.ln0_bias = vector("blocks.0.ln0.bias", d);
        w.ln_out_weight = vector("ln_out.weight", d);
        w.ln_out_bias = vector("ln_out.bias", d);
        w.embedding = find("emb.weight", w.vocab, d, 1);
        w.head = find("head.weight", w.vocab, d, 1);
        for (int i = 0; i < layers; ++i) {
            const std::string at = "blocks." + std::to_string(i) + ".";
            we::Layer l;
            l.ln1_weight = vector(at + "ln1.weight", d);
            l.ln1_bias = vector(at + "ln1.bias", d);
            l.ln2_weight = vector(at + "ln2.weight", d);
            l.ln2_bias = vector(at + "ln2.bias", d);
            l.decay = vector(at + "att.decay", a);
            l.first = vector(at + "att.time_first", a);
            l.mix_k = vector(at + "att.time_mix_k", d);
            l.mix_v = vector(at + "att.time_mix_v", d);
            l.mix_r = vector(at + "att.time_mix_r", d);
            l.ffn_mix_k = vector(at + "ffn.time_mix_k", d);
            l.ffn_mix_r = vector(at + "ffn.time_mix_r", d);
            l.key = find(at + "att.key.weight", a, d, 1);
            l.value = find(at + "att.value.weight", a, d, 1);
            l.receptance = find(at + "att.receptance.weight", a, d, 1);
            l.output = find(at + "att.output.weight", d, a, 1);
            l.ffn_key = find(at + "ffn.key.weight", f, d, 1);
            l.ffn_value = find(at + "ffn.value.weight", d, f, 4);
            l.ffn_receptance = find(at + "ffn.receptance.weight", d, d, 1);
            w.layers.push_back(l);
        }
        engine = std::make_unique<we::Engine>(std::move(w), threads, isa);
    }

    // Returns "done", "cancelled" or "not finite". Every array is checked against every other.
    std::string forward(nb::ndarray<const int32_t, nb::ndim<1>, nb::device::cpu, nb::c_contig> tokens,
                        nb::ndarray<const int64_t, nb::ndim<1>, nb::device::cpu, nb::c_contig> starts,
                        std::vector<In3> before, std::vector<Out3> after,
                        nb::ndarray<const int64_t, nb::ndim<1>, nb::device::cpu, nb::c_contig> wanted,
                        nb::ndarray<float, nb::ndim<2>, nb::device::cpu, nb::c_contig> logits,
                        const Cancel* cancel) {
        const we::Weights& w = engine->weights();
        const int64_t total = int64_t(tokens.shape(0)), batch = int64_t(starts.shape(0)) - 1;
        const auto bad = [](const std::string& what) -> void { throw std::invalid_argument(what); };
        if (batch < 0 || starts(0) != 0 || starts(size_t(batch)) != total) bad("starts must run from 0 to the number of tokens");
        for (int64_t i = 0; i < batch; ++i)
            if (starts(size_t(i)) > starts(size_t(i) + 1)) bad("starts must not decrease");
        for (int64_t i = 0; i < total; ++i)
            if (tokens(size_t(i)) < 0 || tokens(size_t(i)) >= w.vocab)
                bad("token " + std::to_string(tokens(size_t(i))) + " at position " + std::to_string(i) +
                    " is outside the vocabulary of " + std::to_string(w.vocab));
        for (size_t i = 0; i < wanted.shape(0); ++i)
            if (wanted(i) < 0 || wanted(i) >= total || (i > 0 && wanted(i) <= wanted(i - 1)))
                bad("wanted positions must rise within the tokens");
        if (logits.shape(0) != wanted.shape(0) || int64_t(logits.shape(1)) != w.vocab)
            bad("logits must be [" + std::to_string(wanted.shape(0)) + ", " + std::to_string(w.vocab) + "]");
        if (before.size() != 5 || after.size() != 5) bad("a state has five arrays");
        for (size_t i = 0; i < 5; ++i) {
            const int64_t width = i < 2 ? w.hidden : w.attention;
            const auto fits = [&](const auto& x) {
                return int64_t(x.shape(0)) == batch && x.shape(1) == w.layers.size() && int64_t(x.shape(2)) == width;
            };
            if (!fits(before[i]) || !fits(after[i]))
                bad("state arrays must be [" + std::to_string(batch) + ", " + std::to_string(w.layers.size()) +
                    ", " + std::to_string(width) + "]");
            if (static_cast<const float*>(after[i].data()) == before[i].data() && batch > 0) bad("the new state must not overwrite the old");
        }
        bool interrupted = false;
        auto asked = std::chrono::steady_clock::now();
        we::Request r{tokens.data(), starts.data(), int(batch),
                      {before[0].data(), before[1].data(), before[2].data(), before[3].data(), before[4].data()},
                      {after[0].data(), after[1].data(), after[2].data(), after[3].data(), after[4].data()},
                      wanted.data(), int64_t(wanted.shape(0)), logits.data(), {}};
        r.cancelled = [&] {
            if (cancel && cancel->flag.load(std::memory_order_relaxed)) return true;
            const auto now = std::chrono::steady_clock::now();
            if (now - asked < std::chrono::milliseconds(50)) return false;
            asked = now;
            nb::gil_scoped_acquire lock;  // Ctrl-C is only seen by whoever asks
            interrupted = PyErr_CheckSignals() != 0;
            return interrupted;
        };
        we::Outcome outcome;
        {
            nb::gil_scoped_release release;
            outcome = engine->forward(r);
        }
        if (interrupted) throw nb::python_error();
        return outcome == we::Outcome::done ? "done" : outcome == we::Outcome::cancelled ? "cancelled" : "not finite";
    }
};

void spread(int threads, int count, const auto& work) {
    threads = std::max(1, std::min(threads, count));
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t)
        others.emplace_back([&, t] { work(int(int64_t(count) * t / threads), int(int64_t(count) * (t + 1) / threads)); });
    work(0, count / threads);
    for (auto& o : others) o.join();
}

NumpyBytes pack(Floats2 source, const std::string& format, int lanes, std::optional<Floats> importance, int threads) {
    const we::Matrix m = shape_of(format, int(source.shape(0)), int(source.shape(1)), lanes);
    if (importance && (importance->ndim() != 1 || importance->shape(0) != source.shape(1)))
        throw std::invalid_argument("importance must have one value a column");
    uint8_t* out = aligned(m.bytes());
    const nb::capsule own = owner(out);
    {
        nb::gil_scoped_release release;
        spread(threads, m.panels(), [&](int first, int last) {
            we::pack_panels(m, first, last, source.data(), importance ? importance->data() : nullptr,
                            out + size_t(first) * m.panel_bytes());
        });
    }
    const size_t shape[] = {m.bytes()};
    return NumpyBytes(out, 1, shape, own);
}

Numpy unpack(const Packed& packed) {
    const we::Matrix m = matrix(packed);
    Numpy out = new_floats({size_t(m.rows), size_t(m.cols)});
    for (int r = 0; r < m.rows; ++r) we::unpack_row(m, r, out.data() + size_t(r) * size_t(m.cols));
    return out;
}

// x [n, cols] -> [n, rows] with the named kernels: for tests and measurements.
Numpy matmul(const Packed& packed, Floats2 x, const std::string& isa, bool sparse, int first, int last) {
    const we::Matrix m = matrix(packed);
    const we::Kernels& k = we::kernels(isa);
    if (int64_t(x.shape(1)) != m.cols) throw std::invalid_argument("inputs must have as many columns as the matrix");
    if (last < 0) last = m.panels();
    if (first < 0 || first > last || last > m.panels()) throw std::invalid_argument("no such panels");
    const size_t n = x.shape(0);
    const we::Layout l(m.format, m.cols);
    Numpy out = new_floats({n, size_t(m.rows)});
    std::fill(out.data(), out.data() + n * size_t(m.rows), std::nanf(""));
    const std::unique_ptr<uint8_t, void (*)(uint8_t*)> q(
        aligned(n * l.bytes), [](uint8_t* p) { ::operator delete(p, std::align_val_t(64)); });
    std::memset(q.get(), 0xa5, n * l.bytes);  // whatever a kernel needs must have been written
    for (size_t i = 0; i < n; ++i) k.quantize(x.data() + i * x.shape(1), l, q.get() + i * l.bytes);
    nb::gil_scoped_release release;
    if (!sparse) {
        k.matmul(m, first, last, q.get(), l, int(n), out.data(), size_t(m.rows));
    } else {
        for (size_t i = 0; i < n; ++i) {
            we::list_steps(l, q.get() + i * l.bytes);
            k.matvec_sparse(m, first, last, q.get() + i * l.bytes, l, out.data() + i * size_t(m.rows));
        }
    }
    return out;
}

// r ← σ(r)·wkv(k, v) for one sequence [T, A]; state [3, A] is replaced.
void recurrence(Floats2 k, Floats2 v, nb::ndarray<float, nb::ndim<2>, nb::device::cpu, nb::c_contig> r, Floats decay,
                Floats first, nb::ndarray<float, nb::ndim<2>, nb::device::cpu, nb::c_contig> state, const std::string& isa) {
    const size_t n = k.shape(0), a = k.shape(1);
    if (v.shape(0) != n || r.shape(0) != n || v.shape(1) != a || r.shape(1) != a || decay.size() != a ||
        first.size() != a || state.shape(0) != 3 || state.shape(1) != a)
        throw std::invalid_argument("shapes do not fit together");
    float* s = state.data();
    we::kernels(isa).wkv(k.data(), v.data(), r.data(), a, int(n), int(a), decay.data(), first.data(),
                         {s, s + a, s + 2 * a, s, s + a, s + 2 * a});
}

Numpy layer_norm(Floats2 x, Floats weight, Floats bias, float eps, const std::string& isa) {
    const size_t n = x.shape(0), d = x.shape(1);
    if (weight.size() != d || bias.size() != d) throw std::invalid_argument("shapes do not fit together");
    Numpy out = new_floats({n, d});
    for (size_t i = 0; i < n; ++i)
        we::kernels(isa).layer_norm(x.data() + i * d, weight.data(), bias.data(), eps, int(d), out.data() + i * d);
    return out;
}

}  // namespace

void bind_engine(nb::module_& m) {
    nb::class_<Cancel>(m, "Cancel", "A flag that another thread sets to stop a forward between layers.")
        .def(nb::init<>())
        .def("set", [](Cancel& c) { c.flag = true; })
        .def("clear", [](Cancel& c) { c.flag = false; })
        .def("is_set", [](const Cancel& c) { return c.flag.load(); });

    nb::class_<PyEngine>(m, "Engine")
        .def(nb::init<nb::dict, nb::dict, nb::dict, int, const std::string&>(), "numbers"_a, "vectors"_a,
             "matrices"_a, "threads"_a, "instruction_set"_a)
        .def("forward", &PyEngine::forward, "tokens"_a, "starts"_a, "before"_a, "after"_a, "wanted"_a, "logits"_a,
             "cancel"_a.none())
        .def_prop_ro("threads", [](const PyEngine& e) { return e.engine->threads(); })
        .def_prop_ro("instruction_set", [](const PyEngine& e) { return std::string(e.engine->instruction_set()); })
        .def_prop_ro("scratch_bytes", [](const PyEngine& e) { return e.engine->scratch_bytes(); })
        .def_prop_ro("density", [](const PyEngine& e) { return e.engine->density(); });

    m.def("engine_instruction_sets", &we::instruction_sets, "Those the engine can run here, best first.");
    m.def("packed_bytes",
          [](const std::string& format, int rows, int cols, int lanes) { return shape_of(format, rows, cols, lanes).bytes(); },
          "format"_a, "rows"_a, "cols"_a, "lanes"_a);
    m.def("aligned_bytes",
          [](size_t bytes) {
              uint8_t* p = aligned(bytes);
              const size_t shape[] = {bytes};
              return NumpyBytes(p, 1, shape, owner(p));
          },
          "bytes"_a, "Uninitialised memory that begins on a line of the cache.");
    m.def("pack", &pack, "source"_a, "format"_a, "lanes"_a, "importance"_a.none(), "threads"_a);
    m.def("unpack", &unpack, "packed"_a);
    m.def("matmul", &matmul, "packed"_a, "x"_a, "instruction_set"_a, "sparse"_a = false, "first"_a = 0, "last"_a = -1);
    m.def("recurrence", &recurrence, "k"_a, "v"_a, "r"_a, "decay"_a, "first"_a, "state"_a, "instruction_set"_a);
    m.def("layer_norm", &layer_norm, "x"_a, "weight"_a, "bias"_a, "eps"_a, "instruction_set"_a);
    m.def("read_bandwidth", &we::read_bandwidth, "bytes"_a, "threads"_a, "repeats"_a, "instruction_set"_a = "",
          nb::call_guard<nb::gil_scoped_release>());
    m.def("product_peak",
          [](const std::string& format, int threads, const std::string& isa) {
              nb::gil_scoped_release release;
              return we::product_peak(we::format_from_name(format.c_str()), threads, isa);
          },
          "format"_a, "threads"_a, "instruction_set"_a = "");
}
