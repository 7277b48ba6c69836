"""rwkv.cpp ``.bin`` files (ggml magic ``ggmf``, versions 100 and 101): read and written.

Vectors are float32 and without dimensions of 1, and ``time_decay`` is stored as the decay itself,
−exp(time_decay); both are undone on reading. Quantized files quantize every matrix except
embedding and head.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from typing import BinaryIO

import numpy as np

from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from . import ggml
from .tensors import Mapping, Planned, StoredTensor, mapped, nbytes

MAGIC = struct.pack("<I", 0x67676D66)
CODES = {
    "float32": 0,
    "float16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q5_0": 7,
    "q5_1": 8,
    "q8_0": 9,
}
_DTYPES = {code: dtype for dtype, code in CODES.items()}
_REMOVED = {4: "Q4_1_O", 5: "Q4_2", 6: "Q4_3"}
_MAX_KEY = 256
_FLOAT32_TINIEST = np.float32(2.0**-149)
_FLOAT32_LARGEST = np.finfo(np.float32).max


# --- reading ----------------------------------------------------------------------------------


def read_rwkv_cpp(mapping: Mapping) -> tuple[dict[str, StoredTensor], dict[str, int]]:
    """All tensors by name, and the header's numbers. Every bound is checked; no data is read."""
    path, size = mapping.path, len(mapping)
    head = mapping.read(4, 24)
    if len(head) < 20:
        raise CheckpointError(path, "ends inside its header: the file is cut short")
    version, vocab, embed, layers, code = struct.unpack("<5i", head)
    if version not in (100, 101):
        raise CheckpointError(path, f"rwkv.cpp file version {version}; 100 and 101 are known")
    header = {
        "version": version,
        "vocab_size": vocab,
        "hidden_size": embed,
        "num_hidden_layers": layers,
        "dtype": code,
    }
    _check_dtype(mapping, None, code, version)
    tensors: dict[str, StoredTensor] = {}
    at = 24
    while at < size:
        name, dtype, shape, at = _read_entry(mapping, at, version)
        end = at + nbytes(dtype, shape)
        if end > size:
            raise CheckpointError(
                path, f"ends at byte {end} of a file of {size}: the file is cut short", tensor=name
            )
        if name in tensors:
            raise CheckpointError(path, "is given twice", tensor=name)
        tensor = mapped(mapping, name, dtype, shape, at)
        tensors[name] = _undo_decay(tensor) if name.endswith("time_decay") else tensor
        at = end
    return tensors, header


def _read_entry(mapping: Mapping, at: int, version: int) -> tuple[str, str, tuple[int, ...], int]:
    """Name, dtype, shape and data offset of the tensor whose header begins at ``at``."""
    path = mapping.path

    def take(count: int) -> bytes:
        nonlocal at
        blob = mapping.read(at, at + count)
        if len(blob) < count:
            raise CheckpointError(path, "ends inside a tensor's header: the file is cut short")
        at += count
        return blob

    dimensions, key_length, code = struct.unpack("<3i", take(12))
    if not 1 <= dimensions <= 3 or not 1 <= key_length <= _MAX_KEY:
        raise CheckpointError(
            path,
            f"damaged at byte {at - 12}: a tensor of {dimensions} dimensions with a name of "
            f"{key_length} bytes",
        )
    shape = struct.unpack(f"<{dimensions}i", take(4 * dimensions))[::-1]
    try:
        name = take(key_length).decode("ascii")
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"damaged at byte {at}: a name that is no text") from error
    _check_dtype(mapping, name, code, version)
    dtype = _DTYPES[code]
    if min(shape) < 1:
        raise CheckpointError(path, f"has shape {list(shape)}", tensor=name)
    if dtype in ggml.BLOCK_BYTES and shape[-1] % ggml.BLOCK:
        raise CheckpointError(
            path, f"has rows of {shape[-1]} values in blocks of {ggml.BLOCK}", tensor=name
        )
    return name, dtype, shape, at


def _check_dtype(mapping: Mapping, name: str | None, code: int, version: int) -> None:
    if code in _REMOVED:
        problem = f"is in {_REMOVED[code]}, a format that rwkv.cpp itself has given up"
    elif code not in _DTYPES:
        problem = f"is of unknown dtype {code}"
    elif version == 100 and _DTYPES[code] in ggml.BLOCK_BYTES:
        problem = f"is in the {_DTYPES[code]} of file version 100, whose blocks were laid out apart"
    else:
        return
    raise CheckpointError(mapping.path, f"{problem}: quantize it again", tensor=name)


def _undo_decay(tensor: StoredTensor) -> StoredTensor:
    """The tensor whose values are log(−stored)."""

    def rows(start: int, stop: int) -> np.ndarray:
        stored = tensor.rows(start, stop).astype(np.float32)
        if not (stored <= 0).all():
            raise tensor.error("stores a decay that is not negative: the state would grow forever")
        # A stored zero is a decay that was too slow for float32; its logarithm must stay finite.
        return np.log(np.maximum(-stored, _FLOAT32_TINIEST))

    return replace(tensor, dtype="float32", rows=rows)


# --- writing ----------------------------------------------------------------------------------


def plan_rwkv_cpp(
    config: ModelConfig, shapes: dict[str, tuple[int, ...]], dtype: str
) -> list[Planned]:
    """What a file of ``dtype`` holds; ConfigError where the format cannot hold the model."""
    if dtype not in CODES:
        raise ConfigError(f"rwkv.cpp files cannot be {dtype}: choose from {', '.join(CODES)}")
    if config.attention_size != config.hidden_size:
        raise ConfigError(
            f"rwkv.cpp has no models whose attention size ({config.attention_size}) is not the "
            f"hidden size ({config.hidden_size})"
        )
    planned = []
    for name, shape in shapes.items():
        if ".time_" in name:
            shape = (prod(shape),)
        kind = dtype
        if len(shape) == 1:
            kind = "float32"
        elif dtype in ggml.BLOCK_BYTES:
            if name in ("emb.weight", "head.weight"):
                kind = "float16"
            elif shape[-1] % ggml.BLOCK:
                raise ConfigError(
                    f"{name} has rows of {shape[-1]} values; {dtype} needs a multiple of "
                    f"{ggml.BLOCK}: choose float16 or float32"
                )
        planned.append(Planned(name, kind, shape))
    return planned


def write_rwkv_cpp(
    out: BinaryIO,
    config: ModelConfig,
    dtype: str,
    planned: Iterable[Planned],
    chunks: Callable[[Planned], Iterable[np.ndarray]],
) -> None:
    """Write a version 101 file tensor by tensor."""
    sizes = (config.vocab_size, config.hidden_size, config.num_hidden_layers)
    out.write(MAGIC + struct.pack("<5i", 101, *sizes, CODES[dtype]))
    for p in planned:
        key = p.name.encode()
        out.write(struct.pack("<3i", len(p.shape), len(key), CODES[p.dtype]))
        out.write(struct.pack(f"<{len(p.shape)}i", *reversed(p.shape)) + key)
        for chunk in chunks(p):
            if p.name.endswith("time_decay"):
                with np.errstate(over="ignore"):
                    chunk = np.maximum(-np.exp(chunk), -_FLOAT32_LARGEST)
            out.write(np.ascontiguousarray(chunk).data.cast("B"))
