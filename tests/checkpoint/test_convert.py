from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_ggml, save_pth
from tests.oracles.models import random_weights, torch_model
from wkv.checkpoint import convert, describe, ggml, load_state_dict, open_checkpoint
from wkv.config import ModelConfig
from wkv.errors import CheckpointError, ConfigError

TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9]])
NAMES = {"pth": "m.pth", "hf": "folder", "rwkv.cpp": "m.bin"}


def values(path) -> dict[str, np.ndarray]:
    with open_checkpoint(path) as checkpoint:
        return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def logits(path) -> torch.Tensor:
    """What the file's model says, through the loader that the PyTorch model uses."""
    from wkv.model.rwkv4 import Rwkv4

    with open_checkpoint(path) as checkpoint:
        model = Rwkv4(checkpoint.config)
    model.load_state_dict(load_state_dict(path, "float32"))
    with torch.no_grad():
        return model.eval()(TOKENS)[0]


@pytest.fixture
def sources(tmp_path):
    """The same half-precision weights in every format."""
    (tmp_path / "from").mkdir()
    paths = {kind: tmp_path / "from" / name for kind, name in NAMES.items()}
    save_pth(paths["pth"], WEIGHTS, "float16")
    convert(paths["pth"], paths["hf"])
    convert(paths["pth"], paths["rwkv.cpp"])
    return paths


@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("source", NAMES)
def test_every_direction_keeps_the_logits(sources, tmp_path, source, to):
    convert(sources[source], tmp_path / NAMES[to])
    rounded = {n: w.astype(np.float16).astype(np.float32) for n, w in WEIGHTS.items()}
    with torch.no_grad():
        want = torch_model(CONFIG, rounded)(TOKENS)[0]
    torch.testing.assert_close(logits(tmp_path / NAMES[to]), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("source", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_direction_keeps_every_value(tmp_path, source, to, dtype):
    save_pth(tmp_path / "a.pth", WEIGHTS, dtype)
    convert(tmp_path / "a.pth", tmp_path / f"b-{NAMES[source]}")
    convert(tmp_path / f"b-{NAMES[source]}", tmp_path / NAMES[to])
    got = values(tmp_path / NAMES[to])
    for name, want in values(tmp_path / "a.pth").items():
        if name.endswith("time_decay"):  # a logarithm of an exponential in rwkv.cpp files
            np.testing.assert_allclose(got[name], want, rtol=0, atol=2e-6)
        else:
            np.testing.assert_array_equal(got[name], want)


@pytest.mark.parametrize("quantized", ggml.BLOCK_BYTES)
@pytest.mark.parametrize("to", ["pth", "hf"])
def test_quantized_files_convert_back_to_the_values_that_they_stand_for(tmp_path, quantized, to):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    convert(tmp_path / "a.pth", tmp_path / "q.bin", dtype=quantized)
    done = convert(tmp_path / "q.bin", tmp_path / NAMES[to])
    assert done.dtype == "float32"
    plain = {}
    for name, w in WEIGHTS.items():
        if name in ("emb.weight", "head.weight"):
            plain[name] = w.astype(np.float16).astype(np.float32)
        elif w.ndim == 2:
            plain[name] = ggml.dequantize(ggml.quantize(w, quantized), quantized)
        else:
            plain[name] = w
    with torch.no_grad():
        want = torch_model(CONFIG, plain)(TOKENS)[0]
    torch.testing.assert_close(logits(tmp_path / NAMES[to]), want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits(tmp_path / "q.bin"), want, rtol=1e-5, atol=1e-5)


def test_finer_formats_are_nearer_to_the_original(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    want = logits(tmp_path / "a.pth")
    errors = {}
    for kind in (*ggml.BLOCK_BYTES, "float16"):
        convert(tmp_path / "a.pth", tmp_path / f"{kind}.bin", dtype=kind)
        errors[kind] = float((logits(tmp_path / f"{kind}.bin") - want).abs().max())
    assert errors["float16"] < errors["q8_0"] < errors["q5_1"] < errors["q4_0"] < want.abs().max()


@pytest.mark.parametrize("to", ["pth", "hf"])
def test_unusual_sizes_convert(tmp_path, tiny_config, to):
    weights = random_weights(tiny_config)
    convert(save_pth(tmp_path / "a.pth", weights), tmp_path / NAMES[to])
    for name, got in values(tmp_path / NAMES[to]).items():
        np.testing.assert_array_equal(got, weights[name])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_dtype_that_is_asked_for_is_that_of_every_tensor(tmp_path, dtype):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    for name in ("b.pth", "hf"):
        convert(tmp_path / "a.pth", tmp_path / name, dtype=dtype)
        with open_checkpoint(tmp_path / name) as checkpoint:
            assert set(checkpoint.dtypes.values()) == {dtype}
            want = torch.from_numpy(WEIGHTS["emb.weight"]).to(getattr(torch, dtype)).float()
            np.testing.assert_array_equal(checkpoint.tensor("emb.weight"), want.numpy())


def test_bfloat16_becomes_float16_in_rwkv_cpp_files(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS, "bfloat16")
    assert convert(tmp_path / "a.pth", tmp_path / "m.bin").dtype == "float16"
    save_pth(tmp_path / "b.pth", WEIGHTS)
    assert convert(tmp_path / "b.pth", tmp_path / "n.bin").dtype == "float32"


@pytest.mark.parametrize(
    ("value", "dtype", "name"),
    [(1e5, "float16", "m.pth"), (3.4e38, "bfloat16", "m.pth"), (1e6, "q4_0", "m.bin")],
)
def test_a_value_too_large_for_the_dtype_is_an_error_not_an_infinity(tmp_path, value, dtype, name):
    weights = {**WEIGHTS, "blocks.1.att.key.weight": WEIGHTS["blocks.1.att.key.weight"].copy()}
    weights["blocks.1.att.key.weight"][3, 3] = value
    save_pth(tmp_path / "a.pth", weights)
    with pytest.raises(CheckpointError, match=rf"blocks\.1\.att\.key.*which {dtype} cannot"):
        convert(tmp_path / "a.pth", tmp_path / name, dtype=dtype)
    assert not (tmp_path / name).exists()


def test_progress_counts_every_byte_in_order(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS, "float16")
    calls = []
    done = convert(tmp_path / "a.pth", tmp_path / "hf", progress=lambda *call: calls.append(call))
    counts = [c[0] for c in calls]
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == done.nbytes == sum(w.size * 2 for w in WEIGHTS.values())
    assert {c[1] for c in calls} == {done.nbytes}
    assert {c[2] for c in calls} == set(WEIGHTS)


def test_large_tensors_are_converted_in_parts(tmp_path, monkeypatch):
    from wkv.checkpoint import tensors

    save_pth(tmp_path / "a.pth", WEIGHTS)
    for dtype, name in (("float16", "x.pth"), ("q5_1", "x.bin")):
        convert(tmp_path / "a.pth", tmp_path / name, dtype=dtype)
        with monkeypatch.context() as patch:
            patch.setattr(tensors, "CHUNK", 100)
            convert(tmp_path / "a.pth", tmp_path / f"parts-{name}", dtype=dtype)
        assert (tmp_path / name).read_bytes() == (tmp_path / f"parts-{name}").read_bytes()


# --- choices that make no sense ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "name", "message"),
    [
        ({"dtype": "int8"}, "m.pth", "unknown dtype 'int8'"),
        ({"dtype": "q4_0"}, "m.pth", r"rwkv\.cpp files only"),
        ({"dtype": "q4_0"}, "folder", r"rwkv\.cpp files only"),
        ({"format": "gguf"}, "m.pth", "unknown format 'gguf'"),
        ({"tokenizer": "world"}, "m.pth", "folders only"),
        ({}, "m.gguf", r"does not write \.gguf"),
        ({}, "m.safetensors", "folder"),
    ],
)
def test_choices_that_make_no_sense_are_refused(tmp_path, choice, name, message):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    with pytest.raises(ConfigError, match=message):
        convert(tmp_path / "a.pth", tmp_path / name, **choice)
    assert not (tmp_path / name).exists()


def test_the_format_may_differ_from_the_ending(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    convert(tmp_path / "a.pth", tmp_path / "b.pth", format="rwkv.cpp")
    assert open_checkpoint(tmp_path / "b.pth").format == "rwkv.cpp"


@pytest.mark.parametrize(
    ("size", "found"), [("169M", "num_hidden_layers is 2"), ("14B", "is 2, not 40")]
)
def test_a_size_that_is_not_the_models_is_refused(tmp_path, size, found):
    from wkv.checkpoint.convert import require_size

    with open_checkpoint(save_pth(tmp_path / "a.pth", WEIGHTS)) as checkpoint:
        with pytest.raises(CheckpointError, match=found):
            require_size(checkpoint, size)
        with pytest.raises(ConfigError, match="unknown size"):
            require_size(checkpoint, "2B")


# --- the destination --------------------------------------------------------------------------


def listing(folder) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.mark.parametrize("to", NAMES)
def test_nothing_is_overwritten_unless_asked(tmp_path, to):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    target = tmp_path / NAMES[to]
    convert(tmp_path / "a.pth", target)
    before = values(target)
    save_pth(tmp_path / "b.pth", random_weights(CONFIG, seed=9))
    with pytest.raises(CheckpointError, match="--force"):
        convert(tmp_path / "b.pth", target)
    assert all(np.array_equal(before[n], w) for n, w in values(target).items())
    convert(tmp_path / "b.pth", target, overwrite=True)
    assert not np.array_equal(before["emb.weight"], values(target)["emb.weight"])
    assert listing(tmp_path) == {"a.pth", "b.pth", NAMES[to]}


def test_a_model_can_be_converted_onto_itself(tmp_path):
    convert(save_pth(tmp_path / "a.pth", WEIGHTS), tmp_path / "hf")
    for path in (tmp_path / "a.pth", tmp_path / "hf"):
        convert(path, path, dtype="bfloat16", overwrite=True)
        with open_checkpoint(path) as checkpoint:
            assert set(checkpoint.dtypes.values()) == {"bfloat16"}


def test_overwriting_a_folder_keeps_what_is_not_the_models(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    convert(tmp_path / "a.pth", tmp_path / "hf", max_shard_size="40KB")
    (tmp_path / "hf" / "README.md").write_text("mine")
    (tmp_path / "hf" / "notes").mkdir()
    (tmp_path / "hf" / "notes" / "a.txt").write_text("mine too")
    convert(tmp_path / "a.pth", tmp_path / "hf", overwrite=True)
    assert listing(tmp_path / "hf") == {
        "README.md",
        "notes",
        "model.safetensors",
        "config.json",
        "generation_config.json",
    }
    assert (tmp_path / "hf" / "notes" / "a.txt").read_text() == "mine too"
    assert listing(tmp_path) == {"a.pth", "hf"}


@pytest.mark.parametrize("to", NAMES)
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_failure_midway_leaves_the_destination_as_it_was(tmp_path, to, old, failure):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    target = tmp_path / NAMES[to]
    if old:
        convert(tmp_path / "a.pth", target)
    before = listing(tmp_path), old and values(target)

    def fail(done, total, name):
        if done > total / 2:
            raise failure

    expected = CheckpointError if isinstance(failure, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        convert(tmp_path / "a.pth", target, overwrite=True, progress=fail)
    if expected is CheckpointError:
        assert "disk is full" in str(caught.value)
        assert str(target) in str(caught.value)
    assert listing(tmp_path) == before[0]
    if old:
        assert all(np.array_equal(before[1][n], w) for n, w in values(target).items())


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    import shutil

    save_pth(tmp_path / "a.pth", WEIGHTS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1000))
    for name in NAMES.values():
        with pytest.raises(CheckpointError, match=r"needed, 1,000 free"):
            convert(tmp_path / "a.pth", tmp_path / name)
    assert listing(tmp_path) == {"a.pth"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("name", NAMES.values())
def test_a_write_that_the_system_refuses_is_one_error(tmp_path, name):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    program = (
        "import resource, signal, sys\n"
        "from wkv.checkpoint import convert\n"
        "from wkv.errors import CheckpointError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))\n"
        "try: convert(*sys.argv[1:])\n"
        "except CheckpointError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.pth"), str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "disk is full" in run.stdout
    assert "nothing was changed" in run.stdout
    assert listing(tmp_path) == {"a.pth"}


def test_destinations_of_the_wrong_kind_are_refused(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    (tmp_path / "d.pth").mkdir()
    (tmp_path / "file").write_text("x")
    for name, message in (("d.pth", "is a folder"), ("file", "is a file"), ("file/x.pth", "file")):
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path / "a.pth", tmp_path / name, overwrite=True)


def test_folders_on_the_way_are_made_and_rights_are_the_usual_ones(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    mask = os.umask(0o022)
    try:
        convert(tmp_path / "a.pth", tmp_path / "x" / "y" / "b.pth")
        convert(tmp_path / "a.pth", tmp_path / "x" / "z" / "hf")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "x" / "y" / "b.pth").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "x" / "z" / "hf").stat().st_mode) == 0o755


def test_a_link_is_written_through(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    convert(tmp_path / "a.pth", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "config.json").is_file()


# --- tokenizers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    """A byte-level BPE of 40 entries."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog"], trainer)
    path = tmp_path_factory.mktemp("bpe") / "20B_tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_a_tokenizer_that_is_named_goes_into_the_folder(tmp_path, bpe):
    from transformers import AutoTokenizer

    save_pth(tmp_path / "a.pth", WEIGHTS)
    done = convert(tmp_path / "a.pth", tmp_path / "hf", tokenizer=bpe)
    assert done.notes == []
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.decode(tokenizer("the cat").input_ids) == "the cat"
    assert tokenizer.eos_token_id == 0
    assert describe(tmp_path / "hf")["tokenizer"] is not None


def test_a_tokenizer_beside_the_source_goes_along(tmp_path, bpe):
    (tmp_path / "20B_tokenizer.json").write_bytes(bpe.read_bytes())
    save_pth(tmp_path / "a.pth", WEIGHTS)
    convert(tmp_path / "a.pth", tmp_path / "hf")
    assert (tmp_path / "hf" / "tokenizer.json").read_bytes() == bpe.read_bytes()
    convert(tmp_path / "hf", tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == bpe.read_bytes()
    assert (tmp_path / "again" / "tokenizer_config.json").is_file()


def test_settings_for_generation_go_along(tmp_path):
    convert(save_pth(tmp_path / "a.pth", WEIGHTS), tmp_path / "hf")
    (tmp_path / "hf" / "generation_config.json").write_text('{"temperature": 0.7}')
    convert(tmp_path / "hf", tmp_path / "again", dtype="bfloat16")
    text = (tmp_path / "again" / "generation_config.json").read_text()
    assert text == '{"temperature": 0.7}'


def test_a_folder_without_a_tokenizer_is_written_and_said(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    done = convert(tmp_path / "a.pth", tmp_path / "hf")
    assert any("without a tokenizer" in note for note in done.notes)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    with pytest.raises(ConfigError, match="65530 ids, the model 50"):
        convert(tmp_path / "a.pth", tmp_path / "hf", tokenizer="world")
    assert not (tmp_path / "hf").exists()


def test_a_world_model_gets_the_world_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    import wkv.hf  # noqa: F401

    config = ModelConfig(vocab_size=65536, hidden_size=32, num_hidden_layers=1)
    save_pth(tmp_path / "a.pth", random_weights(config))
    assert convert(tmp_path / "a.pth", tmp_path / "hf").notes == []
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer("\n\n").input_ids == [261]


# --- PyTorch ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", ["m.pth", "hf", "m.bin"])
def test_a_state_dict_has_the_values_and_may_be_changed(tmp_path, name, dtype):
    source = tmp_path / name
    if name == "m.bin":
        save_ggml(source, WEIGHTS, half=dtype == "float16")
    else:
        save_pth(tmp_path / "m.pth", WEIGHTS, dtype)
        if name == "hf":
            convert(tmp_path / "m.pth", source)
    file = source / "model.safetensors" if name == "hf" else source
    before = file.read_bytes()
    tensors = load_state_dict(source, dtype)
    with open_checkpoint(source) as checkpoint:
        for original, hf in zip(checkpoint.names(), tensors):
            want = torch.from_numpy(checkpoint.tensor(original).copy())
            assert torch.equal(tensors[hf], want.to(getattr(torch, dtype)))
            tensors[hf].add_(1)
    assert file.read_bytes() == before


def test_a_state_dict_of_the_stored_dtype_takes_no_memory_of_its_own(tmp_path):
    convert(save_pth(tmp_path / "m.pth", WEIGHTS, "bfloat16"), tmp_path / "hf")
    for path in (tmp_path / "m.pth", tmp_path / "hf"):
        with open_checkpoint(path, writable=True) as checkpoint:
            mapped = checkpoint.tensor("emb.weight", "bfloat16").__array_interface__["data"][0]
            tensors = load_state_dict(checkpoint)
            assert tensors["rwkv.embeddings.weight"].dtype == torch.bfloat16
            assert tensors["rwkv.embeddings.weight"].data_ptr() == mapped
