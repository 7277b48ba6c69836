"""Matrices as the native engine's kernels read them (docs/engine.md has the layout)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .. import _native
from ..errors import ConfigError
from .checkpoint import Checkpoint
from .names import split_block
from .tensors import CHUNK, StoredTensor, read

FORMATS = ("f32", "bf16", "q8", "q4")
_ROWS = 16  # rows of a panel, times lanes


class PackedMatrix(NamedTuple):
    """One matrix [rows, cols] in panels; ``data`` is uint8 [bytes], aligned to 64 bytes."""

    data: np.ndarray
    format: str
    rows: int
    cols: int
    lanes: int


def check_format(format: str) -> str:
    """The format, or a ConfigError that lists those that there are."""
    if format not in FORMATS:
        raise ConfigError(f"unknown weight format {format!r}: choose from {', '.join(FORMATS)}")
    return format


def lanes_of(name: str) -> int:
    """16-row groups of a panel: the feed-forward value matrix is read sparsely, in long lines."""
    inside = split_block(name)
    return 4 if inside is not None and inside[1] == "ffn.value.weight" else 1


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this shape is packed; the others stay float32 vectors."""
    return len(shape) == 2


def packed_bytes(name: str, shape: tuple[int, ...], format: str) -> int:
    """Bytes of a packed matrix: what :func:`pack_chunks` gives in all."""
    return int(_native.packed_bytes(format, shape[0], shape[1], lanes_of(name)))


def pack_chunks(
    checkpoint: Checkpoint,
    name: str,
    format: str,
    *,
    threads: int,
    importance: np.ndarray | None = None,
) -> Iterator[np.ndarray]:
    """The bytes of a packed matrix, some panels at a time: uint8 arrays that follow each other.

    ``importance`` [cols] float32 weights the squared error that q4 minimises.
    """
    tensor, (rows, cols) = checkpoint.tensors[name], checkpoint.shapes[name]
    lanes = lanes_of(name)
    step = max(1, CHUNK // cols // (_ROWS * lanes)) * _ROWS * lanes
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        source = read(_rows(tensor, start, stop), "float32")
        yield _native.pack(np.ascontiguousarray(source), format, lanes, importance, threads)
        tensor.release(start, stop)


def _rows(tensor: StoredTensor, start: int, stop: int) -> StoredTensor:
    """Some rows of a matrix as a tensor."""
    return replace(
        tensor,
        shape=(stop - start, tensor.columns),
        rows=lambda a, b: tensor.rows(start + a, start + b),
        release=lambda a, b: None,
    )


def pack_matrix(checkpoint: Checkpoint, name: str, format: str, *, threads: int) -> PackedMatrix:
    """A matrix of a checkpoint, packed into memory of its own."""
    rows, cols = checkpoint.shapes[name]
    lanes = lanes_of(name)
    data = _native.aligned_bytes(packed_bytes(name, (rows, cols), format))
    at = 0
    for chunk in pack_chunks(checkpoint, name, format, threads=threads):
        data[at : at + len(chunk)] = chunk
        at += len(chunk)
    return PackedMatrix(data, format, rows, cols, lanes)
