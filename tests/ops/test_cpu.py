"""The native operator against the definition and against autograd of the plain loop."""

from __future__ import annotations

import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.test_scan import assert_same, inputs, states
from tests.oracles.wkv_loop import wkv_loop
from wkv import _native
from wkv.ops import cpu, wkv

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def run(*args, **kwargs):
    return wkv(*args, implementation="cpu", **kwargs)


@pytest.fixture(params=_native.instruction_sets())
def instruction_set(request):
    """Each instruction set that this processor runs, in turn."""
    before = _native.instruction_set()
    _native.set_instruction_set(request.param)
    yield request.param
    _native.set_instruction_set(before)


@pytest.fixture
def threads():
    """Sets the number of threads, for the test alone."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def all_gradients(function, tensors, weights):
    """Of every output of function(*tensors), weighted so that none is left out."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    k, v, decay, first, *state = leaves
    y, final = function(k, v, decay, first, tuple(state))
    loss = sum((out.double() * weight).sum() for out, weight in zip((y, *final), weights))
    return torch.autograd.grad(loss, leaves, materialize_grads=True)


def output_weights(batch, length, channels, seed=2):
    g = torch.Generator().manual_seed(seed)
    shapes = [(batch, length, channels), *[(batch, channels)] * 3]
    return [torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes]


# 5 channels are less than any vector, 67 not a multiple of one, 64 a whole number of each.
@pytest.mark.parametrize("channels", [5, 64, 67])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 500])
@pytest.mark.parametrize("with_state", [False, True])
def test_values_and_states_equal_the_reference(instruction_set, channels, length, with_state):
    args = inputs(2, length, channels)
    state = states(2, channels) if with_state else None
    assert_same(run(*args, state), wkv(*args, state, implementation="reference"), 1e-12)
    args = [x.float() for x in args]
    state = tuple(x.float() for x in state) if state else None
    assert_same(run(*args, state), wkv(*args, state, implementation="reference"), 4e-6)


@pytest.mark.parametrize("channels", [5, 64, 67])
@pytest.mark.parametrize("length", [1, 63, 64, 200])
def test_gradients_equal_autograd_of_the_loop_in_double(instruction_set, channels, length):
    tensors = (*inputs(2, length, channels), *states(2, channels))
    weights = output_weights(2, length, channels)
    want = all_gradients(wkv_loop, tensors, weights)
    for got, exact in zip(all_gradients(run, tensors, weights), want, strict=True):
        assert (got - exact).abs().max() <= 1e-11 * max(1, exact.abs().max())
    single = all_gradients(run, [x.float() for x in tensors], weights)
    want = all_gradients(wkv_loop, [x.float().double() for x in tensors], weights)
    for got, exact in zip(single, want, strict=True):
        assert (got - exact).abs().max() <= 1e-5 * max(1, exact.abs().max())


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck_passes_for_every_input_and_output(packed):
    starts = torch.tensor([0, 7, 7, 19]) if packed else None
    args = (*inputs(1 if packed else 2, 19, 3), *states(3 if packed else 2, 3))

    def function(k, v, w, u, *state):
        y, final = run(k, v, w, u, state, starts=starts)
        return (y, *final)

    assert torch.autograd.gradcheck(function, [x.clone().requires_grad_() for x in args])


def test_the_gradient_of_the_final_maximum_goes_to_whatever_set_it():
    k, v, w, u = inputs(1, 6, 2)
    num, den, top = states(1, 2)
    k[0, :, 0], top[0, 0] = torch.tensor([0, 50, 0, 0, 0, 0]), -3  # the second key
    k[0, :, 1], top[0, 1] = torch.tensor([0, 0, 0, 0, 0, 0]), 90  # the initial maximum
    tensors = (k, v, w, u, num, den, top)
    weights = [torch.zeros(1, 6, 2), torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2)]
    to_k, _, to_w, _, to_num, to_den, to_max = all_gradients(run, tensors, weights)
    assert to_k[0, :, 0].tolist() == [0, 1, 0, 0, 0, 0]
    assert to_k[0, :, 1].abs().max() == 0
    assert to_w.tolist() == [4, 6]
    assert to_max.tolist() == [[0, 1]]
    assert to_num.abs().max() == to_den.abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(instruction_set, dtype):
    k, v, w, u = inputs(2, 130, 37)
    k, v, w, u, state = k.to(dtype), v.to(dtype), w.float(), u.float(), states(2, 37)
    state = tuple(x.float() for x in state)
    y, final = run(k, v, w, u, state)
    wide, want = run(k.float(), v.float(), w, u, state)
    assert y.dtype == dtype
    assert torch.equal(y, wide.to(dtype))
    assert all(torch.equal(a, b) for a, b in zip(final, want, strict=True))

    weights = output_weights(2, 130, 37)
    weights[0] = weights[0].to(dtype).double()
    got = all_gradients(run, (k, v, w, u, *state), weights)
    want = all_gradients(run, (k.float(), v.float(), w, u, *state), weights)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b.to(a.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_precision_number_is_read_and_written_as_torch_does(instruction_set, dtype):
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    zero, one = torch.zeros(2**16), torch.ones(1, 2**16)
    empty = (one * 0, one * 0, one * -1e38)
    # The first token's output is its value, and so is the numerator after it.
    y, (num, _, _) = run(
        torch.zeros_like(numbers)[None, None], numbers[None, None], zero, zero, empty
    )
    finite = numbers.isfinite()
    assert torch.equal(num[0, finite], numbers[finite].float())
    assert torch.equal(y[0, 0].float().nan_to_num(7), numbers.float().nan_to_num(7))
    # A value of 0 makes the output num/(den + 1): any float32 can be rounded.
    g = torch.Generator().manual_seed(0)
    wide = torch.randint(-(2**31), 2**31, (2**16,), generator=g).to(torch.int32).view(torch.float32)
    wide = torch.cat([wide[: 2**15], torch.randn(2**15, generator=g) * 2e-6])  # f16's subnormals
    wide = torch.where(wide.abs() < 1e-37, 0, wide)
    nothing = torch.zeros(1, 1, 2**16, dtype=dtype)
    y, _ = run(nothing, nothing, zero, zero, (2 * wide[None], one, one * 0))
    twice = (2 * wide).float() / 2
    assert torch.equal(y[0, 0].float().nan_to_num(7), twice.to(dtype).float().nan_to_num(7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_is_within_two_units_in_the_last_place(instruction_set, dtype):
    low = -87.3 if dtype == torch.float32 else -708.0
    x = torch.cat([torch.linspace(low, 0, 200_001), -torch.logspace(-12, 1, 2000)]).to(dtype)
    k, zero, one = torch.zeros(1, 1, len(x), dtype=dtype), torch.zeros_like(x), torch.ones_like(x)
    # With no decay and a key of 0, a numerator of 1 under the maximum x becomes e^x.
    _, (num, _, _) = run(k, k, zero, zero, (one[None], one[None], x[None]))
    exact = np.exp(x.numpy().astype(np.longdouble))
    unit = np.spacing(exact.astype(x.numpy().dtype)).astype(np.longdouble)
    assert (np.abs(num[0].numpy() - exact) / unit).max() <= 2
    x = torch.tensor([-1e4, -1e38, -torch.inf, torch.nan], dtype=dtype)
    k, zero, one = torch.zeros(1, 1, 4, dtype=dtype), torch.zeros_like(x), torch.ones_like(x)
    _, (num, _, _) = run(k, k, zero, zero, (one[None], one[None], x[None]))
    assert num[0, :3].tolist() == [0, 0, 0]
    assert num[0, 3].isnan()


@pytest.mark.parametrize("size", [100.0, 1e4])
@pytest.mark.parametrize("decay", [1.0, 1e-2])
def test_keys_of_a_hundred_and_more_stay_finite_and_right(size, decay):
    k, v, w, u = inputs(1, 500, 6, size=size)
    k[:, ::7], k[:, ::11] = size, -size
    args = [x.float() for x in (k, v, w * decay, u)]
    y, final = run(*args)
    exact, (num, den, top) = wkv(*args, implementation="reference")
    assert (y - exact).abs().max() <= 4e-7 * size
    assert (final[2] - top).abs().max() <= 2e-7 * size
    # num and den are the reference's at the reference's maximum.
    shift = torch.exp(final[2].double() - top.double())
    for got, want in zip(final[:2], (num, den), strict=True):
        assert (got * shift - want).abs().max() <= 4e-7 * size * max(1, want.abs().max())

    tensors = [x.double() for x in (*args, *states(1, 6))]
    weights = output_weights(1, 500, 6)
    want = all_gradients(wkv_loop, tensors, weights)
    for got, exact in zip(all_gradients(run, tensors, weights), want, strict=True):
        assert torch.isfinite(got).all()
        assert (got - exact).abs().max() <= 1e-10 * max(1, exact.abs().max())
    for got in all_gradients(run, [x.float() for x in tensors], weights):
        assert torch.isfinite(got).all()


@pytest.mark.parametrize("decay", [1.0, 1e-2, 1e-4])
def test_a_hundred_thousand_tokens_lose_no_precision(decay):
    k, v, w, u = inputs(1, 100_000, 2)
    args = [x.float() for x in (k, v, w * decay, u)]
    assert_same(run(*args), wkv(*args, implementation="reference"), 1e-5)


def test_gradients_of_a_hundred_thousand_tokens_lose_no_precision():
    tensors = (*inputs(1, 100_000, 2), *states(1, 2))
    tensors[2].mul_(1e-2)
    weights = output_weights(1, 100_000, 2)
    want = all_gradients(run, [x.float().double() for x in tensors], weights)
    for got, exact in zip(all_gradients(run, [x.float() for x in tensors], weights), want):
        assert (got - exact).abs().max() <= 2e-5 * exact.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_without_tokens_returns_its_state_and_gradients(dtype):
    k = torch.zeros(2, 0, 3, dtype=dtype)
    _, _, w, u = inputs(1, 1, 3)
    state = tuple(x.to(torch.promote_types(dtype, torch.float32)) for x in states(2, 3))
    y, final = run(k, k, w, u, state)
    assert y.shape == (2, 0, 3)
    assert all(torch.equal(a, b) for a, b in zip(final, state, strict=True))
    weights = output_weights(2, 0, 3)
    gradients = all_gradients(run, (k, k, w, u, *state), weights)
    assert gradients[2].tolist() == gradients[3].tolist() == [0, 0, 0]
    for got, weight in zip(gradients[4:], weights[1:], strict=True):
        torch.testing.assert_close(got, weight.to(got.dtype), rtol=0, atol=1e-6)


def test_no_sequences_at_all_give_empty_results_and_zero_gradients():
    _, _, w, u = inputs(1, 1, 3)
    tensors = (torch.zeros(0, 4, 3), torch.zeros(0, 4, 3), w, u, *torch.zeros(3, 0, 3))
    y, _ = run(*tensors[:4])
    assert y.shape == (0, 4, 3)
    gradients = all_gradients(run, tensors, output_weights(0, 4, 3))
    assert gradients[2].tolist() == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=6))
def test_any_split_carries_the_state(cuts):
    k, v, w, u = inputs(2, 300, 19)
    k, v, w, u = k.float(), v.float(), w.float(), u.float()
    edges, state, parts = [0, *sorted(cuts), 300], None, []
    for begin, end in itertools.pairwise(edges):
        y, state = run(k[:, begin:end], v[:, begin:end], w, u, state)
        parts.append(y)
    assert_same((torch.cat(parts, 1), state), run(k, v, w, u), 2e-6)


@pytest.mark.parametrize("decay", [1.0, 1e-2])
def test_token_by_token_outputs_are_as_precise_as_in_one_go(decay):
    k, v, w, u = (x.float() for x in inputs(1, 2000, 8))
    w, state, parts = w * decay, None, []
    for t in range(2000):
        y, state = run(k[:, t : t + 1], v[:, t : t + 1], w, u, state)
        parts.append(y)
    exact, _ = wkv(k, v, w, u, implementation="reference")
    assert (torch.cat(parts, 1) - exact).abs().max() <= 5e-6


def test_gradients_flow_through_a_carried_state():
    tensors = (*inputs(2, 90, 5), *states(2, 5))
    weights = output_weights(2, 90, 5)

    def in_three(k, v, w, u, state):
        parts = []
        for span in (slice(0, 1), slice(1, 70), slice(70, 90)):
            y, state = run(k[:, span], v[:, span], w, u, state)
            parts.append(y)
        return torch.cat(parts, 1), state

    whole = all_gradients(run, tensors, weights)
    for a, b in zip(all_gradients(in_three, tensors, weights), whole, strict=True):
        assert (a - b).abs().max() <= 1e-12 * max(1, b.abs().max())


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(0, 150), min_size=1, max_size=9))
def test_packed_sequences_equal_separate_ones_to_the_bit(lengths):
    starts = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]), dtype=torch.int32)
    k, v, w, u = (x.float() for x in inputs(1, int(starts[-1]), 19))
    state = tuple(x.float() for x in states(len(lengths), 19))
    y, final = run(k, v, w, u, state, starts=starts)
    for n, (begin, end) in enumerate(itertools.pairwise(starts.tolist())):
        row = tuple(x[n : n + 1] for x in state)
        one, one_final = run(k[:, begin:end], v[:, begin:end], w, u, row)
        assert torch.equal(y[:, begin:end], one)
        assert all(torch.equal(a[n : n + 1], b) for a, b in zip(final, one_final, strict=True))


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(0, 150), min_size=1, max_size=6))
def test_packed_gradients_equal_those_of_separate_sequences(lengths):
    starts = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))
    tensors = (*inputs(1, int(starts[-1]), 5), *states(len(lengths), 5))
    weights = output_weights(1, int(starts[-1]), 5)
    weights[1:] = states(len(lengths), 5, seed=4)

    def separately(k, v, w, u, state):
        rows = [
            wkv_loop(k[:, begin:end], v[:, begin:end], w, u, tuple(x[n : n + 1] for x in state))
            for n, (begin, end) in enumerate(itertools.pairwise(starts.tolist()))
        ]
        ys, finals = zip(*rows, strict=True)
        return torch.cat(ys, 1), tuple(torch.cat(x) for x in zip(*finals, strict=True))

    got = all_gradients(lambda *a: run(*a, starts=starts), tensors, weights)
    want = all_gradients(separately, tensors, weights)
    for a, b in zip(got, want, strict=True):
        assert (a - b).abs().max() <= 1e-11 * max(1, b.abs().max()) if a.numel() else True


@pytest.mark.parametrize("packed", [False, True])
def test_the_number_of_threads_does_not_change_a_bit(instruction_set, threads, packed):
    # Enough tokens for several threads, several groups of rows, and blocks of channels.
    starts = torch.tensor([0, 3, 3, 700, 701, 1500, 2100]) if packed else None
    batch, length, rows = (1, 2100, 6) if packed else (3, 700, 3)
    tensors = [x.float() for x in (*inputs(batch, length, 200), *states(rows, 200))]
    weights = output_weights(batch, length, 200)
    weights[1:] = states(rows, 200, seed=4)
    results = []
    for n in (1, 2, 3, 7):
        threads(n)
        y, final = run(*tensors[:4], tuple(tensors[4:]), starts=starts)
        gradients = all_gradients(lambda *a: run(*a, starts=starts), tensors, weights)
        results.append([y, *final, *gradients])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_every_number_of_a_poisoned_output_is_overwritten(monkeypatch):
    def poison(like):
        return torch.full_like(like, torch.nan)

    tensors = (*inputs(1, 150, 19), *states(4, 19))
    starts = torch.tensor([0, 64, 64, 130, 150])
    weights = output_weights(1, 150, 19)
    weights[1:] = states(4, 19, seed=4)
    clean = all_gradients(lambda *a: run(*a, starts=starts), tensors, weights)
    monkeypatch.setattr(cpu, "_empty", poison)
    checked = cpu._forward_outputs(tensors[0][0], *tensors[1:], starts)
    assert checked[0].isnan().all()  # the poison is in
    y, final = run(*tensors[:4], tuple(tensors[4:]), starts=starts)
    assert all(torch.isfinite(x).all() for x in (y, *final))
    poisoned = all_gradients(lambda *a: run(*a, starts=starts), tensors, weights)
    for a, b in zip(poisoned, clean, strict=True):
        assert torch.equal(a, b)


def test_inputs_are_never_modified():
    tensors = [x.float() for x in (*inputs(2, 100, 19), *states(2, 19))]
    kept = [x.clone() for x in tensors]
    leaves = [x.requires_grad_() for x in tensors]
    y, final = run(*leaves[:4], tuple(leaves[4:]))
    (y.sum() + sum(x.sum() for x in final)).backward()
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))
    assert {x.data_ptr() for x in final}.isdisjoint(x.data_ptr() for x in tensors)


def test_tensors_that_are_not_contiguous_give_the_same():
    k, v, w, u = inputs(2, 70, 10)
    want = run(k, v, w, u)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (k, v)]
    assert_same(run(*strided, w.repeat(2)[:10], u.expand(2, 10)[1]), want, 0)
    every_other = torch.stack([k, v], -1)[..., 0]
    assert_same(run(every_other, v, w, u), want, 0)


@pytest.mark.parametrize("packed", [False, True])
def test_the_operators_pass_torch_opcheck(packed):
    starts = torch.tensor([0, 20, 20, 70] if packed else [0, 35, 70])
    rows = len(starts) - 1
    k, v, w, u = (x.float() for x in inputs(1, 70, 5))
    state = [x.float() for x in states(rows, 5)]
    args = [x.requires_grad_() for x in (k[0].clone(), v[0].clone(), w, u, *state)]
    torch.library.opcheck(torch.ops.wkv.wkv_forward.default, (*args, starts))
    with torch.no_grad():
        y, *final, checkpoints = torch.ops.wkv.wkv_forward(*args, starts)
    detached = [x.detach() for x in args]
    inward = (*detached, starts, checkpoints, torch.randn_like(y), *map(torch.randn_like, final))
    torch.library.opcheck(torch.ops.wkv.wkv_backward.default, inward)


def test_torch_compile_without_graph_breaks_gives_the_same():
    tensors = [x.float() for x in (*inputs(2, 70, 5), *states(2, 5))]
    weights = output_weights(2, 70, 5)
    compiled = torch.compile(run, fullgraph=True)
    torch._dynamo.reset()
    y, final = compiled(*tensors[:4], tuple(tensors[4:]))
    assert_same((y, final), run(*tensors[:4], tuple(tensors[4:])), 0)
    got = all_gradients(compiled, tensors, weights)
    for a, b in zip(got, all_gradients(run, tensors, weights), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_a_forked_child_computes_the_same(threads):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this system cannot fork")
    threads(2)
    k, v, w, u = (x.float() for x in inputs(4, 400, 96))
    want, final = run(k, v, w, u)  # the parent's threads exist now; the child has none of them
    empty = torch.zeros(4, 96), torch.zeros(4, 96), torch.full((4, 96), -1e38)
    starts, y, checkpoints = torch.arange(5) * 400, torch.empty(1600, 96), torch.empty(25, 4, 96)
    arguments = (k.view(1600, 96), v.view(1600, 96), w, u, *empty, starts, y, *final, checkpoints)
    got, expected = y.numpy(), want.view(1600, 96).numpy()

    def compute():  # native code and NumPy: torch's own threads do not survive a fork
        _native.wkv_forward(*arguments, 2)
        assert (got == expected).all()

    child = multiprocessing.get_context("fork").Process(target=compute)
    child.start()
    child.join(timeout=30)
    stuck = child.is_alive()
    child.kill()
    assert not stuck
    assert child.exitcode == 0


def test_callers_in_several_threads_do_not_disturb_each_other(threads):
    from concurrent.futures import ThreadPoolExecutor

    threads(3)
    k, v, w, u = (x.float() for x in inputs(4, 400, 96))
    want = run(k, v, w, u)[0]
    with ThreadPoolExecutor(4) as pool:
        for y in pool.map(lambda _: run(k, v, w, u)[0], range(16)):
            assert torch.equal(y, want)


def native_arguments():
    k, v, w, u = (x.float() for x in inputs(1, 10, 3))
    state = [x.float() for x in states(1, 3)]
    names = ("k", "v", "decay", "first", "num", "den", "max", "starts")
    values = (k[0], v[0], w, u, *state, torch.tensor([0, 10]))
    outputs = ("y", "num_out", "den_out", "max_out", "checkpoints")
    out = (torch.empty(10, 3), *torch.empty(3, 1, 3).unbind(), torch.empty(1, 4, 3))
    return {**dict(zip(names, values)), **dict(zip(outputs, out)), "threads": 1}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("v", torch.zeros(9, 3), r"v is float32 \[9, 3\]: expected float32 \[10, 3\]"),
        ("v", torch.zeros(10, 3, dtype=torch.float16), "v is float16 .* expected float32"),
        ("decay", torch.zeros(3, dtype=torch.float64), "decay is float64"),
        ("k", torch.zeros(10, 3, dtype=torch.int32), "k is int32: expected float32"),
        ("starts", torch.tensor([0, 11]), "starts must rise from 0 to 10"),
        ("starts", torch.tensor([0, 8, 4, 10]), "starts must rise"),
        ("starts", torch.tensor([-1, 10]), "starts must rise"),
        ("num", torch.zeros(2, 3), "num is"),
        ("y", torch.zeros(10, 2), "y is"),
        ("checkpoints", torch.zeros(1, 3, 3), "checkpoints is"),
    ],
)
def test_the_native_call_refuses_arrays_that_it_could_leave(name, value, message):
    arguments = native_arguments()
    _native.wkv_forward(**arguments)
    with pytest.raises(ValueError, match=message):
        _native.wkv_forward(**{**arguments, name: value})


def test_an_output_that_would_have_to_be_copied_is_refused():
    arguments = native_arguments()
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _native.wkv_forward(**{**arguments, "y": torch.zeros(3, 10).t()})


def test_an_unknown_instruction_set_names_those_there_are():
    with pytest.raises(
        ValueError, match="'mmx' cannot run on this processor: choose from baseline"
    ):
        _native.set_instruction_set("mmx")
