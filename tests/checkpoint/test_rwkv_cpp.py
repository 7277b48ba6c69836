from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_ggml, save_pth
from wkv.checkpoint import convert, ggml, open_checkpoint
from wkv.checkpoint.rwkv_cpp import CODES
from wkv.config import ModelConfig
from wkv.errors import CheckpointError, ConfigError


@pytest.mark.parametrize("half", [False, True])
def test_values_are_those_that_were_written(tmp_path, half):
    with open_checkpoint(save_ggml(tmp_path / "m.bin", WEIGHTS, half)) as checkpoint:
        assert checkpoint.config == CONFIG
        assert checkpoint.format == "rwkv.cpp"
        assert checkpoint.dtype == ("float16" if half else "float32")
        for name, want in WEIGHTS.items():
            got = checkpoint.tensor(name)
            assert got.shape == want.shape
            if name.endswith("time_decay"):  # logarithm of an exponential
                np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
            elif half and want.ndim == 2:
                np.testing.assert_array_equal(got, want.astype(np.float16).astype(np.float32))
            else:
                np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("dtype", CODES)
def test_files_are_laid_out_as_described(tmp_path, dtype):
    convert(save_pth(tmp_path / "m.pth", WEIGHTS), tmp_path / "m.bin", dtype=dtype)
    blob = (tmp_path / "m.bin").read_bytes()
    assert struct.unpack_from("<6i", blob) == (0x67676D66, 101, 50, 32, 2, CODES[dtype])
    at, seen = 24, []
    while at < len(blob):
        ndim, key, code = struct.unpack_from("<3i", blob, at)
        dims = struct.unpack_from(f"<{ndim}i", blob, at + 12)
        name = blob[at + 12 + 4 * ndim :][:key].decode()
        at += 12 + 4 * ndim + key
        want = WEIGHTS[name].reshape(-1) if ".time_" in name else WEIGHTS[name]
        if name.endswith("time_decay"):
            want = -np.exp(want)
        assert dims == want.shape[::-1]
        if want.ndim == 1:
            assert code == 0
            expected = want.astype("<f4").tobytes()
        elif dtype in ggml.BLOCK_BYTES and name in ("emb.weight", "head.weight"):
            assert code == 1
            expected = want.astype("<f2").tobytes()
        else:
            assert code == CODES[dtype]
            expected = (
                ggml.quantize(want, dtype).tobytes()
                if dtype in ggml.BLOCK_BYTES
                else want.astype({"float32": "<f4", "float16": "<f2"}[dtype]).tobytes()
            )
        assert blob[at : at + len(expected)] == expected, name
        at += len(expected)
        seen.append(name)
    assert sorted(seen) == sorted(WEIGHTS)


def test_decays_beyond_float32_keep_their_meaning(tmp_path):
    weights = dict(WEIGHTS)
    name = "blocks.0.att.time_decay"
    weights[name] = np.linspace(-120, 120, 32).astype(np.float32)
    convert(save_pth(tmp_path / "m.pth", weights), tmp_path / "m.bin")
    with open_checkpoint(tmp_path / "m.bin") as checkpoint:
        got = checkpoint.tensor(name)
    assert np.isfinite(got).all()
    with np.errstate(over="ignore"):
        factors = [np.exp(-np.exp(w)) for w in (got, weights[name])]
    np.testing.assert_allclose(*factors, atol=1e-6)


def damaged(blob: bytes, at: int, format: str, *values: int) -> bytes:
    packed = struct.pack(format, *values)
    return blob[:at] + packed + blob[at + len(packed) :]


# Offsets of the first tensor's header: emb.weight, [50, 32].
@pytest.mark.parametrize(
    ("at", "values", "message"),
    [
        (4, (99,), "version 99"),
        (4, (102,), "version 102"),
        (8, (51,), "vocab_size is said to be 51"),
        (12, (64,), "hidden_size is said to be 64"),
        (16, (3,), "num_hidden_layers is said to be 3"),
        (16, (2147483647,), "num_hidden_layers"),
        (20, (4,), "Q4_1_O"),
        (20, (77,), "unknown dtype 77"),
        (24, (0,), "0 dimensions"),
        (24, (-1,), "-1 dimensions"),
        (24, (1000000,), "dimensions"),
        (28, (-5,), "name of -5 bytes"),
        (28, (2147483647,), "name of 2147483647 bytes"),
        (32, (5,), "Q4_2"),
        (32, (-1,), "unknown dtype"),
        (36, (-32,), r"shape \[50, -32\]"),
        (36, (0,), r"shape \[50, 0\]"),
        (36, (2147483647, 2147483647), "cut short"),
        (36, (16, 100), "vocab_size is said to be 50"),
        (32, (2,), "q4_0 of file version 100"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, at, values, message):
    path = save_ggml(tmp_path / "m.bin", WEIGHTS)
    path.write_bytes(damaged(path.read_bytes(), at, f"<{len(values)}i", *values))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(path)


def test_quantized_files_of_version_100_are_refused(tmp_path):
    convert(save_pth(tmp_path / "m.pth", WEIGHTS), tmp_path / "m.bin", dtype="q4_0")
    blob = (tmp_path / "m.bin").read_bytes()
    (tmp_path / "m.bin").write_bytes(damaged(blob, 4, "<i", 100))
    with pytest.raises(CheckpointError, match="quantize it again"):
        open_checkpoint(tmp_path / "m.bin")


def test_a_truncated_file_is_refused(tmp_path):
    path = save_ggml(tmp_path / "m.bin", WEIGHTS)
    blob = path.read_bytes()
    for keep in (len(blob) - 1, len(blob) // 2, 100, 30, 20, 4):
        path.write_bytes(blob[:keep])
        with pytest.raises(CheckpointError, match=str(path)):
            open_checkpoint(path)


def test_a_tensor_given_twice_is_refused(tmp_path):
    path = save_ggml(tmp_path / "m.bin", WEIGHTS)
    blob = path.read_bytes()
    first = 12 + 8 + len("emb.weight") + WEIGHTS["emb.weight"].nbytes
    path.write_bytes(blob + blob[24 : 24 + first])
    with pytest.raises(CheckpointError, match="twice"):
        open_checkpoint(path)


def test_a_decay_that_grows_is_refused(tmp_path):
    path = save_ggml(tmp_path / "m.bin", WEIGHTS)
    blob = path.read_bytes()
    decay = -np.exp(WEIGHTS["blocks.1.att.time_decay"])
    path.write_bytes(blob.replace(decay.tobytes(), (-decay).tobytes()))
    checkpoint = open_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"blocks\.1\.att\.time_decay.*not negative"):
        checkpoint.tensor("blocks.1.att.time_decay")


@pytest.mark.parametrize(
    ("changes", "dtype", "message"),
    [
        ({"attention_hidden_size": 64}, "float32", "attention size"),
        ({"intermediate_size": 80}, "q5_1", r"ffn\.value\.weight.*multiple of 32"),
        ({}, "bfloat16", "cannot be bfloat16"),
        ({"layer_norm_epsilon": 1e-6}, "float32", "layer_norm_epsilon"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, changes, dtype, message):
    from tests.oracles.models import random_weights

    config = ModelConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, **changes)
    save_pth(tmp_path / "m.pth", random_weights(config))
    source = tmp_path / "m.pth"
    if "layer_norm_epsilon" in changes:
        convert(source, tmp_path / "hf")
        text = (tmp_path / "hf" / "config.json").read_text()
        (tmp_path / "hf" / "config.json").write_text(text.replace("1e-05", "1e-06"))
        source = tmp_path / "hf"
    with pytest.raises(ConfigError, match=message):
        convert(source, tmp_path / "m.bin", dtype=dtype)
    assert not (tmp_path / "m.bin").exists()
