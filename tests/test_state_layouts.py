"""The state in other software's layouts: exact round trips, and the same meaning as there.

transformers and the ``rwkv`` package are run themselves, on the same weights and tokens.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles.models import random_weights, torch_model, transformers_model
from tests.test_state import CONFIG, MARK, assert_equal, random_state
from wkv.config import ModelConfig
from wkv.errors import StateError
from wkv.state import FIELDS, LAYOUTS, Fingerprint, State

TOKENS = [5, 17, 3, 88, 5, 41, 0, 96, 23]
MORE = [7, 60, 1, 2]
SQUARE = ModelConfig(vocab_size=11, hidden_size=3, num_hidden_layers=2)


@given(
    layers=st.integers(1, 4),
    d=st.integers(1, 6),
    batch=st.integers(1, 3),
    layout=st.sampled_from(LAYOUTS),
    kind=st.sampled_from(["numpy", "cpu"]),
)
@settings(max_examples=60, deadline=None)
def test_every_layout_gives_the_state_back(layers, d, batch, layout, kind):
    config = ModelConfig(vocab_size=5, hidden_size=d, num_hidden_layers=layers)
    state = random_state(batch if layout == "huggingface" else 1, config, fingerprint=MARK)
    foreign = state.to(kind).to_layout(layout)
    back = State.from_layout(layout, foreign, config, MARK)
    assert back.is_torch == (kind == "cpu")
    assert_equal(back, state)


def test_the_flat_layouts_are_those_of_rwkv_cpp_and_v4neo():
    state = random_state(1, SQUARE)
    flat, rows = state.to_layout("rwkv.cpp"), state.to_layout("v4neo")
    assert flat.shape == (5 * 2 * 3,)
    assert rows.shape == (5 * 2, 3)
    for layer in range(2):
        for j, name in enumerate(("ffn_x", "att_x", "num", "den", "max")):
            vector = getattr(state, name)[0, layer]
            at = (5 * layer + j) * 3
            np.testing.assert_array_equal(flat[at : at + 3], vector)
            np.testing.assert_array_equal(rows[5 * layer + j], vector)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["numpy", "cpu"])
def test_a_converted_state_shares_no_memory_because_other_software_writes_to_it(layout, kind):
    state = random_state(1, SQUARE).to(kind)
    before = state.copy()
    foreign = state.to_layout(layout)
    taken = State.from_layout(layout, foreign, SQUARE)
    for array in foreign if isinstance(foreign, list) else [foreign]:
        array[...] = 7.0
    assert_equal(state.to("numpy"), before.to("numpy"))
    assert_equal(taken.to("numpy"), before.to("numpy"))


def test_sixteen_bit_tensors_of_other_software_become_float32():
    foreign = [x.bfloat16() for x in random_state(1, SQUARE).to("cpu").to_layout("huggingface")]
    state = State.from_layout("huggingface", foreign, SQUARE)
    assert {x.dtype for x in state.fields().values()} == {torch.float32}


def test_gradients_pass_through_a_conversion():
    x = [t.requires_grad_() for t in random_state(1, SQUARE).to("cpu").to_layout("huggingface")]
    State.from_layout("huggingface", x, SQUARE).num.sum().backward()
    assert (x[2].grad == 1).all()


def test_what_a_layout_cannot_hold_is_refused():
    with pytest.raises(StateError, match=r"unknown state layout 'hf': choose from huggingface, rw"):
        random_state().to_layout("hf")
    with pytest.raises(StateError, match="holds one sequence, this state 2: select one"):
        random_state(2, SQUARE).to_layout("rwkv")
    with pytest.raises(StateError, match="needs equal sizes: hidden is 3, attention is 4"):
        random_state(1).to_layout("v4neo")


@pytest.mark.parametrize(
    ("layout", "value", "message"),
    [
        ("huggingface", [np.zeros((1, 3, 2))] * 4, r"five tensors \[B, D, L\], got 4"),
        ("huggingface", [np.zeros((3, 2))] * 5, r"five tensors \[B, D, L\], got 5"),
        ("huggingface", [np.zeros((1, 4, 2))] * 5, "given to a model of 2, 3 and 3"),
        ("huggingface", [np.zeros((1, 3, 2))] * 4 + [np.zeros((2, 3, 2))], "do not fit together"),
        ("rwkv", [np.zeros(3)] * 9, "10 vectors of \\(3,\\), got 9"),
        ("rwkv", [np.zeros(3)] * 9 + [np.zeros(4)], "10 vectors"),
        ("rwkv.cpp", np.zeros(29, np.float32), "29 numbers; this model's has 5·2·3"),
        ("v4neo", np.zeros((10, 4), np.float32), "10 vectors"),
    ],
)
def test_values_of_another_shape_are_refused(layout, value, message):
    with pytest.raises(StateError, match=message):
        State.from_layout(layout, value, SQUARE)


# --- the same meaning as in the original software -------------------------------------------------


@pytest.fixture(scope="module")
def weights(square_config):
    return random_weights(square_config)


@pytest.fixture(scope="module")
def ours(square_config, weights):
    return torch_model(square_config, weights)


@torch.no_grad()
def run(model, tokens, state=None):
    logits, state = model(torch.tensor([tokens]), state, implementation="scan")
    return logits[0, -1], state


def assert_close(got, want):
    for name in FIELDS:
        a, b = getattr(got, name).double(), getattr(want, name).double()
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1), name


@torch.no_grad()
def test_the_state_is_the_one_transformers_computes_and_goes_on_from(square_config, weights, ours):
    theirs = transformers_model(square_config, weights)
    out = theirs(torch.tensor([TOKENS]), use_cache=True)
    _, state = run(ours, TOKENS)
    assert_close(State.from_layout("huggingface", out.state, square_config), state)

    want, _ = run(ours, MORE, state)
    foreign = state.to_layout("huggingface")
    logits = theirs(torch.tensor([MORE]), state=foreign, use_cache=True).logits[0, -1]
    assert torch.allclose(logits, want, atol=1e-4)


@pytest.fixture(scope="module")
def rwkv_package(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("pth") / "model"
    torch.save({n: torch.from_numpy(x) for n, x in weights.items()}, f"{path}.pth")
    from rwkv.model import RWKV

    return RWKV(model=str(path), strategy="cpu fp32", verbose=False)


def test_the_state_is_the_one_the_rwkv_package_computes_and_goes_on_from(
    square_config, ours, rwkv_package
):
    _, theirs = rwkv_package.forward(TOKENS, None)
    _, state = run(ours, TOKENS)
    assert_close(State.from_layout("rwkv", theirs, square_config), state)

    want, _ = run(ours, MORE, state)
    logits, _ = rwkv_package.forward(MORE, state.to_layout("rwkv"))
    assert torch.allclose(logits, want, atol=1e-4)


def test_an_empty_state_means_the_same_to_the_rwkv_package(square_config, ours, rwkv_package):
    empty = State.zeros(square_config).to("cpu")
    want, _ = rwkv_package.forward(TOKENS, None)
    logits, _ = rwkv_package.forward(TOKENS, empty.to_layout("rwkv"))
    assert torch.allclose(logits, want, atol=1e-6)
    mine, _ = run(ours, TOKENS, empty)
    assert torch.allclose(mine, want, atol=1e-4)


def test_attention_of_another_size_keeps_its_shape_in_the_transformers_layout():
    state = random_state(2)
    foreign = state.to_layout("huggingface")
    assert [x.shape for x in foreign] == [(2, 3, 2)] * 2 + [(2, 4, 2)] * 3
    assert_equal(State.from_layout("huggingface", foreign, CONFIG), state)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("a.pth", "float16"), ("a.pth", "bfloat16"), ("hf", "bfloat16"), ("a.bin", "q4_0")],
)
def test_a_converted_model_takes_the_states_of_the_one_it_came_from(
    name, dtype, square_config, weights, tmp_path
):
    from wkv.checkpoint import convert, open_checkpoint

    torch.save({n: torch.from_numpy(x) for n, x in weights.items()}, tmp_path / "from.pth")
    convert(tmp_path / "from.pth", tmp_path / name, dtype=dtype)
    mark = Fingerprint.of(square_config, lambda n: weights[n])
    with open_checkpoint(tmp_path / name) as converted:
        assert converted.dtype == dtype
        random_state(1, square_config, fingerprint=mark).check_fingerprint(converted.fingerprint())
