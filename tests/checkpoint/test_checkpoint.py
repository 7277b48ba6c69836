from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_ggml, save_pth
from tests.oracles.models import random_weights
from wkv.checkpoint import convert, open_checkpoint, to_hf
from wkv.errors import ArchitectureError, CheckpointError


def save_safetensors(path, weights, style="original"):
    rename = to_hf if style == "hf" else str
    save_file({rename(n): torch.from_numpy(w.copy()) for n, w in weights.items()}, path)
    return path


WRITERS = {
    "pth": (save_pth, "m.pth"),
    "safetensors": (save_safetensors, "m.safetensors"),
    "rwkv.cpp": (save_ggml, "m.bin"),
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    """Write weights into a file of each format."""
    write, name = WRITERS[request.param]
    return lambda weights: write(tmp_path / name, weights)


def changed(**tensors):
    weights = dict(WEIGHTS)
    for name, value in tensors.items():
        name = name.replace("__", ".")
        if value is None:
            del weights[name]
        else:
            weights[name] = value
    return weights


def test_the_format_is_told_by_the_content_not_by_the_name(written, tmp_path):
    path = written(WEIGHTS)
    with open_checkpoint(path.rename(tmp_path / "anything.xyz")) as checkpoint:
        assert checkpoint.config == CONFIG


def test_hugging_face_names_are_understood_in_any_container(tmp_path):
    path = save_safetensors(tmp_path / "m.safetensors", WEIGHTS, "hf")
    torch.save({to_hf(n): torch.from_numpy(w) for n, w in WEIGHTS.items()}, tmp_path / "m.bin")
    for file in (path, tmp_path / "m.bin"):
        with open_checkpoint(file) as checkpoint:
            for name, want in WEIGHTS.items():
                np.testing.assert_array_equal(checkpoint.tensor(name), want)


def test_unusual_sizes_are_detected(tiny_config, tmp_path):
    path = save_pth(tmp_path / "m.pth", random_weights(tiny_config))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.attention_size == 48
        assert checkpoint.config.ffn_size == 80


def test_the_context_length_is_read_from_the_file_name(tmp_path):
    path = save_pth(tmp_path / "RWKV-4-Pile-3B-20221110-ctx4096.pth", WEIGHTS)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config.context_length == 4096


def test_a_stored_dtype_is_a_view_of_the_file(tmp_path):
    with open_checkpoint(save_pth(tmp_path / "m.pth", WEIGHTS, "bfloat16")) as checkpoint:
        values = checkpoint.tensor("emb.weight", "bfloat16")
        assert not values.flags.owndata
        assert not values.flags.writeable
        raw = checkpoint.raw("emb.weight")
        assert raw.dtype == "bfloat16"
        np.testing.assert_array_equal(raw.data, values)
    assert values.sum() == values.copy().sum()  # still there after closing


def test_writable_arrays_do_not_change_the_file(tmp_path):
    path = save_pth(tmp_path / "m.pth", WEIGHTS)
    before = path.read_bytes()
    with open_checkpoint(path, writable=True) as checkpoint:
        values = checkpoint.tensor("emb.weight")
        values[:] = 7
    assert (values == 7).all()
    assert path.read_bytes() == before


def test_time_mix_may_be_stored_without_its_dimensions_of_one(tmp_path):
    squeezed = {n: w.reshape(-1) if ".time_" in n else w for n, w in WEIGHTS.items()}
    with open_checkpoint(save_pth(tmp_path / "m.pth", squeezed)) as checkpoint:
        for name, want in WEIGHTS.items():
            assert checkpoint.tensor(name).shape == want.shape


def test_an_unknown_name_is_a_key_error(tmp_path):
    checkpoint = open_checkpoint(save_pth(tmp_path / "m.pth", WEIGHTS))
    with pytest.raises(KeyError, match="no_such"):
        checkpoint.tensor("no_such")


def test_fingerprints_agree_between_formats_and_differ_between_models(tmp_path):
    path = save_pth(tmp_path / "m.pth", WEIGHTS, "float16")
    convert(path, tmp_path / "hf")
    convert(path, tmp_path / "q4.bin", dtype="q4_0")
    save_pth(tmp_path / "bf.pth", WEIGHTS, "bfloat16")
    save_pth(tmp_path / "other.pth", random_weights(CONFIG, seed=1))
    mine = open_checkpoint(path).fingerprint()
    for name in ("hf", "q4.bin", "bf.pth"):
        assert mine.matches(open_checkpoint(tmp_path / name).fingerprint())
    assert not mine.matches(open_checkpoint(tmp_path / "other.pth").fingerprint())


# --- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["head.weight", "blocks.0.ln0.weight", "blocks.0.att.key.weight", "blocks.1.att.time_first"],
)
def test_a_missing_tensor_is_named(written, name):
    path = written(changed(**{name: None}))
    with pytest.raises(CheckpointError, match=rf"{path}: tensor '{name}': is missing"):
        open_checkpoint(path)


def test_a_missing_block_is_named(written):
    weights = {n.replace("blocks.1.", "blocks.2."): w for n, w in WEIGHTS.items()}
    with pytest.raises(CheckpointError, match=r"blocks\.1\.ln1\.weight': is missing"):
        open_checkpoint(written(weights))


def test_an_absurd_block_number_is_refused_at_once(written):
    weights = changed(**{"blocks.999999.ln1.weight": np.ones(32, np.float32)})
    with pytest.raises(CheckpointError):
        open_checkpoint(written(weights))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blocks.1.att.value.weight", (32, 31)),
        ("blocks.0.ffn.value.weight", (128, 32)),
        ("blocks.1.att.time_decay", (31,)),
        ("ln_out.weight", (1, 32)),
        ("head.weight", (49, 32)),
    ],
)
def test_a_wrong_shape_is_named_with_the_right_one(written, name, shape):
    with pytest.raises(CheckpointError, match=rf"{name}': has shape .*expected"):
        open_checkpoint(written(changed(**{name: np.ones(shape, np.float32)})))


def test_a_tensor_that_rwkv4_has_not_is_named(written):
    with pytest.raises(CheckpointError, match=r"'tiny_q\.weight': is not a tensor of RWKV-4"):
        open_checkpoint(written(changed(**{"tiny_q.weight": np.ones((4, 4), np.float32)})))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["blocks.1.ffn.key.weight", "blocks.0.att.time_first"])
def test_values_that_are_not_finite_are_found_as_they_are_read(written, name, bad, tmp_path):
    values = WEIGHTS[name].copy()
    values.reshape(-1)[17] = bad
    path = written(changed(**{name: values}))
    with open_checkpoint(path) as checkpoint:
        checkpoint.tensor("emb.weight")
        for read in (checkpoint.tensor, checkpoint.raw):
            with pytest.raises(CheckpointError, match=rf"{path}: tensor '{name}': holds NaN"):
                read(name)
    with pytest.raises(CheckpointError, match=name):
        convert(path, tmp_path / "out.pth")
    assert not (tmp_path / "out.pth").exists()


def test_integers_are_no_weights(tmp_path):
    tensors = {n: torch.from_numpy(w) for n, w in WEIGHTS.items()}
    tensors["ln_out.bias"] = torch.arange(32)
    torch.save(tensors, tmp_path / "m.pth")
    save_file(tensors, tmp_path / "m.safetensors")
    for name in ("m.pth", "m.safetensors"):
        with pytest.raises(CheckpointError, match=r"ln_out\.bias': is of"):
            open_checkpoint(tmp_path / name)


OTHERS = {
    "RWKV-5": {
        "blocks.0.att.time_faaaa": (4, 8),
        "blocks.0.att.gate.weight": (32, 32),
        "blocks.0.att.ln_x.weight": (32,),
    },
    "RWKV-6": {"blocks.0.att.time_maa_x": (1, 1, 32), "blocks.0.att.time_faaaa": (4, 8)},
    "RWKV-7": {"blocks.0.att.w0": (1, 1, 32), "blocks.0.att.ln_x.weight": (32,)},
}


@pytest.mark.parametrize("version", OTHERS)
@pytest.mark.parametrize("style", ["original", "hf"])
def test_another_version_is_named(tmp_path, version, style):
    weights = changed(**{n: np.ones(s, np.float32) for n, s in OTHERS[version].items()})
    if style == "hf":
        weights = {"rwkv." + n.replace(".att.", ".attention."): w for n, w in weights.items()}
    with pytest.raises(ArchitectureError, match=rf"this is {version}.*runs RWKV-4"):
        open_checkpoint(save_pth(tmp_path / "m.pth", weights))


def test_another_architecture_is_refused_with_what_it_holds(written):
    ones = np.ones((4, 4), np.float32)
    path = written({"emb.weight": ones, "a.0.q_proj.weight": ones})
    with pytest.raises(ArchitectureError, match=r"a\.0\.q_proj\.weight"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("head", "hint"),
    [
        (b"GGUF\x03\0\0\0", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b'{"model_type": "rwkv"}', "folder"),
        (b"\0" * 100, "no weight file"),
        (b"", "empty"),
        (b"x", "no weight file"),
    ],
)
def test_files_that_are_no_weights_are_refused_with_a_hint(tmp_path, head, hint):
    (tmp_path / "m.pth").write_bytes(head)
    with pytest.raises(CheckpointError, match=hint):
        open_checkpoint(tmp_path / "m.pth")


def test_a_closed_checkpoint_says_so(tmp_path):
    with open_checkpoint(save_pth(tmp_path / "m.pth", WEIGHTS)) as checkpoint:
        pass
    with pytest.raises(ValueError, match="is closed"):
        checkpoint.tensor("emb.weight")


def test_what_is_neither_file_nor_folder_is_refused():
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        open_checkpoint("/dev/null")


def test_a_path_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "nothing.pth")


def test_a_saved_state_is_not_taken_for_a_model(tmp_path):
    from wkv.state import State

    State.zeros(CONFIG).save(tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match=r"State\.load"):
        open_checkpoint(tmp_path / "s.safetensors")


def test_reading_any_format_leaves_torch_unimported(tmp_path):
    path = save_pth(tmp_path / "m.pth", WEIGHTS, "float16")
    save_pth(tmp_path / "old.pth", WEIGHTS, _use_new_zipfile_serialization=False)
    convert(path, tmp_path / "hf")
    convert(path, tmp_path / "q.bin", dtype="q5_0")
    program = (
        "import sys; from wkv.checkpoint import open_checkpoint, convert\n"
        "for p in sys.argv[1:]:\n"
        "    c = open_checkpoint(p); [c.tensor(n) for n in c.names()]; c.fingerprint()\n"
        f"convert(sys.argv[1], {str(tmp_path / 'again.pth')!r})\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    paths = [str(tmp_path / n) for n in ("m.pth", "old.pth", "hf", "q.bin")]
    subprocess.run([sys.executable, "-c", program, *paths], check=True)
