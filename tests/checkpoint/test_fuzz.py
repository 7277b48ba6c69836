"""Damage of any kind to any file gives a CheckpointError that names the file, and nothing else."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoint.weights import save_ggml, save_pth
from tests.oracles.models import random_weights
from wkv.checkpoint import convert, describe, open_checkpoint, open_lora
from wkv.config import ModelConfig
from wkv.errors import CheckpointError, StateError
from wkv.state import State

CONFIG = ModelConfig(vocab_size=3, hidden_size=32, num_hidden_layers=1, intermediate_size=32)
WEIGHTS = random_weights(CONFIG)
LORA = {
    "blocks.0.att.key.lora_A": np.ones((2, 32), np.float32),
    "blocks.0.att.key.lora_B": np.ones((32, 2), np.float32),
}


def _legacy(path: Path) -> None:
    save_pth(path, WEIGHTS, "float16", _use_new_zipfile_serialization=False)


def _converted(name: str, **choice):
    def write(path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            source = save_pth(Path(folder) / "a.pth", WEIGHTS, "float16")
            done = convert(source, Path(folder) / name, **choice)
            weights = [f for f in done.files if f.suffix in (".pth", ".bin", ".safetensors")]
            path.write_bytes(weights[0].read_bytes())

    return write


WRITERS = {
    "pth": lambda path: save_pth(path, WEIGHTS, "float16"),
    "pth of protocol 4": lambda path: save_pth(path, WEIGHTS, "bfloat16", pickle_protocol=4),
    "pth of ours": _converted("b.pth"),
    "legacy pth": _legacy,
    "safetensors": _converted("hf"),
    "rwkv.cpp": lambda path: save_ggml(path, WEIGHTS, half=True),
    "rwkv.cpp quantized": _converted("b.bin", dtype="q5_1"),
    "lora": lambda path: save_pth(path, LORA),
    "state": lambda path: State.zeros(CONFIG).save(path),
}


@functools.cache
def whole(kind: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        WRITERS[kind](Path(folder) / "whole")
        return (Path(folder) / "whole").read_bytes()


def use(path: Path, kind: str) -> None:
    """Everything that a reader does with a file."""
    describe(path)
    if kind == "lora":
        lora = open_lora(path)
        for factors in lora.factors.values():
            for tensor in factors:
                tensor.rows(0, tensor.row_count)
    elif kind != "state":
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.names():
                assert np.isfinite(checkpoint.tensor(name)).all()


# Headers are a small part of most files: half of all damage falls on the first and last bytes.
@st.composite
def damage(draw, kind: str) -> bytes:
    blob = bytearray(whole(kind))
    edge = min(2000, len(blob) - 1)
    at = st.one_of(
        st.integers(0, edge), st.integers(len(blob) - 1 - edge, len(blob) - 1)
    ) | st.integers(0, len(blob) - 1)
    for _ in range(draw(st.integers(1, 4))):
        start = min(draw(at), len(blob))
        how = draw(st.sampled_from(("flip", "set", "cut", "insert", "delete", "number")))
        if how == "flip" and start < len(blob):
            blob[start] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and start < len(blob):
            blob[start] = draw(st.integers(0, 255))
        elif how == "cut":
            del blob[start:]
        elif how == "insert":
            blob[start:start] = draw(st.binary(min_size=1, max_size=9))
        elif how == "delete":
            del blob[start : start + draw(st.integers(1, 9))]
        else:
            number = draw(st.sampled_from((0, 1, -1, 2**31 - 1, -(2**31), 2**16, 255)))
            blob[start : start + 4] = number.to_bytes(4, "little", signed=True)
    return bytes(blob)


@pytest.mark.parametrize("kind", WRITERS)
def test_whole_files_are_read(tmp_path, kind):
    (tmp_path / "m").write_bytes(whole(kind))
    use(tmp_path / "m", kind)


@pytest.mark.parametrize("kind", WRITERS)
def test_damage_gives_one_kind_of_error(kind):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m"

        @settings(max_examples=120, deadline=None)
        @given(damage(kind))
        def check(blob: bytes) -> None:
            path.unlink(missing_ok=True)  # arrays of the last example may still map it
            path.write_bytes(blob)
            try:
                use(path, kind)
            except (CheckpointError, StateError) as error:
                assert str(path) in str(error)  # noqa: PT017 (most damage is, not all must be)

        check()
