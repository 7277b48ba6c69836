"""The PyTorch model against independent implementations, and its two modes against each other."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import rwkv_float64
from tests.oracles.models import random_weights, torch_model, transformers_model
from wkv.config import ModelConfig, preset
from wkv.errors import ShapeError
from wkv.model.rwkv4 import Rwkv4, _SquaredReLU
from wkv.state import FIELDS, State

TOKENS = [5, 17, 3, 88, 5, 41, 0, 96, 23, 23, 7, 60, 1]


@pytest.fixture(scope="module", params=["tiny", "square"])
def config(request, tiny_config, square_config):
    return tiny_config if request.param == "tiny" else square_config


@pytest.fixture(scope="module")
def weights(config):
    return random_weights(config)


@pytest.fixture(scope="module")
def model(config, weights):
    return torch_model(config, weights)


def close(got, want, tolerance=1e-5):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@torch.no_grad()
def test_logits_and_state_equal_the_float64_recurrence(model, weights):
    want, want_state = rwkv_float64.forward(weights, TOKENS)
    logits, state = model(torch.tensor([TOKENS]))
    close(logits[0], want)
    for name in FIELDS:
        close(getattr(state, name)[0], want_state[name])


@torch.no_grad()
def test_logits_equal_transformers_own_class(square_config):
    # Square only: transformers' class fails when attention_hidden_size is not hidden_size.
    weights = random_weights(square_config)
    want = transformers_model(square_config, weights)(torch.tensor([TOKENS])).logits
    close(torch_model(square_config, weights)(torch.tensor([TOKENS]))[0], want, 1e-4)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, len(TOKENS)), max_size=6))
@torch.no_grad()
def test_any_split_gives_the_same_logits_and_state(cuts, tiny_config):
    model = _cached_model(tiny_config)
    whole, final = model(torch.tensor([TOKENS]))
    edges = [0, *sorted(cuts), len(TOKENS)]
    state, parts = None, []
    for begin, end in itertools.pairwise(edges):
        logits, state = model(torch.tensor([TOKENS[begin:end]], dtype=torch.long), state)
        parts.append(logits)
    close(torch.cat(parts, 1), whole)
    for name in FIELDS:
        close(getattr(state, name), getattr(final, name))


_models: dict = {}


def _cached_model(config: ModelConfig):
    if config not in _models:
        _models[config] = torch_model(config, random_weights(config))
    return _models[config]


@torch.no_grad()
def test_packed_sequences_equal_separate_ones_with_and_without_a_state(model):
    rng = np.random.default_rng(1)
    parts = [rng.integers(0, 97, n).tolist() for n in (4, 0, 9, 1)]
    _, begin = model(torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]]))
    starts = torch.tensor([0, 4, 4, 13, 14])
    for state in (None, begin):
        logits, after = model(torch.tensor([[*itertools.chain(*parts)]]), state, starts=starts)
        for n, part in enumerate(parts):
            row = None if state is None else state.select(n)
            want, want_state = model(torch.tensor([part], dtype=torch.long), row)
            close(
                logits[:, starts[n] : starts[n + 1]].reshape(-1), want.reshape(-1)
            ) if part else None
            for name in FIELDS:
                close(getattr(after, name)[n], getattr(want_state, name)[0])


def test_the_callers_state_and_the_weights_are_never_changed(model):
    with torch.no_grad():
        _, state = model(torch.tensor([TOKENS]))
        before, weights = state.copy(), copy.deepcopy(model.state_dict())
        model(torch.tensor([TOKENS]), state)
    for name in FIELDS:
        assert torch.equal(getattr(before, name), getattr(state, name))
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("where", ["squares", "residual"])
@torch.no_grad()
def test_sixteen_bit_runs_do_not_overflow_with_large_activations(where, dtype):
    config = ModelConfig(vocab_size=97, hidden_size=32, num_hidden_layers=8, rescale_every=1)
    weights = random_weights(config)
    for name in weights:
        layer = int(name.split(".")[1]) if name.startswith("blocks.") else 0
        if where == "squares" and name.endswith("ffn.key.weight"):
            weights[name] = weights[name] * 200
        if name.endswith("ffn.value.weight"):
            weights[name] = weights[name] * (0.003 if where == "squares" else 500 * 2.0**layer)
    model = torch_model(config, weights).to(dtype)
    want, _ = rwkv_float64.forward(weights, TOKENS)
    stored = copy.deepcopy(model.state_dict())
    logits, state = model(torch.tensor([TOKENS]))
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(x).all() for x in state.fields().values())
    error = np.abs(logits[0].float().numpy() - want).max() / np.abs(want).max()
    assert error < (0.05 if dtype == torch.float16 else 0.3)
    assert all(torch.equal(v, stored[n]) for n, v in model.state_dict().items())
    if dtype == torch.float16:  # the test would show an overflow if there were one
        for block in model.rwkv.blocks:
            block.rescale_every = 0
        overflowed = not torch.isfinite(model(torch.tensor([TOKENS]))[0]).all()
        assert overflowed == (where == "residual")


def test_gradients_through_a_carried_state_equal_those_of_the_whole_sequence(tiny_config):
    weights = random_weights(tiny_config)
    whole, split = (torch_model(tiny_config, weights).double() for _ in range(2))
    tokens = torch.tensor([TOKENS])
    whole(tokens)[0].square().sum().backward()
    first, state = split(tokens[:, :6])
    second, _ = split(tokens[:, 6:], state)
    (first.square().sum() + second.square().sum()).backward()
    for (name, p), q in zip(whole.named_parameters(), split.parameters()):
        # Parameters are double but decay and first enter the operator in float32.
        assert (p.grad - q.grad).abs().max() <= 1e-5 * p.grad.abs().max().clamp(min=1), name


def test_gradient_checkpointing_changes_no_gradient(tiny_config):
    weights = random_weights(tiny_config)
    plain, saving = (torch_model(tiny_config, weights).train() for _ in range(2))
    saving.rwkv.gradient_checkpointing = True
    for model in (plain, saving):
        model(torch.tensor([TOKENS]))[0].square().sum().backward()
    for p, q in zip(plain.parameters(), saving.parameters()):
        assert torch.allclose(p.grad, q.grad, rtol=1e-5, atol=1e-6)


def test_a_state_of_another_shape_is_refused(model, config):
    with pytest.raises(ShapeError, match="state is"):
        model(torch.tensor([TOKENS]), State.zeros(config, 2).to("cpu"))


@pytest.mark.parametrize("layers", [1, 4])
def test_initialisation_is_the_published_one(layers):
    config = ModelConfig(vocab_size=300, hidden_size=24, num_hidden_layers=layers)
    model = Rwkv4(config)
    d, last = 24, layers - 1
    rho = 0.0 if layers == 1 else 1.0
    s = 1 - last / layers
    att, ffn = model.rwkv.blocks[last].attention, model.rwkv.blocks[last].feed_forward
    x = torch.arange(d) / d
    h = torch.arange(d) / (d - 1)
    assert torch.allclose(att.time_decay, -5 + 8 * h ** (0.7 + 1.3 * rho), atol=1e-5)
    zigzag = torch.tensor([0.0, 0.5, -0.5]).repeat(8)
    assert torch.allclose(att.time_first, math.log(0.3) + zigzag, atol=1e-6)
    assert torch.allclose(att.time_mix_value[0, 0], x**s + 0.3 * rho, atol=1e-6)
    assert torch.allclose(att.time_mix_receptance[0, 0], x ** (s / 2), atol=1e-6)
    for zero in (att.key, att.receptance, att.output, ffn.receptance, ffn.value):
        assert not zero.weight.any()
    assert torch.allclose(att.value.weight @ att.value.weight.T, torch.eye(d), atol=1e-5)
    assert torch.allclose(ffn.key.weight.T @ ffn.key.weight, 4 * torch.eye(d), atol=1e-4)
    gain = 0.25 * 300 / d
    assert torch.allclose(model.head.weight.T @ model.head.weight, gain * torch.eye(d), atol=1e-4)
    assert 0 < model.rwkv.embeddings.weight.abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("size", "pile", "world"),
    [
        ("169m", 169_342_464, 192_780_288),
        ("430m", 430_397_440, 461_647_872),
        ("1b5", 1_515_106_304, 1_577_607_168),
        ("3b", 2_984_627_200, 3_062_753_280),
        ("7b", 7_392_649_216, 7_517_650_944),
        ("14b", 14_148_597_760, 14_304_849_920),
    ],
)
def test_presets_have_the_published_number_of_parameters(size, pile, world):
    assert preset(size).parameters == pile
    assert preset(size, vocab_size=65536).parameters == world


def test_the_counted_parameters_are_those_of_the_module(config):
    assert sum(p.numel() for p in Rwkv4(config).parameters()) == config.parameters


def test_the_gradient_through_the_squared_relu_is_exact():
    x = torch.tensor([-2.0, -1e-3, 1e-3, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(_SquaredReLU.apply(x), torch.relu(x).square())
    assert torch.autograd.gradcheck(_SquaredReLU.apply, x, eps=1e-7)
