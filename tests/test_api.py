from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import wkv
from tests.engine.conftest import write_checkpoint
from tests.oracles.models import random_weights
from tests.oracles.rwkv_float64 import forward as definition
from wkv import api
from wkv.errors import (
    CheckpointError,
    ConfigError,
    ShapeError,
    StateError,
    TokenizerError,
    UnavailableError,
)
from wkv.tokenizer import ByteTokenizer


@pytest.fixture(scope="module")
def byte_config():
    return wkv.ModelConfig(vocab_size=257, hidden_size=32, num_hidden_layers=2)


@pytest.fixture(scope="module")
def byte_weights(byte_config):
    return random_weights(byte_config, seed=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, byte_config, byte_weights):
    return write_checkpoint(tmp_path_factory.mktemp("bytes"), byte_config, byte_weights)


@pytest.fixture(scope="module")
def model(folder):
    return wkv.load(folder, engine="torch")


@pytest.fixture(scope="module")
def mute(tmp_path_factory, tiny_config):
    """A model whose vocabulary belongs to no known tokenizer."""
    return wkv.load(write_checkpoint(tmp_path_factory.mktemp("mute"), tiny_config), engine="torch")


# --- loading --------------------------------------------------------------------------------


def test_a_folder_and_each_file_format_load_to_the_same_model(model, folder, tmp_path):
    from wkv.checkpoint import convert

    want, _ = model.forward([5, 6, 7])
    for name in ("model.pth", "model.bin"):
        convert(folder, tmp_path / name)
        got, _ = wkv.load(tmp_path / name, engine="torch").forward([5, 6, 7])
        np.testing.assert_allclose(got, want, atol=1e-5)
    got, _ = wkv.load(str(folder / "model.safetensors"), engine="torch").forward([5, 6, 7])
    np.testing.assert_array_equal(got, want)


def test_what_cannot_be_found_is_said(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        wkv.load(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        wkv.load("a prompt in the place of a model " * 200)
    monkeypatch.setattr(api, "BUNDLED", tmp_path)
    with pytest.raises(CheckpointError, match="no bundled model"):
        wkv.load()


def test_an_explicit_choice_is_never_replaced(folder, monkeypatch):
    with pytest.raises(UnavailableError, match="unknown engine 'fast'"):
        wkv.load(folder, engine="fast")
    with pytest.raises(UnavailableError, match="on the CPU, not on 'cuda'"):
        wkv.load(folder, engine="native", device="cuda")
    with pytest.raises(UnavailableError, match="engine='torch' was asked for"):
        wkv.load(folder, engine="torch", quant="q8")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError, match="needs PyTorch"):
        wkv.load(folder, engine="torch")


def test_the_engine_is_chosen_by_what_is_there_and_what_is_asked(monkeypatch):
    for there, want in ((True, "native"), (False, "torch")):
        monkeypatch.setattr(api, "_has_native", lambda there=there: there)
        assert api._choose_engine("auto", None, None, None) == want
        assert api._choose_engine("auto", "cpu", "bfloat16", None) == want
        assert api._choose_engine("auto", None, None, "q8") == want
        assert api._choose_engine("auto", "cuda", None, None) == "torch"
        assert api._choose_engine("auto", None, "float64", None) == "torch"
        assert api._choose_engine("native", None, None, None) == "native"
        assert api._choose_engine("torch", None, None, None) == "torch"


def test_the_tokenizer_may_be_named_and_must_fit(folder, tmp_path, model, mute):
    assert model.tokenizer.name == "bytes"
    assert model.has_tokenizer
    assert wkv.load(folder, engine="torch", tokenizer=ByteTokenizer()).tokenizer.name == "bytes"
    with pytest.raises(TokenizerError, match="65530 ids, the model's vocabulary 257"):
        wkv.load(folder, engine="torch", tokenizer="world")
    with pytest.raises(TokenizerError, match="no such tokenizer"):
        wkv.load(folder, engine="torch", tokenizer=tmp_path / "none.json")


def test_a_model_without_a_tokenizer_runs_on_ids_and_says_what_is_missing(mute):
    assert not mute.has_tokenizer
    result = mute.generate([1, 2, 3], max_tokens=4)
    assert len(result.ids) <= 4
    assert result.text == ""
    for ask in (lambda: mute.generate("text"), lambda: mute.tokenizer, lambda: mute.embed("text")):
        with pytest.raises(TokenizerError, match=r"vocabulary of 97; looked for tokenizer\.json"):
            ask()
    assert mute.embed([1, 2]).shape == (3 * (2 * 32 + 48),)
    assert "none" in repr(mute)


# --- forward --------------------------------------------------------------------------------


def test_forward_equals_the_definition_in_any_split(model, byte_weights, monkeypatch):
    ids = list(range(40, 60))
    want, _ = definition(byte_weights, ids)
    logits, state = model.forward(np.array(ids))
    assert logits.shape == (257,)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, want[-1], atol=1e-4 * np.abs(want).max())
    monkeypatch.setattr(api, "CHUNK", 6)
    chunked, _ = model.forward(ids)
    np.testing.assert_allclose(chunked, logits, atol=1e-4)
    one_by_one = None
    for i in ids:
        step, one_by_one = model.forward([i], one_by_one)
    np.testing.assert_allclose(step, logits, atol=1e-4)
    np.testing.assert_allclose(one_by_one.num, state.num, atol=1e-4)
    with pytest.raises(ShapeError, match="empty"):
        model.forward([])


def test_states_save_load_and_belong_to_their_model(model, mute, tmp_path):
    _, state = model.forward([1, 2, 3])
    state.save(tmp_path / "s.safetensors")
    again = wkv.State.load(tmp_path / "s.safetensors")
    np.testing.assert_array_equal(model.forward([4], again)[0], model.forward([4], state)[0])
    with pytest.raises(StateError, match="another model"):
        mute.forward([4], state)
    with pytest.raises(StateError, match="another model"):
        mute.generate([4], state=state)
    with pytest.raises(StateError, match="another model"):
        mute.generate("", state=state, logits=np.zeros(97, np.float32))
    for run in (model.forward, model.generate):
        with pytest.raises(StateError, match=r"state is 's\.safetensors': give a wkv\.State"):
            run([4], state="s.safetensors")


# --- generate -------------------------------------------------------------------------------


def test_text_ids_and_state_agree_on_a_real_model(model):
    free = model.generate("Hello", seed=4, max_tokens=60, stop_tokens=())
    stop = next(c for c in free.text[5:] if c != "\ufffd")
    stopped = model.generate("Hello", seed=4, max_tokens=60, stop_tokens=(), stop=stop)
    assert stopped.text == free.text[: free.text.index(stop)]
    assert model.tokenizer.decode(stopped.ids) == stopped.text
    want, state = model.forward([*model.tokenizer.encode("Hello"), *stopped.ids])
    np.testing.assert_allclose(stopped.state.num, state.num, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(stopped.logits, want, atol=1e-4)
    assert (stopped.finish_reason, stopped.stop) == ("stop", stop)


def test_streamed_pieces_join_to_the_generated_text(model):
    stream = model.stream("Hello", seed=9, max_tokens=30)
    text = "".join(piece.text for piece in stream)
    assert text == stream.result().text == model.generate("Hello", seed=9, max_tokens=30).text


def test_a_conversation_goes_on_from_its_state(model):
    first = model.generate("Hello", temperature=0, max_tokens=8)
    second = model.generate(" and", state=first.state, temperature=0, max_tokens=8)
    ids = [*model.tokenizer.encode("Hello"), *first.ids, *model.tokenizer.encode(" and")]
    assert second.ids == model.generate(ids, temperature=0, max_tokens=8).ids
    going_on = model.generate(state=first.state, logits=first.logits, temperature=0, max_tokens=3)
    whole = model.generate("Hello", temperature=0, max_tokens=11)
    assert first.ids + going_on.ids == whole.ids


def test_an_empty_prompt_begins_a_document(model, byte_config, byte_weights, tmp_path):
    assert model.generate(temperature=0, max_tokens=5).ids == (
        model.generate([0], temperature=0, max_tokens=5).ids
    )
    with pytest.raises(ConfigError, match="a state alone"):
        model.generate("", state=model.forward([1])[1])
    write_checkpoint(tmp_path, byte_config, byte_weights)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "bos_token_id": None}))
    with pytest.raises(ConfigError, match="no bos_token_id"):
        wkv.load(tmp_path, engine="torch").generate()


def test_settings_by_name_take_precedence_over_the_options_object(model):
    options = wkv.SamplingOptions(temperature=0, banned_tokens=[0])
    greedy = model.generate("a", sampling=options, max_tokens=6).ids
    assert model.generate("a", temperature=0, banned_tokens=[0], max_tokens=6).ids == greedy
    first = greedy[0]
    other = model.generate("a", sampling=options, banned_tokens=[first], max_tokens=6).ids
    assert first not in other
    with pytest.raises(ConfigError, match="unknown sampling option 'temprature'"):
        model.generate("a", temprature=1)
    with pytest.raises(ConfigError, match="banned_tokens names token 300"):
        model.generate("a", banned_tokens=[300])


def test_the_end_of_text_stops_unless_told_otherwise(model, mute):
    assert model.stop_tokens == mute.stop_tokens == (0,)
    bias = {0: 1000.0}
    ended = model.generate("a", logit_bias=bias)
    assert (ended.ids, ended.stop) == ((), 0)
    assert model.generate("a", logit_bias=bias, stop_tokens=(), max_tokens=3).ids == (0, 0, 0)
    with pytest.raises(ConfigError, match="stop_tokens names token 999: this model's ids run to"):
        model.generate("a", stop_tokens=[999])


def test_special_tokens_in_a_prompt_are_text_unless_asked(model):
    run = model.stream("a<|endoftext|>", max_tokens=1)
    assert run.result().usage.prompt_tokens == len("a<|endoftext|>")
    run = model.stream("a<|endoftext|>", max_tokens=1, allow_special=True)
    assert run.result().usage.prompt_tokens == 2


# --- embed ----------------------------------------------------------------------------------


def test_a_sentence_vector_is_made_of_the_fields_it_says(model):
    vector = model.embed("Hello")
    _, state = model.forward(model.tokenizer.encode("Hello"))
    parts = []
    for field in (state.att_x[0], state.num[0] / state.den[0], state.ffn_x[0]):
        parts += [(layer - layer.mean()) / layer.std() for layer in field]
    want = np.concatenate(parts)
    np.testing.assert_allclose(vector, want / np.linalg.norm(want), atol=1e-5)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_several_texts_give_the_vectors_of_each(model, monkeypatch):
    texts = ["a", "Hello there", "b" * 70, "c", "Hello there"]
    single = np.stack([model.embed(t) for t in texts])
    monkeypatch.setattr(api, "CHUNK", 24)  # several batches, and one text that is run in chunks
    together = model.embed(texts)
    np.testing.assert_allclose(together, single, atol=1e-4)
    ids = [model.tokenizer.encode(t) for t in texts]
    np.testing.assert_allclose(model.embed(ids), single, atol=1e-4)
    np.testing.assert_allclose(together[1] @ together[4], 1, atol=1e-5)


def test_statistics_normalise_each_channel(model):
    texts = ["one", "two words", "three of them", "!?", "12345"]
    statistics = model.embedding_statistics(texts)
    vectors = model.embed(texts, statistics=statistics)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    _, state = model.engine.forward([model.tokenizer.encode(t) for t in texts])
    flat = np.concatenate(
        [x.reshape(5, -1) for x in (state.att_x, state.num / state.den, state.ffn_x)], 1
    )
    want = (flat - flat.mean(0)) / (flat.std(0) + 1e-5)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, want, atol=2e-3)
    with pytest.raises(ShapeError, match="at least 2"):
        model.embedding_statistics(["one"])


def test_what_has_no_vector_is_refused(model, mute):
    for texts in ("", [], ["a", ""]):
        with pytest.raises(ConfigError, match="give some text"):
            model.embed(texts)
    with pytest.raises(ShapeError, match="collect them with this model"):
        mute.embed([1], statistics=model.embedding_statistics(["a", "b"]))
    from wkv.embedding import vectors

    with pytest.raises(StateError, match="empty state"):
        vectors(wkv.State.zeros(model.config))


def test_the_api_imports_neither_torch_nor_transformers():
    code = (
        "import sys, wkv; wkv.load, wkv.State, wkv.SamplingOptions;"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
