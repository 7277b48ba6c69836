"""The state as a value: immutable, batched, moved, saved, refused where it does not belong."""

from __future__ import annotations

import copy
import dataclasses
import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as to_safetensors

from tests.oracles.models import random_weights
from wkv.config import PRESETS, ModelConfig
from wkv.errors import StateError
from wkv.state import EMPTY_MAX, FIELDS, Fingerprint, State

CONFIG = ModelConfig(vocab_size=11, hidden_size=3, num_hidden_layers=2, attention_hidden_size=4)
MARK = Fingerprint((2, 3, 4, 12, 11), (0.5, -1.25, 3.0))


def random_state(batch=2, config=CONFIG, seed=0, fingerprint=None):
    rng = np.random.default_rng(seed)

    def field(size):
        shape = (batch, config.num_hidden_layers, size)
        return rng.normal(0, 3, shape).astype(np.float32)

    d, a = config.hidden_size, config.attention_size
    return State(field(d), field(d), field(a), field(a), field(a), fingerprint)


def assert_equal(got, want):
    for name in FIELDS:
        a, b = (np.asarray(getattr(s, name)) for s in (got, want))
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert got.fingerprint == want.fingerprint


shapes = st.builds(
    lambda layers, d, a: ModelConfig(
        vocab_size=5, num_hidden_layers=layers, hidden_size=d, attention_hidden_size=a
    ),
    *(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
)
any_state = st.builds(
    random_state,
    st.integers(0, 4),
    shapes,
    st.integers(0, 2**32 - 1),
    st.sampled_from([None, MARK]),
)

# --- a value --------------------------------------------------------------------------------------


def test_the_state_before_the_first_token_is_zero_with_the_lowest_maximum():
    state = State.zeros(CONFIG, 3)
    assert len(state) == state.batch_size == 3
    assert state.num_layers == 2
    assert state.att_x.shape == state.ffn_x.shape == (3, 2, 3)
    assert state.num.shape == state.den.shape == state.max.shape == (3, 2, 4)
    assert not any(getattr(state, name).any() for name in FIELDS[:4])
    assert (state.max == np.float32(EMPTY_MAX)).all()
    assert np.isfinite(state.max - state.max).all()


@pytest.mark.parametrize("size", PRESETS)
def test_a_state_is_five_floats_a_channel_and_layer(size):
    config = PRESETS[size]
    want = 5 * config.num_hidden_layers * config.hidden_size * 4
    assert State.zeros(config).nbytes == State.zeros(config).to("cpu").nbytes == want


@pytest.mark.parametrize(
    "make",
    [
        lambda s: s,
        lambda s: s.copy(),
        lambda s: s.select([1, 0]),
        lambda s: s.select(slice(0, 1)),
        lambda s: State.stack([s, s]),
        lambda s: s.to("cpu").to("numpy"),
        lambda s: s.with_fingerprint(MARK),
        lambda s: pickle.loads(pickle.dumps(s)),
        copy.deepcopy,
    ],
)
def test_no_way_of_making_a_numpy_state_leaves_it_writable(make):
    state = make(random_state())
    for name in FIELDS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(state, name)[0, 0, 0] = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.num = state.den


def test_whoever_made_the_arrays_can_no_longer_change_the_state():
    owned = [np.ones((1, 1, 2), np.float32) for _ in FIELDS]
    state = State(*owned)
    with pytest.raises(ValueError, match="read-only"):
        owned[0][:] = 7
    buffer = np.ones((5, 1, 1, 2), np.float32)
    state = State(*buffer)
    buffer[:] = 7
    assert all((getattr(state, name) == 1).all() for name in FIELDS)


def test_fields_that_do_not_fit_together_are_refused_with_their_shapes():
    good = random_state().fields()
    with pytest.raises(StateError, match=r"do not fit together: .*'den': \(2, 2, 9\)"):
        State(**{**good, "den": np.zeros((2, 2, 9), np.float32)})
    with pytest.raises(StateError, match="do not fit together"):
        State(**{**good, "ffn_x": np.zeros((1, 2, 3), np.float32)})
    with pytest.raises(StateError, match=r"each must be \[batch, layers, channels\]"):
        State(**{**good, "max": np.zeros((2, 4), np.float32)})
    with pytest.raises(StateError, match="'num' is float64: give float32"):
        State(**{**good, "num": np.zeros((2, 2, 4))})
    with pytest.raises(StateError, match="all NumPy arrays or all torch tensors"):
        State(**{**good, "num": torch.zeros(2, 2, 4)})


# --- batches --------------------------------------------------------------------------------------


@given(state=any_state, data=st.data())
@settings(max_examples=50, deadline=None)
def test_selecting_rows_and_stacking_them_gives_the_batch_back(state, data):
    state = data.draw(st.sampled_from([state, state.to("cpu")]))
    rows = [state.select(i) for i in range(state.batch_size)]
    assert [len(row) for row in rows] == [1] * state.batch_size
    if rows:
        assert_equal(State.stack(rows), state)
    cut = data.draw(st.integers(0, state.batch_size))
    halves = [state.select(slice(None, cut)), state.select(range(cut, state.batch_size))]
    assert_equal(State.stack(halves), state)
    order = data.draw(st.permutations(range(state.batch_size)))
    assert_equal(state.select(order).select(np.argsort(order)), state)


def test_a_row_may_be_taken_more_than_once_and_from_the_end():
    state = random_state(3)
    beams = state.select(np.array([2, 2, 0]))
    for i, row in enumerate((2, 2, 0)):
        assert_equal(beams.select(i), state.select(row))
    assert_equal(state.select(-1), state.select(2))
    assert_equal(state.select(torch.tensor([1])), state.select(1))


@pytest.mark.parametrize("rows", [3, -4, [0, 5]])
def test_a_row_outside_the_batch_is_refused(rows):
    with pytest.raises(StateError, match="is outside a state of 3 sequences"):
        random_state(3).select(rows)


def test_a_mask_is_not_taken_for_row_numbers():
    with pytest.raises(StateError, match="not a mask"):
        random_state(2).select([True, False])
    with pytest.raises(StateError, match="not a mask"):
        random_state(2).select(np.array([True, False]))


def test_states_that_do_not_belong_together_cannot_be_stacked():
    with pytest.raises(StateError, match="at least one"):
        State.stack([])
    with pytest.raises(StateError, match=r"use \.to\(\) first"):
        State.stack([random_state(), random_state().to("cpu")])
    other = dataclasses.replace(CONFIG, hidden_size=5)
    with pytest.raises(StateError, match=r"att_x of \(2, 5\) onto \(2, 3\)"):
        State.stack([random_state(), random_state(config=other)])
    marks = [MARK, None, dataclasses.replace(MARK, probe=(0.5, 1.25, 3.0))]
    with pytest.raises(StateError, match="another model"):
        State.stack([random_state(fingerprint=mark) for mark in marks])


def test_a_stack_keeps_the_mark_of_any_of_its_states():
    plain, marked = random_state(), random_state(fingerprint=MARK)
    for states in ([plain, marked], [marked, plain]):
        assert State.stack(states).fingerprint == MARK


# --- moving ---------------------------------------------------------------------------------------


@given(state=any_state)
@settings(max_examples=30, deadline=None)
def test_moving_to_torch_and_back_changes_nothing(state):
    moved = state.to("cpu")
    assert moved.is_torch
    assert not state.is_torch
    assert_equal(moved, state)
    assert_equal(moved.to("numpy"), state)
    assert_equal(moved.copy(), state)


def test_sixteen_bit_activations_keep_the_recurrence_in_float32():
    state = random_state().to("cpu", dtype=torch.bfloat16)
    kinds = {name: value.dtype for name, value in state.fields().items()}
    assert {kinds["att_x"], kinds["ffn_x"]} == {torch.bfloat16}
    assert {kinds["num"], kinds["den"], kinds["max"]} == {torch.float32}
    assert all(a.dtype == np.float32 for a in state.to("numpy").fields().values())
    double = random_state().to("cpu", dtype=torch.float64)
    assert {value.dtype for value in double.fields().values()} == {torch.float64}


def test_a_copy_has_memory_of_its_own():
    state = random_state().to("cpu")
    before = state.copy()
    state.num.zero_()
    assert not np.array_equal(before.num, state.num)
    array = random_state()
    assert not np.shares_memory(array.copy().num, array.num)


def test_detaching_cuts_the_gradient_and_leaves_numpy_alone():
    state = random_state().to("cpu")
    grown = dataclasses.replace(state, num=state.num.clone().requires_grad_())
    assert grown.num.requires_grad
    assert not grown.detach().num.requires_grad
    assert not grown.to("numpy").is_torch
    array = random_state()
    assert array.detach() is array


# --- belonging to a model -------------------------------------------------------------------------


def test_a_state_says_which_models_it_fits():
    state = random_state(2)
    state.check(CONFIG)
    state.check(CONFIG, batch_size=2)
    with pytest.raises(StateError, match=r"2 sequences given with a batch of 3: use state\.select"):
        state.check(CONFIG, batch_size=3)
    for change in (
        {"hidden_size": 4},
        {"attention_hidden_size": 5},
        {"num_hidden_layers": 3},
    ):
        with pytest.raises(StateError, match="state of 2 layers, 3 hidden and 4 attention"):
            state.check(dataclasses.replace(CONFIG, **change))


def rounded(weights, dtype):
    return {n: torch.from_numpy(x).to(dtype).float().numpy() for n, x in weights.items()}


def fingerprint(config, weights):
    return Fingerprint.of(config, lambda name: weights[name])


@pytest.mark.parametrize("seed", range(5))
def test_a_fingerprint_is_the_same_in_every_precision_and_differs_between_models(seed, tiny_config):
    weights = random_weights(tiny_config, seed)
    mark = fingerprint(tiny_config, weights)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        other = fingerprint(tiny_config, rounded(weights, dtype))
        assert mark.matches(other)
        assert other.matches(mark)
    halves = [fingerprint(tiny_config, rounded(weights, d)) for d in (torch.bfloat16, torch.half)]
    assert halves[0].matches(halves[1])
    for apart in range(5):
        other = fingerprint(tiny_config, random_weights(tiny_config, apart))
        assert mark.matches(other) == (apart == seed)


def test_models_of_another_shape_have_another_fingerprint_whatever_their_weights(tiny_config):
    weights = random_weights(tiny_config)
    larger = dataclasses.replace(tiny_config, vocab_size=98)
    assert not fingerprint(tiny_config, weights).matches(fingerprint(larger, weights))


@pytest.mark.parametrize("layers", [1, 2, 3, 7])
def test_a_fingerprint_samples_a_model_of_any_depth_and_survives_json(layers):
    config = ModelConfig(vocab_size=5, hidden_size=4, num_hidden_layers=layers)
    mark = fingerprint(config, random_weights(config))
    assert Fingerprint.from_json(mark.to_json()) == mark


def test_a_state_of_another_model_is_refused():
    state = random_state(fingerprint=MARK)
    state.check_fingerprint(MARK)
    state.check_fingerprint(None)
    random_state().check_fingerprint(MARK)
    with pytest.raises(StateError, match="load it into the model that made it"):
        state.check_fingerprint(dataclasses.replace(MARK, probe=(0.5, -1.5, 3.0)))


# --- files ----------------------------------------------------------------------------------------


@given(state=any_state)
@settings(max_examples=30, deadline=None)
def test_a_saved_state_is_loaded_exactly(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "a.state"
    state.save(path)
    assert_equal(State.load(str(path)), state)
    state.to("cpu").save(path)
    assert_equal(State.load(path), state)
    assert [p.name for p in path.parent.iterdir()] == ["a.state"]


def test_a_transposed_state_is_saved_by_value(tmp_path):
    turned = State.from_layout("huggingface", random_state().to_layout("huggingface"), CONFIG)
    turned.save(tmp_path / "a")
    assert_equal(State.load(tmp_path / "a"), random_state())


def test_a_new_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    random_state().save(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_name_as_long_as_the_system_allows_can_be_written(tmp_path):
    path = tmp_path / ("n" * 255)
    random_state().save(path)
    assert_equal(State.load(path), random_state())


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_while_saving_keeps_the_old_file_and_leaves_no_other(
    step, error, tmp_path, monkeypatch
):
    path = tmp_path / "a.state"
    random_state(seed=1).save(path)

    def fail(*_):
        raise error

    monkeypatch.setattr(os, step, fail)
    expected = StateError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        random_state(seed=2).save(path)
    if expected is StateError:
        assert str(caught.value).startswith(f"{path}: not saved: the disk is full (No sp")
    monkeypatch.undo()
    assert_equal(State.load(path), random_state(seed=1))
    assert list(tmp_path.iterdir()) == [path]


def test_saving_makes_missing_folders_and_names_a_place_where_it_cannot(tmp_path):
    random_state().save(tmp_path / "new" / "a.state")
    assert_equal(State.load(tmp_path / "new" / "a.state"), random_state())
    with pytest.raises(StateError, match="not saved: is a folder"):
        random_state().save(tmp_path)
    with pytest.raises(StateError, match=r"b\.state: not saved: cannot be written"):
        random_state().save(tmp_path / "new" / "a.state" / "b.state")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_device_or_a_pipe_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StateError, match="pipe: not saved: is a device or a pipe"):
        random_state().save(tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    fields = random_state().fields()
    for value in (np.nan, np.inf):
        bad = State(**{**fields, "den": np.full_like(fields["den"], value)})
        with pytest.raises(StateError, match="'den' is not finite"):
            bad.save(tmp_path / "a.state")
    assert not list(tmp_path.iterdir())


GOOD = {"format": "wkv-state", "version": "1", "architecture": "rwkv4"}


def write(path, fields=None, metadata=GOOD):
    path.write_bytes(to_safetensors(fields or random_state().fields(), metadata=metadata))
    return path


def test_the_file_is_what_the_documented_format_says(tmp_path):
    assert_equal(State.load(write(tmp_path / "a")), random_state())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "not a state file"),
        ({**GOOD, "format": "pt"}, "not a state file"),
        ({**GOOD, "version": "2"}, "version '2'; this package reads version 1: upgrade wkv"),
        ({**GOOD, "architecture": "rwkv7"}, "architecture 'rwkv7'; this package runs 'rwkv4'"),
        ({**GOOD, "fingerprint": "{"}, "damaged state file"),
        ({**GOOD, "fingerprint": "[1]"}, "damaged state file"),
        ({**GOOD, "fingerprint": '{"shape": [1, 2], "probe": []}'}, "damaged state file"),
        ({**GOOD, "fingerprint": '{"shape": [1,1,1,1,1], "probe": [NaN]}'}, "damaged state file"),
        ({**GOOD, "fingerprint": "[" * 100_000}, "damaged state file"),
    ],
)
def test_a_file_of_another_kind_or_version_is_named_and_refused(metadata, message, tmp_path):
    path = write(tmp_path / "a.state", metadata=metadata)
    with pytest.raises(StateError, match=message) as caught:
        State.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def replaced(**changes):
    fields = {**random_state().fields(), **changes}
    return {name: value for name, value in fields.items() if value is not None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (replaced(num=None), r"holds \['att_x', 'den', 'ffn_x', 'max'\], expected"),
        (replaced(extra=np.zeros(1, np.float32)), "holds .*'extra'"),
        (replaced(num=np.zeros((2, 2, 4), np.float16)), "'num' is float16, expected float32"),
        (replaced(num=np.zeros((2, 2, 4))), "'num' is float64, expected float32"),
        (replaced(max=np.full((2, 2, 4), np.nan, np.float32)), "'max' holds values .* not finite"),
        (replaced(den=np.full((2, 2, 4), np.inf, np.float32)), "'den' holds values .* not finite"),
        (replaced(num=np.zeros((1, 2, 4), np.float32)), "do not fit together"),
        (replaced(num=np.zeros(4, np.float32)), r"each must be \[batch, layers, channels\]"),
    ],
)
def test_a_file_with_wrong_fields_is_named_and_refused(fields, message, tmp_path):
    path = write(tmp_path / "a.state", fields)
    with pytest.raises(StateError, match=message) as caught:
        State.load(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = write(tmp_path / "whole").read_bytes()
    path = tmp_path / "cut"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError, match=r"cut: "):
            State.load(path)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_byte_gives_a_state_or_a_typed_error_and_nothing_else(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "a"
    random_state(1, fingerprint=MARK).save(path)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    content[where] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        state = State.load(path)
    except StateError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017 (either outcome is right)
    else:
        assert all(np.isfinite(a).all() for a in state.fields().values())


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02}q\x00.", b"\xff" * 64])
def test_a_file_that_is_not_safetensors_is_refused(content, tmp_path):
    path: Path = tmp_path / "a.state"
    path.write_bytes(content)
    with pytest.raises(StateError, match=r"a\.state: damaged state file"):
        State.load(path)


def test_a_missing_file_is_named(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(StateError, match="no such state file"):
            State.load(path)
