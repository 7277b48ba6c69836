"""The native engine against the float64 loop over tokens and against the PyTorch model."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.conftest import write_checkpoint
from tests.oracles import rwkv_float64
from tests.oracles.models import random_weights, torch_model
from wkv import _native
from wkv.checkpoint import convert, open_checkpoint
from wkv.config import ModelConfig
from wkv.engine.native import Cancel, NativeEngine, load_format, load_native
from wkv.engine.protocol import Engine
from wkv.errors import CancelledError, ConfigError, NonFiniteError, ShapeError, StateError
from wkv.state import FIELDS, State

ISAS = _native.engine_instruction_sets()
FORMATS = ("f32", "bf16", "q8", "q4")
VOCAB = 97


@pytest.fixture(scope="module")
def engines(tiny_folder):
    """One engine for each format and instruction set, made when first asked for."""
    made: dict[tuple, NativeEngine] = {}

    def get(format="f32", isa=None, threads=2):
        key = (format, isa, threads)
        if key not in made:
            made[key] = load_format(
                tiny_folder, format=format, threads=threads, instruction_set=isa
            )
        return made[key]

    return get


def tokens(*lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, n).tolist() for n in lengths]


def assert_same(a: State, b: State):
    for name in FIELDS:
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


def run_pieces(engine, sequence, cuts):
    state, rows = None, []
    for a, b in zip([0, *cuts], [*cuts, len(sequence)]):
        if a < b:
            logits, state = engine.forward([sequence[a:b]], state, logits="all")
            rows.append(logits)
    return np.concatenate(rows), state


@pytest.mark.parametrize("isa", ISAS)
def test_float32_equals_the_float64_loop(engines, tiny_weights, isa):
    engine = engines("f32", isa)
    batch = tokens(17, 1, 40, 5)
    logits, state = engine.forward(batch, logits="all")
    expected = [rwkv_float64.forward(tiny_weights, t) for t in batch]
    np.testing.assert_allclose(logits, np.concatenate([e[0] for e in expected]), atol=1e-4, rtol=0)
    for b, (_, final) in enumerate(expected):
        for name in FIELDS:
            np.testing.assert_allclose(getattr(state, name)[b], final[name], atol=1e-4, rtol=1e-5)


def test_float32_equals_the_pytorch_model(engines, tiny_config, tiny_weights):
    torch = pytest.importorskip("torch")
    from wkv.engine.torch_engine import TorchEngine

    other = TorchEngine(torch_model(tiny_config, tiny_weights))
    batch = tokens(9, 3, 12)
    ours, theirs = engines(), other
    a, state_a = ours.forward(batch, logits="all")
    b, state_b = theirs.forward(batch, logits="all")
    np.testing.assert_allclose(a, b, atol=1e-4, rtol=0)
    # A state made by one engine goes on in the other.
    more = tokens(4, 1, 2, seed=1)
    a2, _ = ours.forward(more, State(**state_b.fields()))
    b2, _ = theirs.forward(more, State(**state_a.fields()))
    np.testing.assert_allclose(a2, b2, atol=1e-4, rtol=0)
    with torch.no_grad():
        moved = State(**state_a.fields()).to("cpu")
        assert moved.is_torch
    a3, _ = ours.forward(more, moved)
    np.testing.assert_allclose(a3, b2, atol=1e-4, rtol=0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_quantized_weights_are_the_only_approximation_beside_rounded_inputs(
    tiny_folder, tiny_config, format, isa
):
    """Against a float64 model of the *unpacked* weights only the rounding of inputs remains."""
    engine = load_format(tiny_folder, format=format, threads=1, instruction_set=isa)
    weights = {}
    with open_checkpoint(tiny_folder) as checkpoint:
        from wkv.checkpoint.packed import default_formats, is_matrix, pack_matrix

        kinds = default_formats(tiny_config, format)
        for name, shape in checkpoint.shapes.items():
            if is_matrix(shape):
                packed = pack_matrix(checkpoint, name, kinds.get(name, format), threads=1)
                weights[name] = _native.unpack(tuple(packed))
            else:
                weights[name] = checkpoint.tensor(name)
    (sequence,) = tokens(30)
    expected, _ = rwkv_float64.forward(weights, sequence)
    got, _ = engine.forward([sequence], logits="all")
    error = np.sqrt(np.square(got - expected).mean() / np.square(expected).mean())
    assert error < {"f32": 1e-5, "bf16": 1e-2, "q8": 2e-2, "q4": 2e-2}[format]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_results_are_the_same_bits_on_any_number_of_threads(engines, format, isa):
    batch = tokens(11, 2, 1, 30)
    expected, state = engines(format, isa, 1).forward(batch, logits="all")
    step, _ = engines(format, isa, 1).forward([[3]], state.select(2))
    for threads in (2, 3, 7):
        engine = engines(format, isa, threads)
        logits, other = engine.forward(batch, logits="all")
        assert np.array_equal(logits, expected)
        assert_same(other, state)
        assert np.array_equal(engine.forward([[3]], other.select(2))[0], step)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_results_do_not_depend_on_the_rest_of_the_batch(engines, format, isa):
    engine = engines(format, isa)
    batch = tokens(5, 1, 33, 1, 12, 1)
    together, state = engine.forward(batch)
    for i, sequence in enumerate(batch):
        alone, own = engine.forward([sequence])
        assert np.array_equal(alone[0], together[i])
        assert_same(own, state.select(i))


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    length=st.integers(1, 24),
    cuts=st.lists(st.integers(1, 23), max_size=5),
    format=st.sampled_from(FORMATS),
)
def test_any_split_of_a_sequence_gives_the_same_bits(engines, length, cuts, format):
    engine = engines(format)
    (sequence,) = tokens(length)
    whole, state = engine.forward([sequence], logits="all")
    parts, last = run_pieces(engine, sequence, sorted(c for c in cuts if c < length))
    assert np.array_equal(parts, whole)
    assert_same(last, state)


def test_long_prompts_pass_through_several_chunks_unchanged(engines):
    for format in FORMATS:
        engine = engines(format)
        batch = tokens(300, 700, 1, 20)  # chunks of 256 cut inside and between sequences
        logits, state = engine.forward(batch, logits="all")
        at = 0
        for i, sequence in enumerate(batch):
            rows, own = run_pieces(engine, sequence, [len(sequence) // 3, len(sequence) // 2])
            assert np.array_equal(rows, logits[at : at + len(sequence)])
            assert_same(own, state.select(i))
            at += len(sequence)


def test_logits_are_given_where_asked(engines):
    engine = engines()
    batch = tokens(4, 300, 2)
    every, _ = engine.forward(batch, logits="all")
    assert every.shape == (306, VOCAB)
    last, _ = engine.forward(batch)
    assert np.array_equal(last, every[[3, 303, 305]])
    none, state = engine.forward(batch, logits="none")
    assert none.shape == (0, VOCAB)
    assert state.batch_size == 3
    some, _ = engine.forward(batch, logits=[0, 5, 260, 305])
    assert np.array_equal(some, every[[0, 5, 260, 305]])
    nothing, _ = engine.forward(batch, logits=[])
    assert nothing.shape == (0, VOCAB)


@pytest.mark.parametrize("wrong", [[5, 5], [3, 1], [-1], [306], [0.5], [[1]]])
def test_wrong_positions_of_logits_are_refused(engines, wrong):
    with pytest.raises(ShapeError, match="positions"):
        engines().forward(tokens(4, 300, 2), logits=wrong)


def test_the_state_given_is_never_changed(engines):
    engine = engines()
    _, state = engine.forward(tokens(5, 3))
    copies = {n: a.copy() for n, a in state.fields().items()}
    engine.forward(tokens(300, 1), state)
    for name, array in state.fields().items():
        assert np.array_equal(array, copies[name])
        assert not array.flags.writeable


def test_unusual_token_containers_are_taken(engines):
    engine = engines()
    expected, _ = engine.forward([[1, 2, 3]])
    for row in ((1, 2, 3), np.array([1, 2, 3], np.uint16), np.array([1, 0, 2, 0, 3])[::2]):
        assert np.array_equal(engine.forward([row])[0], expected)


@pytest.mark.parametrize(
    "bad", [[], [[]], [[1], []], [[VOCAB]], [[-1]], [[1.5]], [["a"]], [[1 << 40]]]
)
def test_bad_tokens_are_refused(engines, bad):
    with pytest.raises(ShapeError):
        engines().forward(bad)


def test_states_of_other_models_and_batches_are_refused(engines, square_config, tiny_config):
    engine = engines()
    with pytest.raises(StateError, match="given to a model"):
        engine.forward([[1]], State.zeros(square_config))
    with pytest.raises(StateError, match="batch of 2"):
        engine.forward([[1], [2]], State.zeros(tiny_config))


def test_a_state_of_a_model_trained_apart_is_refused(engines, tmp_path, tiny_config):
    other = load_format(write_checkpoint(tmp_path, tiny_config, seed=5))
    _, state = other.forward([[1]])
    with pytest.raises(StateError, match="another model"):
        engines().forward([[1]], state)


def test_logits_that_are_not_finite_raise(engines, tiny_config):
    broken = State.zeros(tiny_config)
    fields = {n: a.copy() for n, a in broken.fields().items()}
    fields["num"][0, 1, 3] = np.nan
    for format in FORMATS:
        with pytest.raises(NonFiniteError, match="damaged"):
            engines(format).forward([[1, 2]], State(**fields))


def test_cancelling_stops_between_layers(engines):
    engine = engines()
    cancel = Cancel()
    cancel.set()
    with pytest.raises(CancelledError):
        engine.forward(tokens(2000), cancel=cancel)
    cancel.clear()
    assert np.array_equal(engine.forward([[7]], cancel=cancel)[0], engine.forward([[7]])[0])


def test_ctrl_c_stops_a_long_prompt(tiny_folder):
    script = f"""
import os, signal, threading, time
from wkv.engine.native import load_format
engine = load_format({str(tiny_folder)!r}, threads=2)
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
start = time.time()
try:
    engine.forward([[1] * 20_000_000], logits="none")
except KeyboardInterrupt:
    print("stopped", time.time() - start < 60)
engine.forward([[1, 2]])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "stopped True", done.stderr


def test_several_python_threads_share_an_engine(engines):
    engine = engines("q4")
    batch = tokens(60, 3)
    expected, _ = engine.forward(batch)
    wrong = []

    def work():
        results = [engine.forward(batch)[0] for _ in range(10)]
        wrong.extend(r for r in results if not np.array_equal(r, expected))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not wrong


def test_several_engines_run_at_once(tiny_folder):
    made = [load_format(tiny_folder, format=f, threads=2) for f in FORMATS]
    batch = tokens(30, 1)
    expected = [e.forward(batch)[0] for e in made]
    same = []

    def work(i):
        same.append(all(np.array_equal(made[i].forward(batch)[0], expected[i]) for _ in range(10)))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(made))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert same == [True] * len(made)


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_an_engine_works_in_a_forked_child(tiny_folder):
    script = f"""
import os, numpy as np
from wkv.engine.native import load_format
engine = load_format({str(tiny_folder)!r}, threads=2)
expected, _ = engine.forward([[1, 2, 3]])
child = os.fork()
if child == 0:
    ok = np.array_equal(engine.forward([[1, 2, 3]])[0], expected)
    os._exit(0 if ok else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "0", done.stderr


def test_loading_and_running_import_no_torch(tiny_folder):
    script = f"""
import sys
from wkv.engine.native import load_format
load_format({str(tiny_folder)!r}, format="q4").forward([[1]])
print(sorted({{m.partition(".")[0] for m in sys.modules}} & {{"torch", "transformers"}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_it_is_an_engine(engines):
    assert isinstance(engines(), Engine)
    assert engines().name == "native"
    assert engines("q4").format == "q4"


def test_tied_embeddings_share_one_matrix(tmp_path):
    config = ModelConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, tie_word_embeddings=True
    )
    weights = random_weights(config)
    weights["head.weight"] = weights["emb.weight"]
    engine = load_format(write_checkpoint(tmp_path, config, weights))
    logits, _ = engine.forward([[1, 2, 3]], logits="all")
    expected, _ = rwkv_float64.forward(weights, [1, 2, 3])
    np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("option", "value"),
    [("format", "q3"), ("threads", 0), ("threads", 2.5), ("instruction_set", "mmx")],
)
def test_unknown_options_are_refused(tiny_folder, option, value):
    with pytest.raises(ConfigError):
        load_format(tiny_folder, **{option: value})


@pytest.mark.parametrize(
    ("stored", "format"), [("float32", "f32"), ("float16", "f32"), ("bfloat16", "bf16")]
)
def test_weights_are_never_rounded_unasked(stored, format, tiny_folder, tmp_path):
    convert(tiny_folder, tmp_path / "m", dtype=stored)
    assert load_native(tmp_path / "m").format == format


def test_loading_by_dtype_or_quantization(tiny_folder):
    assert load_native(tiny_folder).format == "f32"
    assert load_native(tiny_folder, dtype="bfloat16").format == "bf16"
    assert load_native(tiny_folder, quant="q4", threads=1).threads == 1


@pytest.mark.parametrize(
    "options",
    [{"dtype": "float16"}, {"quant": "q5"}, {"dtype": "float32", "quant": "q4"}],
)
def test_dtypes_that_the_engine_has_not_are_refused(tiny_folder, options):
    with pytest.raises(ConfigError):
        load_native(tiny_folder, **options)
