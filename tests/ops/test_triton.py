"""The Triton operator against the definition and the scan; without a GPU, in its interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from tests.ops.test_scan import assert_same, inputs, states
from wkv.errors import UnavailableError
from wkv.ops import resolve, wkv
from wkv.ops import triton as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def here(args):
    return [x.to(DEVICE) for x in args]


def run(args, state=None, starts=None, implementation="triton"):
    args, state = here(args), here(state) if state else None
    starts = None if starts is None else starts.to(DEVICE)
    y, final = wkv(*args, state, starts=starts, implementation=implementation)
    return y.cpu(), tuple(x.cpu() for x in final)


@pytest.mark.parametrize("length", [0, 1, 64, 130])
@pytest.mark.parametrize("with_state", [False, True])
def test_values_and_states_equal_the_reference(length, with_state):
    args = inputs(2, length, 70)  # more channels than a block, and not a whole number of blocks
    state = states(2, 70) if with_state else None
    want = wkv(*args, state, implementation="reference")
    assert_same(run(args, state), want, 1e-11)
    args = [x.float() for x in args]
    state = [x.float() for x in state] if state else None
    assert_same(run(args, state), want, 1e-5)


def test_packed_sequences_equal_separate_ones():
    lengths = [5, 0, 130, 64, 1]
    starts = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))
    args, state = inputs(1, int(starts[-1]), 6), states(len(lengths), 6)
    want = wkv(*args, state, starts=starts, implementation="reference")
    assert_same(run(args, state, starts), want, 1e-11)


def test_keys_of_a_hundred_and_more_stay_finite_and_right():
    for size in (100.0, 1e4):
        k, v, w, u = inputs(1, 70, 4, size=size)
        want = wkv(k, v, w, u, implementation="reference")
        assert_same(run([k, v, w, u]), want, 1e-11)


def gradients(args, state, starts, implementation):
    leaves = [x.detach().to(DEVICE).requires_grad_() for x in (*args, *state)]
    y, final = wkv(
        *leaves[:4],
        tuple(leaves[4:]),
        starts=None if starts is None else starts.to(DEVICE),
        implementation=implementation,
    )
    g = torch.Generator().manual_seed(7)
    # Every output counts, each with a gradient of its own.
    loss = sum((x * torch.randn(x.shape, generator=g).to(x)).sum() for x in (y, *final))
    return [x.cpu() for x in torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("lengths", [None, [7, 0, 80, 64, 1]])
@pytest.mark.parametrize("size", [3.0, 60.0])
def test_all_gradients_equal_the_scan_s(lengths, size):
    starts = None
    if lengths is None:
        args, state = inputs(2, 70, 5, size=size), states(2, 5)
    else:
        starts = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]))
        args, state = inputs(1, int(starts[-1]), 5, size=size), states(len(lengths), 5)
    want = gradients(args, state, starts, "scan")
    for name, a, b in zip("kvwunde", gradients(args, state, starts, "triton"), want, strict=True):
        assert torch.isfinite(a).all(), name
        assert (a - b).abs().max() <= 1e-9 * b.abs().max().clamp(min=1), name


def test_gradcheck_passes_for_every_input_and_output(monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 2)
    starts = torch.tensor([0, 3, 3, 4], device=DEVICE)
    args = (*inputs(1, 4, 1), *states(3, 1))

    def function(k, v, w, u, *state):
        y, final = wkv(k, v, w, u, state, starts=starts, implementation="triton")
        return (y, *final)

    leaves = [x.to(DEVICE).requires_grad_() for x in args]
    assert torch.autograd.gradcheck(function, leaves)


def test_half_precision_keys_compute_in_float32():
    args = inputs(2, 100, 8)
    k, v = (x.to(torch.bfloat16) for x in args[:2])
    y, final = run([k, v, args[2].float(), args[3].float()])
    assert y.dtype == torch.bfloat16
    assert final[0].dtype == torch.float32
    want = wkv(k.double(), v.double(), *args[2:], implementation="reference")
    assert_same((y, final), want, 1e-2)


def test_a_whole_model_trains_with_it(tiny_config):
    from wkv.model.rwkv4 import Rwkv4

    torch.manual_seed(0)
    model = Rwkv4(tiny_config).to(DEVICE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ids = torch.randint(0, tiny_config.vocab_size, (1, 70), device=DEVICE)
    found = []
    for implementation in ("scan", "triton"):
        model.zero_grad()
        model(ids, implementation=implementation)[0].square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()


def test_without_a_gpu_or_its_interpreter_it_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UnavailableError, match="cannot run on device 'cpu'"):
        resolve("triton", "cpu", "float32")
    assert resolve("triton", "cuda", "bfloat16") == "triton"
