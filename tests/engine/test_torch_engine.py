from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.oracles.rwkv_float64 import forward as definition
from wkv.checkpoint import open_checkpoint
from wkv.engine import Engine
from wkv.engine.torch_engine import load_torch
from wkv.errors import ConfigError, ShapeError, StateError, UnavailableError
from wkv.state import FIELDS, State


def load(folder, **options):
    return load_torch(open_checkpoint(folder, writable=True), **options)


@pytest.fixture(scope="module")
def engine(tiny_folder):
    return load(tiny_folder)


def relative(got, want):
    return np.abs(got - want).max() / np.abs(want).max()


def test_the_engine_keeps_the_protocol(engine, tiny_config):
    assert isinstance(engine, Engine)
    assert engine.name == "torch"
    assert engine.config == tiny_config
    assert engine.dtype == "float32"


def test_logits_and_state_equal_the_float64_definition(engine, tiny_weights):
    tokens = [3, 96, 0, 41, 41, 7, 15]
    want, want_state = definition(tiny_weights, tokens)
    logits, state = engine.forward([tokens], logits="all")
    assert logits.dtype == np.float32
    assert relative(logits, want) < 1e-4
    last, same = engine.forward([tokens])
    assert relative(last[0], logits[-1]) < 1e-5
    for name in FIELDS:
        got = getattr(state, name)
        assert isinstance(got, np.ndarray)
        assert not got.flags.writeable
        assert relative(got[0], want_state[name]) < 1e-4
        np.testing.assert_array_equal(got, getattr(same, name))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_split_and_any_batch_gives_the_same(engine, tiny_weights, data):
    rows = data.draw(
        st.lists(st.lists(st.integers(0, 96), min_size=2, max_size=9), min_size=1, max_size=3)
    )
    cuts = [data.draw(st.integers(1, len(r) - 1)) for r in rows]
    kind = data.draw(st.sampled_from(["last", "none"]))
    first, state = engine.forward([r[:c] for r, c in zip(rows, cuts)], logits=kind)
    assert first.shape == (len(rows) if kind == "last" else 0, 97)
    every, state = engine.forward([r[c:] for r, c in zip(rows, cuts)], state, logits="all")
    at = 0
    for i, (row, cut) in enumerate(zip(rows, cuts)):
        want, want_state = definition(tiny_weights, row)
        part = every[at : at + len(row) - cut]
        at += len(part)
        assert relative(part, want[cut:]) < 1e-4
        for name in FIELDS:
            assert relative(getattr(state, name)[i], want_state[name]) < 1e-4


def test_the_caller_s_state_is_never_changed(engine):
    _, state = engine.forward([[1, 2], [3, 4]])
    before = state.copy()
    engine.forward([[5], [6, 7]], state)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(state, name), getattr(before, name))


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_sixteen_bits_stay_close_and_keep_decay_in_float32(tiny_folder, tiny_weights, dtype, bound):
    engine = load(tiny_folder, dtype=dtype)
    assert engine.dtype == dtype
    assert engine.model.rwkv.blocks[0].attention.time_decay.dtype == torch.float32
    tokens = [3, 96, 0, 41, 7]
    logits, state = engine.forward([tokens, tokens[:2]])
    assert logits.dtype == np.float32
    assert state.num.dtype == np.float32
    assert relative(logits[0], definition(tiny_weights, tokens)[0][-1]) < bound


def test_states_carry_the_model_s_fingerprint_and_others_are_refused(
    engine, tmp_path, tiny_config, tiny_folder
):
    from tests.engine.conftest import write_checkpoint

    other = load(write_checkpoint(tmp_path, tiny_config, seed=1))
    _, state = other.forward([[1]])
    with pytest.raises(StateError, match="another model"):
        engine.forward([[1]], state)
    _, half = load(tiny_folder, dtype="bfloat16").forward([[1]])
    engine.forward([[1]], half)  # the same model in another precision
    with pytest.raises(StateError, match="1 sequences given with a batch of 2"):
        engine.forward([[1], [2]], half)
    with pytest.raises(StateError, match="layers"):
        engine.forward([[1]], State.zeros(type(tiny_config)(97, 32, 2)))


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        ([], "no sequence"),
        ([[]], "sequence 0 is empty"),
        ([[1], []], "sequence 1 is empty"),
        ([[97]], "token id 97 is outside the vocabulary, 0 to 96"),
        ([[-1]], "token id -1"),
        ([[1 << 70]], "whole numbers|outside"),
        ([[1.5]], "whole numbers"),
        ([["a"]], "whole numbers"),
        ([[[1]]], "expected token ids"),
        ([1, 2], "expected token ids"),
    ],
)
def test_impossible_tokens_are_refused(engine, tokens, word):
    with pytest.raises(ShapeError, match=word):
        engine.forward(tokens)


def test_impossible_choices_are_refused_never_replaced(tiny_folder, engine, monkeypatch):
    with pytest.raises(ConfigError, match="logits is 'some'"):
        engine.forward([[1]], logits="some")
    with pytest.raises(ConfigError, match="dtype is 'int8'"):
        load(tiny_folder, dtype="int8")
    with pytest.raises(ConfigError, match="threads is 0"):
        load(tiny_folder, threads=0)
    with pytest.raises(UnavailableError, match="warp9"):
        load(tiny_folder, device="warp9")
    if not torch.cuda.is_available():
        with pytest.raises(UnavailableError, match="cuda"):
            load(tiny_folder, device="cuda")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError, match=r"wkv\[torch\]"):
        load(tiny_folder)


def test_threads_are_limited_during_a_call_only(tiny_folder, engine, monkeypatch):
    before = torch.get_num_threads()
    limited = load(tiny_folder, threads=before + 1)
    seen = []
    head = limited.model.head.forward
    monkeypatch.setattr(
        limited.model.head, "forward", lambda x: seen.append(torch.get_num_threads()) or head(x)
    )
    limited.forward([[1, 2]])
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_calls_from_several_threads_do_not_disturb_each_other(engine):
    rows = [[i, i + 1, i + 2] for i in range(6)]
    want = [engine.forward([row])[0] for row in rows]
    got: dict[int, np.ndarray] = {}
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: engine.forward([rows[i]])[0]}))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, logits in enumerate(want):
        np.testing.assert_array_equal(got[i], logits)
