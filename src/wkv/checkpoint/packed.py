"""Matrices as the native engine's kernels read them (docs/engine.md has the layout)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .. import _native
from ..config import ModelConfig
from ..errors import ConfigError
from .checkpoint import Checkpoint
from .names import split_block
from .tensors import CHUNK, StoredTensor, read

FORMATS = ("f32", "bf16", "q8", "q4")
SMALL_VOCABULARY = 16384
_ROWS = 16  # rows of a panel, times lanes
_STEPS = 8  # lines of a q4 block, after one of scales and offsets
Q4_GROUP = 64  # columns of a q4 block, which share a scale and an offset


class PackedMatrix(NamedTuple):
    """One matrix [rows, cols] in panels; ``data`` is uint8 [bytes], aligned to 64 bytes."""

    data: np.ndarray
    format: str
    rows: int
    cols: int
    lanes: int


class Q4Values(NamedTuple):
    """A matrix in 4 bits: weight = scale · value + offset, both exact in bfloat16."""

    values: np.ndarray  # uint8 [rows, cols], 0 to 15
    scale: np.ndarray  # float32 [rows, groups]
    offset: np.ndarray  # float32 [rows, groups]

    def weights(self) -> np.ndarray:
        """The weights that the values stand for: float32 [rows, cols]."""
        cols = self.values.shape[1]
        scale = np.repeat(self.scale, Q4_GROUP, axis=1)[:, :cols]
        return scale * self.values + np.repeat(self.offset, Q4_GROUP, axis=1)[:, :cols]


def check_format(format: str) -> str:
    """The format, or a ConfigError that lists those that there are."""
    if format not in FORMATS:
        raise ConfigError(f"unknown weight format {format!r}: choose from {', '.join(FORMATS)}")
    return format


def default_formats(config: ModelConfig, format: str) -> dict[str, str]:
    """The matrices that a format keeps otherwise by default, by original name.

    A token reads one row of the embedding, so ``q4`` gives it 8 bits for nothing. The head of a
    small vocabulary costs little time in 8 bits, and weighs on quality like all blocks together.
    """
    if format != "q4":
        return {}
    small = config.vocab_size <= SMALL_VOCABULARY
    if config.tie_word_embeddings:
        return {"emb.weight": "q8"} if small else {}
    return {"emb.weight": "q8", **({"head.weight": "q8"} if small else {})}


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


def q4_headers(data: np.ndarray, rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and offsets, float32 [rows, groups], of a q4 matrix packed with one lane."""
    groups = -(-cols // Q4_GROUP)
    lines = np.asarray(data).reshape(-1, groups, 1 + _STEPS, _ROWS, 4)[:, :, 0]
    pairs = np.ascontiguousarray(lines).view(np.uint16).astype(np.uint32) << 16
    found = pairs.view(np.float32).transpose(0, 2, 1, 3).reshape(-1, groups, 2)[:rows]
    return found[..., 0], found[..., 1]


def q4_panels(matrix: Q4Values, lanes: int) -> np.ndarray:
    """The bytes of a q4 matrix in panels: uint8, what ``_native.pack`` gives for other values."""
    rows, cols = matrix.values.shape
    groups = matrix.scale.shape[1]
    panels = -(-rows // (_ROWS * lanes))
    values = np.zeros((panels * lanes * _ROWS, groups * Q4_GROUP), np.uint8)
    values[:rows, :cols] = matrix.values
    # [panel, lane group, row, block, step, half, column]: low nibbles are a step's first columns.
    split = values.reshape(panels, lanes, _ROWS, groups, _STEPS, 2, 4)
    steps = split[..., 0, :] | split[..., 1, :] << 4
    pairs = np.zeros((panels * lanes * _ROWS, groups, 2), np.float32)
    pairs[:rows, :, 0], pairs[:rows, :, 1] = matrix.scale, matrix.offset
    halves = (pairs.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    header = halves.reshape(panels, lanes, _ROWS, groups, 1, 4)
    lines = np.concatenate([header, steps], axis=4)
    return np.ascontiguousarray(lines.transpose(0, 3, 4, 1, 2, 5)).reshape(-1)


def pack_chunks(
    checkpoint: Checkpoint, name: str, format: str, *, threads: int
) -> Iterator[np.ndarray]:
    """The bytes of a packed matrix, some panels at a time: uint8 arrays that follow each other."""
    tensor, (rows, cols) = checkpoint.tensors[name], checkpoint.shapes[name]
    lanes = lanes_of(name)
    step = max(1, CHUNK // cols // (_ROWS * lanes)) * _ROWS * lanes
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        source = read(_rows(tensor, start, stop), "float32")
        yield _native.pack(np.ascontiguousarray(source), format, lanes, None, threads)
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
