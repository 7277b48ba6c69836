from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from wkv.checkpoint.safetensors_file import read_safetensors, write_safetensors
from wkv.checkpoint.tensors import Mapping, Planned, read
from wkv.errors import CheckpointError

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "F16", "shape": [4], "data_offsets": [24, 32]}


def write(path: Path, header, data: bytes = bytes(32), length: int | None = None) -> Path:
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(blob) if length is None else length) + blob + data)
    return path


def test_every_dtype_of_the_library_is_read(tmp_path):
    tensors = {
        str(kind): torch.randn(3, 5).to(kind)
        for kind in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found, metadata = read_safetensors(Mapping(tmp_path / "m.safetensors"))
    assert metadata == {"format": "pt"}
    for name, tensor in tensors.items():
        assert found[name].dtype == name.removeprefix("torch.")
        np.testing.assert_array_equal(read(found[name], "float32"), tensor.float().numpy())


def test_integers_are_listed_but_are_no_weights(tmp_path):
    save_file({"n": torch.arange(6).reshape(2, 3)}, tmp_path / "m.safetensors")
    found, _ = read_safetensors(Mapping(tmp_path / "m.safetensors"))
    assert (found["n"].dtype, found["n"].shape) == ("I64", (2, 3))


def test_the_library_reads_what_is_written(tmp_path):
    values = {"half": np.arange(6, dtype="<f2").reshape(2, 3), "odd": np.arange(5, dtype="<f2")}
    values["wide"] = np.linspace(0, 1, 7, dtype="<f4")
    plan = [Planned(n, v.dtype.name, v.shape) for n, v in values.items()]
    with (tmp_path / "m.safetensors").open("wb") as out:
        write_safetensors(out, plan, lambda p: [values[p.name]], {"format": "pt"})
    with safe_open(str(tmp_path / "m.safetensors"), framework="np") as f:
        assert f.metadata() == {"format": "pt"}
        for name, value in values.items():
            np.testing.assert_array_equal(f.get_tensor(name), value)


LIES = {
    "no length": b"",
    "a length of nothing": (b"", bytes(32)),
    "a header cut short": (b'{"a":', bytes(32)),
    "no table": (b"[]", bytes(32)),
    "not text": (b'{"\xff":0}', bytes(32)),
    "deep nesting": (b"[" * 100_000, bytes(32)),
    "a name twice": (
        b'{"a":%s,"a":%s}' % (json.dumps(A).encode(), json.dumps(A).encode()),
        bytes(24),
    ),
    "an overlap": ({"a": A, "b": {**B, "data_offsets": [16, 24]}}, bytes(24)),
    "a hole": ({"a": A, "b": {**B, "data_offsets": [28, 36]}}, bytes(36)),
    "a late start": ({"a": {**A, "data_offsets": [8, 32]}}, bytes(32)),
    "bytes too many": ({"a": A, "b": B}, bytes(33)),
    "bytes too few": ({"a": A, "b": B}, bytes(31)),
    "a shape too large": ({"a": {**A, "shape": [2, 4]}, "b": B}, bytes(32)),
    "a shape that overflows": ({"a": {**A, "shape": [1 << 33, 1 << 33]}, "b": B}, bytes(32)),
    "a negative size": ({"a": {**A, "shape": [-2, -3]}, "b": B}, bytes(32)),
    "a size that is no integer": ({"a": {**A, "shape": [2.0, 3]}, "b": B}, bytes(32)),
    "a truth for a size": ({"a": {**A, "shape": [True, 6]}, "b": B}, bytes(32)),
    "a shape of many dimensions": ({"a": {**A, "shape": [1] * 99 + [6]}, "b": B}, bytes(32)),
    "an unknown dtype": ({"a": {**A, "dtype": "F33"}, "b": B}, bytes(32)),
    "a dtype that is no name": ({"a": {**A, "dtype": ["F32"]}, "b": B}, bytes(32)),
    "reversed offsets": ({"a": {**A, "data_offsets": [24, 0]}, "b": B}, bytes(32)),
    "negative offsets": ({"a": {**A, "data_offsets": [-24, 0]}, "b": B}, bytes(32)),
    "huge offsets": ({"a": {**A, "data_offsets": [0, 1 << 80]}, "b": B}, bytes(32)),
    "one offset": ({"a": {**A, "data_offsets": [24]}, "b": B}, bytes(32)),
    "a missing key": ({"a": {"dtype": "F32", "shape": [6]}, "b": B}, bytes(32)),
    "an entry that is a number": ({"a": 7}, bytes(0)),
    "metadata that is no text": ({"__metadata__": {"a": 1}, "a": A, "b": B}, bytes(32)),
    "metadata that is a list": ({"__metadata__": [], "a": A, "b": B}, bytes(32)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_as_the_library_does(tmp_path, lie):
    path = tmp_path / "m.safetensors"
    if isinstance(LIES[lie], bytes):
        path.write_bytes(b"\0\0\0")
    else:
        write(path, *LIES[lie])
    with pytest.raises(CheckpointError, match=str(path)):
        read_safetensors(Mapping(path))
    if lie not in ("a name twice", "a shape of many dimensions"):  # where we are the stricter one
        with pytest.raises(SafetensorError), safe_open(str(path), framework="np"):
            pass


@pytest.mark.parametrize("length", [0, 1, 1 << 62, (1 << 64) - 1, 10_000_000_000])
def test_a_header_length_that_lies_is_refused(tmp_path, length):
    path = write(tmp_path / "m.safetensors", {"a": A, "b": B}, length=length)
    with pytest.raises(CheckpointError, match="header"):
        read_safetensors(Mapping(path))


def test_the_honest_file_of_these_tests_is_read(tmp_path):
    path = write(tmp_path / "m.safetensors", {"a": A, "b": B})
    assert set(read_safetensors(Mapping(path))[0]) == {"a", "b"}
