"""The PyTorch scan against the definition: values, states, gradients, splits, packing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wkv.errors import ShapeError, UnavailableError
from wkv.ops import resolve, scan, wkv


def inputs(batch, length, channels, seed=0, dtype=torch.float64, size=3.0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    return (
        (normal(batch, length, channels) * size).to(dtype),
        normal(batch, length, channels).to(dtype),
        -torch.exp(normal(channels)),
        normal(channels),
    )


def states(rows, channels, seed=1):
    g = torch.Generator().manual_seed(seed)
    num, den, top = torch.randn(3, rows, channels, generator=g, dtype=torch.float64)
    return num, den.abs() + 0.1, top * 3


def assert_same(got, want, tolerance):
    (y, final), (y0, final0) = got, want
    for a, b in zip((y, *final), (y0, *final0), strict=True):
        assert torch.isfinite(a).all()
        assert a.shape == b.shape
        size = max([1.0, *b.abs().reshape(-1).tolist()])
        assert not ((a.double() - b.double()).abs() > tolerance * size).any()


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 255, 256, 257, 500])
@pytest.mark.parametrize("with_state", [False, True])
def test_values_and_states_equal_the_reference(length, with_state):
    args = inputs(2, length, 5)
    state = states(2, 5) if with_state else None
    want = wkv(*args, state, implementation="reference")
    assert_same(wkv(*args, state, implementation="scan"), want, 1e-12)
    k, v, w, u = (x.float() for x in args)
    state = tuple(x.float() for x in state) if state else None
    assert_same(wkv(k, v, w, u, state, implementation="scan"), want, 1e-5)


def test_keys_of_a_hundred_and_more_stay_finite_and_right():
    for size in (100.0, 1e4):
        k, v, w, u = inputs(1, 200, 4, size=size)
        want = wkv(k, v, w, u, implementation="reference")
        got = wkv(*(x.float() for x in (k, v, w, u)), implementation="scan")
        assert_same(got, wkv(k.float().double(), v, w, u, implementation="reference"), 1e-3)
        assert_same(wkv(k, v, w, u, implementation="scan"), want, 1e-12)


def test_a_hundred_thousand_tokens_lose_no_precision():
    k, v, w, u = inputs(1, 100_000, 2)
    want = wkv(k, v, w, u, implementation="reference")
    with torch.no_grad():
        got = wkv(*(x.float() for x in (k, v, w, u)), implementation="scan")
    assert_same(got, want, 2e-5)


def test_an_empty_sequence_returns_its_state():
    state = states(2, 3)
    y, final = wkv(*inputs(2, 0, 3), state, implementation="scan")
    assert y.shape == (2, 0, 3)
    assert all(torch.equal(a, b) for a, b in zip(final, state, strict=True))


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=5))
def test_any_split_carries_the_state(cuts):
    args = inputs(1, 300, 3)
    want = wkv(*args, implementation="reference")
    edges, state, parts = [0, *sorted(cuts), 300], None, []
    for begin, end in itertools.pairwise(edges):
        y, state = wkv(
            args[0][:, begin:end], args[1][:, begin:end], *args[2:], state, implementation="scan"
        )
        parts.append(y)
    assert_same((torch.cat(parts, 1), state), want, 1e-11)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(0, 120), min_size=1, max_size=7))
def test_packed_sequences_equal_separate_ones(lengths):
    starts = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))
    args, state = inputs(1, int(starts[-1]), 3), states(len(lengths), 3)
    want = wkv(*args, state, starts=starts, implementation="reference")
    assert_same(wkv(*args, state, starts=starts, implementation="scan"), want, 1e-11)


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck_passes_for_every_input_and_output(packed, monkeypatch):
    monkeypatch.setattr(scan, "CHUNK", 4)
    monkeypatch.setattr(scan, "SEGMENT", 8)
    starts = torch.tensor([0, 7, 7, 19]) if packed else None
    args = (*inputs(1 if packed else 2, 19, 3), *states(3 if packed else 2, 3))

    def run(k, v, w, u, *state):
        y, final = wkv(k, v, w, u, state, starts=starts, implementation="scan")
        return (y, *final)

    assert torch.autograd.gradcheck(run, [x.clone().requires_grad_() for x in args])


def test_impossible_choices_are_errors_and_never_another_implementation():
    k, v, w, u = inputs(1, 4, 3)
    with pytest.raises(UnavailableError, match="unknown wkv implementation 'fast'"):
        wkv(k, v, w, u, implementation="fast")
    with pytest.raises(UnavailableError, match="cannot run int32"):
        resolve("cpu", "cpu", "int32")
    with pytest.raises(UnavailableError, match="device 'cuda'"):
        resolve("cpu", "cuda", "float32")
    with pytest.raises(UnavailableError, match="no gradients"):
        wkv(k.requires_grad_(), v, w, u, implementation="reference")
    assert resolve("auto", "cuda", "float32") == "scan"
    assert resolve("auto", "cpu", "bfloat16") == "cpu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(1, 3, 3)}, "both must be the same"),
        ({"v": torch.zeros(1, 4, 3, dtype=torch.float32)}, "give one dtype"),
        ({n: torch.zeros(1, 4, 3, dtype=torch.int64) for n in "kv"}, "keys are torch.int64"),
        ({"decay": torch.zeros(2)}, "decay is"),
        ({"state": (torch.zeros(2, 3),) * 3}, "state num is"),
        ({"starts": torch.tensor([0, 4.0])}, "whole numbers"),
        ({"starts": torch.tensor([0, 3])}, "must rise from 0 to T"),
        ({"starts": torch.tensor([0, 3, 2, 4])}, "without decreasing"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    k, v, w, u = inputs(1, 4, 3)
    with pytest.raises(ShapeError, match=message):
        wkv(**{"k": k, "v": v, "decay": w, "first": u, **change}, implementation="scan")
