"""Packed folders: round trip, atomic writing, and files that lie."""

from __future__ import annotations

import contextlib
import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.conftest import write_checkpoint
from tests.oracles.models import random_weights
from wkv import _native
from wkv.checkpoint import open_checkpoint
from wkv.checkpoint.packed import FORMATS, default_formats, is_matrix, pack_matrix
from wkv.checkpoint.quantized import open_quantized, quantization_of, quantize
from wkv.config import ModelConfig
from wkv.engine.native import load_format
from wkv.errors import CheckpointError, ConfigError, ShapeError, WkvError


@pytest.fixture(scope="module")
def source(tmp_path_factory, tiny_config):
    return write_checkpoint(tmp_path_factory.mktemp("source"), tiny_config)


@pytest.fixture(scope="module", params=FORMATS)
def folder(request, source, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / request.param
    quantize(source, path, format=request.param)
    return path


def header_of(file):
    blob = file.read_bytes()
    (length,) = struct.unpack_from("<Q", blob)
    return json.loads(blob[8 : 8 + length]), 8 + length, blob


def rewrite(file, header, data):
    blob = json.dumps(header).encode()
    blob += b" " * (-(8 + len(blob)) % 64)
    file.write_bytes(struct.pack("<Q", len(blob)) + blob + data)


def copy_of(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_mapped_folder_runs_bit_for_bit_as_packing_at_load(source, folder):
    packed, fresh = load_format(folder), load_format(source, format=folder.name)
    batch = [[1, 2, 3, 4, 5], [7], [9, 8]]
    a, state_a = packed.forward(batch, logits="all")
    b, _ = fresh.forward(batch, logits="all")
    assert np.array_equal(a, b)
    assert packed.format == folder.name
    # Both are the same model, so states go from one to the other.
    fresh.forward(batch, state_a)


def test_every_tensor_comes_back(source, folder):
    opened = open_quantized(folder)
    with open_checkpoint(source) as checkpoint:
        for name, shape in checkpoint.shapes.items():
            if is_matrix(shape):
                kind = default_formats(opened.config, folder.name).get(name, folder.name)
                want = pack_matrix(checkpoint, name, kind, threads=1)
                assert opened.matrices[name][1:] == want[1:]
                assert np.array_equal(opened.matrices[name].data, want.data)
            else:
                assert np.array_equal(opened.vectors[name], checkpoint.tensor(name).reshape(-1))


def test_matrices_lie_on_cache_lines_in_the_order_of_execution(folder):
    header, data, _ = header_of(folder / "model.safetensors")
    entries = [(v["data_offsets"][0], k, v) for k, v in header.items() if k != "__metadata__"]
    names = [name for _, name, _ in sorted(entries)]
    assert data % 64 == 0
    for start, _, entry in entries:
        if entry["dtype"] == "U8":
            assert start % 64 == 0
    assert names[:3] == [
        "rwkv.embeddings.weight",
        "rwkv.blocks.0.attention.key.weight",
        "rwkv.blocks.0.attention.value.weight",
    ]
    assert names.index("rwkv.blocks.1.attention.key.weight") > names.index(
        "rwkv.blocks.0.feed_forward.value.weight"
    )


def test_the_file_is_ordinary_safetensors(folder):
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="numpy") as f:
        assert f.get_tensor("rwkv.ln_out.weight").dtype == np.float32
        assert f.get_tensor("head.weight").dtype == np.uint8


def test_the_folder_says_how_it_was_packed(folder, source):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "rwkv"
    exceptions = {"emb.weight": "q8", "head.weight": "q8"}
    assert config["quantization_config"] == {
        "quant_method": "wkv",
        "version": 1,
        "format": folder.name,
        **({"formats": exceptions} if folder.name == "q4" else {}),
    }
    assert quantization_of(source) is None


def test_sizes_are_what_the_formats_promise(tmp_path):
    config = ModelConfig(vocab_size=512, hidden_size=256, num_hidden_layers=1)
    source = write_checkpoint(tmp_path, config)
    for format, most in (("q4", 4.75), ("q8", 8.5), ("bf16", 16.3), ("f32", 32.0)):
        all_the_same = {"emb.weight": format, "head.weight": format}
        done = quantize(source, tmp_path / format, format=format, formats=all_the_same)
        assert done.bits_per_weight <= most


def test_four_bits_spare_the_embedding_and_the_head_of_a_small_vocabulary():
    def kept(**numbers):
        return default_formats(ModelConfig(hidden_size=32, num_hidden_layers=1, **numbers), "q4")

    assert kept(vocab_size=4096) == {"emb.weight": "q8", "head.weight": "q8"}
    assert kept(vocab_size=50277) == {"emb.weight": "q8"}
    # One matrix is both, and the head reads all of it.
    assert kept(vocab_size=4096, tie_word_embeddings=True) == {"emb.weight": "q8"}
    assert kept(vocab_size=50277, tie_word_embeddings=True) == {}


@pytest.mark.parametrize("tied", [False, True])
def test_calibrated_four_bits_have_the_same_form_and_a_smaller_error(tmp_path, tied):
    config = ModelConfig(
        vocab_size=97, hidden_size=64, num_hidden_layers=2, tie_word_embeddings=tied
    )
    weights = random_weights(config)
    if tied:
        weights["head.weight"] = weights["emb.weight"]
    source = write_checkpoint(tmp_path, config, weights)
    ids = np.random.default_rng(0).integers(0, 97, (16, 128))
    formats = {"blocks.1.att.key.weight": "q8"}
    plain = quantize(source, tmp_path / "plain", formats=formats)
    fitted = quantize(source, tmp_path / "fitted", formats=formats, calibration=ids)
    assert fitted.nbytes == plain.nbytes
    header = (tmp_path / "plain" / "model.safetensors").read_bytes()[:4096]
    assert (tmp_path / "fitted" / "model.safetensors").read_bytes()[:4096] == header
    test = np.random.default_rng(1).integers(0, 97, (4, 32)).tolist()
    exact, _ = load_format(source, format="f32").forward(test, logits="all")

    def error(path):
        return np.square(load_format(path).forward(test, logits="all")[0] - exact).mean()

    assert error(tmp_path / "fitted") < error(tmp_path / "plain")


@pytest.mark.parametrize(
    "ids",
    [np.zeros(5, np.int64), np.zeros((0, 4), np.int64), np.full((1, 4), 10**6), np.ones((2, 2))],
)
def test_calibration_that_is_no_tokens_of_the_model_is_refused(source, tmp_path, ids):
    with pytest.raises(ShapeError, match="calibration"):
        quantize(source, tmp_path / "q", calibration=ids)
    assert list(tmp_path.iterdir()) == []


def test_exceptions_keep_their_own_format(source, tmp_path):
    formats = {"head.weight": "q8", "blocks.1.ffn.value.weight": "f32"}
    quantize(source, tmp_path / "mixed", format="q4", formats=formats)
    opened = open_quantized(tmp_path / "mixed")
    assert opened.matrices["head.weight"].format == "q8"
    assert opened.matrices["blocks.1.ffn.value.weight"].format == "f32"
    assert opened.matrices["blocks.0.ffn.value.weight"].format == "q4"
    logits, _ = load_format(tmp_path / "mixed").forward([[1, 2, 3]])
    assert np.isfinite(logits).all()


def test_tied_embeddings_are_stored_once(tmp_path):
    config = ModelConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=1, tie_word_embeddings=True
    )
    weights = random_weights(config)
    weights["head.weight"] = weights["emb.weight"]
    source = write_checkpoint(tmp_path, config, weights)
    quantize(source, tmp_path / "q", format="f32")
    header, _, _ = header_of(tmp_path / "q" / "model.safetensors")
    assert "head.weight" not in header
    a, _ = load_format(tmp_path / "q").forward([[1, 2]])
    b, _ = load_format(source).forward([[1, 2]])
    assert np.array_equal(a, b)


def test_progress_reaches_the_whole(source, tmp_path):
    seen = []
    done = quantize(source, tmp_path / "q", progress=lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] == done.nbytes
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)


def test_what_is_at_the_destination_stays_unless_overwritten(source, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    (there / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        quantize(source, there)
    assert [f.name for f in there.iterdir()] == ["notes.txt"]
    quantize(source, there, overwrite=True)
    assert (there / "notes.txt").read_text() == "mine"
    load_format(there)


def test_a_failure_leaves_nothing_behind(source, tmp_path):
    def stop(done, total, name):
        if name.startswith("blocks.1"):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        quantize(source, tmp_path / "q", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_unknown_choices_are_refused(source, folder, tmp_path):
    with pytest.raises(ConfigError, match="unknown weight format"):
        quantize(source, tmp_path / "q", format="q5")
    with pytest.raises(ConfigError, match="not a matrix"):
        quantize(source, tmp_path / "q", formats={"ln_out.weight": "q8"})
    with pytest.raises(ConfigError, match="packed already"):
        quantize(folder, tmp_path / "q")
    with pytest.raises(ConfigError, match="packed as"):
        load_format(folder, format="q4" if folder.name != "q4" else "q8")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 4),
        ("num_hidden_layers", 10**9),
        ("hidden_size", 64),
        ("hidden_size", 10**15),
        ("vocab_size", 10**12),
        ("vocab_size", "many"),
        ("intermediate_size", 81),
        ("layer_norm_epsilon", 5),
    ],
)
def test_a_config_that_does_not_fit_the_tensors_is_refused(folder, tmp_path, key, value):
    copy = copy_of(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config[key] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        open_quantized(copy)


@pytest.mark.parametrize(
    "described",
    [
        {"version": 2, "format": "q4"},
        {"version": 1},
        {"version": 1, "format": ["q4"]},
        {"version": 1, "format": "q4", "formats": 7},
        {"version": 1, "format": "q4", "formats": {"head.weight": "q9"}},
    ],
)
def test_a_description_that_is_not_understood_is_refused(folder, tmp_path, described):
    copy = copy_of(folder, tmp_path)
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "wkv", **described}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_quantized(copy)


def damage(header, how):
    name = "rwkv.blocks.1.attention.key.weight"
    if how == "missing":
        # The bytes go to another tensor, so that only the name is wrong.
        header["rwkv.blocks.1.attention.keys.weight"] = header.pop(name)
    elif how == "dtype":
        header[name]["dtype"] = "I8"
    elif how == "shape":
        rows, cols = header[name]["shape"]
        header[name]["shape"] = [cols, rows]
    elif how == "overlap":
        other = header["rwkv.blocks.1.attention.value.weight"]
        header[name]["data_offsets"] = other["data_offsets"]
    return header


@pytest.mark.parametrize("how", ["missing", "dtype", "shape", "overlap"])
def test_a_header_that_lies_is_refused_by_tensor(folder, tmp_path, how):
    copy = copy_of(folder, tmp_path)
    file = copy / "model.safetensors"
    header, data, blob = header_of(file)
    rewrite(file, damage(header, how), blob[data:])
    with pytest.raises(CheckpointError, match="att"):
        open_quantized(copy)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_a_file_cut_short_is_refused(folder, tmp_path, keep):
    copy = copy_of(folder, tmp_path)
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_quantized(copy)


def test_vectors_that_are_not_finite_are_refused(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    file = copy / "model.safetensors"
    header, data, blob = header_of(file)
    start = data + header["rwkv.ln_out.bias"]["data_offsets"][0]
    changed = bytearray(blob)
    changed[start : start + 4] = struct.pack("<f", float("nan"))
    file.write_bytes(changed)
    with pytest.raises(CheckpointError, match="NaN") as error:
        open_quantized(copy)
    assert error.value.tensor == "ln_out.bias"


@pytest.fixture(scope="module")
def small(source, tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "q4"
    quantize(source, path, format="q4")
    return path, (path / "model.safetensors").read_bytes()


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
    in_header=st.booleans(),
)
def test_damaged_bytes_give_a_typed_error_or_a_model(small, edits, in_header):
    folder, blob = small
    (length,) = struct.unpack_from("<Q", blob)
    span = 8 + length if in_header else len(blob)
    changed = bytearray(blob)
    for where, value in edits:
        changed[int(where * (span - 1))] = value
    (folder / "model.safetensors").write_bytes(changed)
    try:
        with contextlib.suppress(WkvError):
            load_format(folder, threads=1).forward([[1, 2]])
    finally:
        (folder / "model.safetensors").write_bytes(blob)


def test_a_misaligned_tensor_is_refused(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    file = copy / "model.safetensors"
    header, data, blob = header_of(file)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64 + 1)
    file.write_bytes(struct.pack("<Q", len(text)) + text + blob[data:])
    with pytest.raises(CheckpointError, match="not a multiple of 4"):
        open_quantized(copy)


def test_unaligned_by_a_few_words_still_runs(folder, tmp_path):
    copy = copy_of(folder, tmp_path)
    file = copy / "model.safetensors"
    header, data, blob = header_of(file)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64 + 4)
    file.write_bytes(struct.pack("<Q", len(text)) + text + blob[data:])
    for isa in _native.engine_instruction_sets():
        a, _ = load_format(copy, instruction_set=isa).forward([[1, 2, 3]], logits="all")
        b, _ = load_format(folder, instruction_set=isa).forward([[1, 2, 3]], logits="all")
        assert np.array_equal(a, b)
