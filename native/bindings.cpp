// The Python module `wkv._native`: arrays in, arrays filled, the interpreter's lock released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <iterator>
#include <stdexcept>
#include <string>

#include "bindings.hpp"
#include "wkv.hpp"

namespace nb = nanobind;

namespace {

using Array = nb::ndarray<nb::device::cpu, nb::c_contig>;
using ConstArray = nb::ndarray<nb::ro, nb::device::cpu, nb::c_contig>;
using Offsets = nb::ndarray<const int64_t, nb::ndim<1>, nb::device::cpu, nb::c_contig>;

template <class A> std::string shape_of(const A& x) {
    std::string s = "[";
    for (size_t i = 0; i < x.ndim(); ++i) s += (i ? ", " : "") + std::to_string(x.shape(i));
    return s + "]";
}

std::string name_of(nb::dlpack::dtype d) {
    constexpr const char* kinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
    return (d.code < std::size(kinds) ? kinds[d.code] : "kind" + std::to_string(d.code)) +
           std::to_string(d.bits);
}

template <class A>
void check(const char* name, const A& x, std::initializer_list<int64_t> shape,
           nb::dlpack::dtype dtype) {
    bool same = x.ndim() == shape.size() && x.dtype() == dtype;
    std::string expected = "[";
    size_t i = 0;
    for (int64_t n : shape) {
        same = same && static_cast<int64_t>(x.shape(i)) == n;
        expected += (i++ ? ", " : "") + std::to_string(n);
    }
    if (!same)
        throw std::invalid_argument(std::string(name) + " is " + name_of(x.dtype()) + " " +
                                    shape_of(x) + ": expected " + name_of(dtype) + " " + expected +
                                    "]");
}

wkv::DType dtype_of(nb::dlpack::dtype d) {
    if (d == nb::dtype<float>()) return wkv::DType::f32;
    if (d == nb::dtype<double>()) return wkv::DType::f64;
    if (d.lanes == 1 && d.bits == 16) {
        if (d.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Float)) return wkv::DType::f16;
        if (d.code == static_cast<uint8_t>(nb::dlpack::dtype_code::Bfloat)) return wkv::DType::bf16;
    }
    throw std::invalid_argument("k is " + name_of(d) +
                                ": expected float32, float64, float16 or bfloat16");
}

nb::dlpack::dtype wide(const ConstArray& k) {
    return k.dtype() == nb::dtype<double>() ? nb::dtype<double>() : nb::dtype<float>();
}

// k, v: [tokens, channels]; every size and offset is checked, so that no call can leave its arrays.
wkv::Inputs inputs(const ConstArray& k, const ConstArray& v, const ConstArray& decay,
                   const ConstArray& first, const ConstArray& num, const ConstArray& den,
                   const ConstArray& max, const Offsets& starts) {
    if (k.ndim() != 2) throw std::invalid_argument("k is " + shape_of(k) + ": expected [tokens, channels]");
    const int64_t tokens = k.shape(0), channels = k.shape(1);
    const int64_t rows = static_cast<int64_t>(starts.shape(0)) - 1;
    bool rises = rows >= 0 && starts(0) == 0 && starts(rows) == tokens;
    for (int64_t i = 0; rises && i < rows; ++i) rises = starts(i) <= starts(i + 1);
    if (!rises)
        throw std::invalid_argument("starts must rise from 0 to " + std::to_string(tokens) +
                                    " tokens without decreasing");
    const wkv::DType dtype = dtype_of(k.dtype());
    check("v", v, {tokens, channels}, k.dtype());
    check("decay", decay, {channels}, wide(k));
    check("first", first, {channels}, wide(k));
    check("num", num, {rows, channels}, wide(k));
    check("den", den, {rows, channels}, wide(k));
    check("max", max, {rows, channels}, wide(k));
    return {dtype, rows, tokens, channels, starts.data(), k.data(), v.data(),
            decay.data(), first.data(), num.data(), den.data(), max.data()};
}

int64_t segments(const wkv::Inputs& in) { return (in.tokens + wkv::kSegment - 1) / wkv::kSegment; }

// An array that is used where it lies: a copy would swallow what is written into it.
auto whole(const char* name) { return nb::arg(name).noconvert(); }

void bind_wkv(nb::module_& m) {
    using namespace nb::literals;
    m.attr("SEGMENT") = wkv::kSegment;

    m.def(
        "wkv_forward",
        [](ConstArray k, ConstArray v, ConstArray decay, ConstArray first, ConstArray num,
           ConstArray den, ConstArray max, Offsets starts, Array y, Array num_out, Array den_out,
           Array max_out, Array checkpoints, int threads) {
            const wkv::Inputs in = inputs(k, v, decay, first, num, den, max, starts);
            check("y", y, {in.tokens, in.channels}, k.dtype());
            check("num_out", num_out, {in.rows, in.channels}, wide(k));
            check("den_out", den_out, {in.rows, in.channels}, wide(k));
            check("max_out", max_out, {in.rows, in.channels}, wide(k));
            check("checkpoints", checkpoints, {segments(in), 4, in.channels}, wide(k));
            nb::gil_scoped_release release;
            wkv::wkv_forward(in,
                             {y.data(), num_out.data(), den_out.data(), max_out.data(),
                              checkpoints.data()},
                             threads);
        },
        whole("k"), whole("v"), whole("decay"), whole("first"), whole("num"), whole("den"),
        whole("max"), whole("starts"), whole("y"), whole("num_out"), whole("den_out"),
        whole("max_out"), whole("checkpoints"), "threads"_a);

    m.def(
        "wkv_backward",
        [](ConstArray k, ConstArray v, ConstArray decay, ConstArray first, ConstArray num,
           ConstArray den, ConstArray max, Offsets starts, ConstArray checkpoints, ConstArray grad_y,
           ConstArray grad_num_out, ConstArray grad_den_out, ConstArray grad_max_out, Array grad_k,
           Array grad_v, Array grad_decay, Array grad_first, Array grad_num, Array grad_den,
           Array grad_max, int threads) {
            const wkv::Inputs in = inputs(k, v, decay, first, num, den, max, starts);
            const auto w = wide(k);
            check("checkpoints", checkpoints, {segments(in), 4, in.channels}, w);
            check("grad_y", grad_y, {in.tokens, in.channels}, k.dtype());
            check("grad_num_out", grad_num_out, {in.rows, in.channels}, w);
            check("grad_den_out", grad_den_out, {in.rows, in.channels}, w);
            check("grad_max_out", grad_max_out, {in.rows, in.channels}, w);
            check("grad_k", grad_k, {in.tokens, in.channels}, k.dtype());
            check("grad_v", grad_v, {in.tokens, in.channels}, k.dtype());
            check("grad_decay", grad_decay, {in.channels}, w);
            check("grad_first", grad_first, {in.channels}, w);
            check("grad_num", grad_num, {in.rows, in.channels}, w);
            check("grad_den", grad_den, {in.rows, in.channels}, w);
            check("grad_max", grad_max, {in.rows, in.channels}, w);
            nb::gil_scoped_release release;
            wkv::wkv_backward(in,
                              {grad_y.data(), grad_num_out.data(), grad_den_out.data(),
                               grad_max_out.data(), checkpoints.data(), grad_k.data(),
                               grad_v.data(), grad_decay.data(), grad_first.data(),
                               grad_num.data(), grad_den.data(), grad_max.data()},
                              threads);
        },
        whole("k"), whole("v"), whole("decay"), whole("first"), whole("num"), whole("den"),
        whole("max"), whole("starts"), whole("checkpoints"), whole("grad_y"),
        whole("grad_num_out"), whole("grad_den_out"), whole("grad_max_out"), whole("grad_k"),
        whole("grad_v"), whole("grad_decay"), whole("grad_first"), whole("grad_num"),
        whole("grad_den"), whole("grad_max"), "threads"_a);

    m.def("instruction_sets", &wkv::instruction_sets,
          "Those this processor can run, best last.");
    m.def("instruction_set", &wkv::instruction_set, "The one in use.");
    m.def("set_instruction_set", &wkv::set_instruction_set, "name"_a,
          "Use another, for tests and measurements.");
}

}  // namespace

NB_MODULE(_native, m) {
    bind_wkv(m);
    bind_engine(m);
}
