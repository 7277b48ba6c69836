"""Tensors inside files: mapped, read a few rows at a time, checked and converted on the way.

A tensor is seen as rows of its last dimension. Its *storage form* is a NumPy array of its dtype
(bfloat16 as uint16 bits, block formats as uint8 rows), mapped from the file where possible.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from . import dtypes, ggml

# Values converted at a time. So few that the temporaries stay in the cache: measured twice as fast
# as millions, and no conversion holds more memory than Python itself.
CHUNK = 1 << 15


class Mapping:
    """A file mapped into memory.

    ``writable`` maps copy-on-write: arrays over it may be changed without touching the file.
    Arrays taken from a mapping stay valid after :meth:`close`.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self.writable = writable
        try:
            with path.open("rb") as f:
                self._mmap = mmap.mmap(
                    f.fileno(), 0, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
                )
        except ValueError as error:
            raise CheckpointError(path, "the file is empty: copy or download it again") from error
        except OSError as error:
            raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
        self.bytes: np.ndarray = np.frombuffer(self._mmap, np.uint8)

    def __len__(self) -> int:
        return len(self.bytes)

    def read(self, start: int, stop: int) -> bytes:
        """A copy of some bytes; fewer at the end of the file."""
        return self.bytes[max(start, 0) : max(stop, 0)].tobytes()

    def stream(self, start: int) -> mmap.mmap:
        """The bytes from an offset on, as a file to read from."""
        self._mmap.seek(min(start, len(self)))
        return self._mmap

    def release(self, start: int, stop: int) -> None:
        """Let the system take back the memory behind these bytes; they can be read again."""
        if self.writable or not hasattr(mmap, "MADV_DONTNEED"):
            return
        # Down at both ends: the last page may be wanted next, the first was kept by the last call.
        start = start // mmap.PAGESIZE * mmap.PAGESIZE
        stop = stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            self._mmap.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Drop the mapping; it goes away with the last array over it."""
        self.bytes = np.empty(0, np.uint8)
        with contextlib.suppress(BufferError):
            self._mmap.close()


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a file holds it.

    ``rows(start, stop)`` gives rows in storage form, [stop − start, columns] (block formats:
    [stop − start, bytes]); ``release(start, stop)`` says that they are not needed for now.
    ``dtype`` may be one that no weight can have ("int64"): whoever wants a weight refuses it.
    """

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], np.ndarray]
    release: Callable[[int, int], None] = lambda start, stop: None

    @property
    def row_count(self) -> int:
        """Rows: the product of all dimensions but the last."""
        return prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Values in a row."""
        return self.shape[-1] if self.shape else 1

    @property
    def nbytes(self) -> int:
        """Bytes in storage form."""
        return nbytes(self.dtype, self.shape)

    def error(self, problem: str) -> CheckpointError:
        """An error that names the file and this tensor."""
        return CheckpointError(self.path, problem, tensor=self.name)


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in storage form."""
        return nbytes(self.dtype, self.shape)


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in storage form."""
    if dtype in ggml.BLOCK_BYTES:
        return prod(shape[:-1]) * ggml.row_bytes(shape[-1], dtype)
    return prod(shape) * dtypes.STORAGE[dtype].itemsize


def mapped(
    mapping: Mapping, name: str, dtype: str, shape: tuple[int, ...], offset: int
) -> StoredTensor:
    """A contiguous tensor at a byte offset, whose bounds the caller has checked."""
    # bytes a row; dtypes that no weight has are listed but never read
    step = nbytes(dtype, (1, shape[-1] if shape else 1)) if is_weight(dtype) else 0

    def rows(start: int, stop: int) -> np.ndarray:
        raw = mapping.bytes[offset + start * step : offset + stop * step]
        if dtype not in ggml.BLOCK_BYTES:
            raw = raw.view(dtypes.STORAGE[dtype])
        return raw.reshape(stop - start, -1)

    def release(start: int, stop: int) -> None:
        mapping.release(offset + start * step, offset + stop * step)

    return StoredTensor(mapping.path, name, dtype, shape, rows, release)


def is_weight(dtype: str) -> bool:
    """Whether a weight may be stored so."""
    return dtype in dtypes.STORAGE or dtype in ggml.BLOCK_BYTES


def chunks(tensor: StoredTensor, dtype: str) -> Iterator[np.ndarray]:
    """All rows in storage form of ``dtype``, some at a time, checked to be finite.

    Holds a few megabytes at most, however large the tensor. A view of the file is given
    where ``dtype`` is the tensor's own: use it before asking for the next.
    """
    step = max(1, CHUNK // tensor.columns)
    for start in range(0, tensor.row_count, step):
        stop = min(start + step, tensor.row_count)
        yield _convert(tensor, tensor.rows(start, stop), dtype)
        tensor.release(start, stop)


def read(tensor: StoredTensor, dtype: str) -> np.ndarray:
    """The whole tensor in storage form of ``dtype``, in its shape, checked to be finite.

    A view of the file where ``dtype`` is the tensor's own, else an array of its own.
    """
    if dtype == tensor.dtype:
        values = _convert(tensor, tensor.rows(0, tensor.row_count), dtype)
    else:
        step = nbytes(dtype, (1, tensor.columns))
        whole = np.empty((tensor.row_count, step), np.uint8)
        at = 0
        for chunk in chunks(tensor, dtype):
            whole[at : at + len(chunk)] = chunk.view(np.uint8)
            at += len(chunk)
        values = whole if dtype in ggml.BLOCK_BYTES else whole.view(dtypes.STORAGE[dtype])
    return values if dtype in ggml.BLOCK_BYTES else values.reshape(tensor.shape)


def _convert(tensor: StoredTensor, stored: np.ndarray, dtype: str) -> np.ndarray:
    if not _finite(stored, tensor.dtype):
        raise tensor.error("holds NaN or infinite values: the file is damaged or training diverged")
    if dtype == tensor.dtype:
        return stored
    if tensor.dtype in ggml.BLOCK_BYTES:
        values = ggml.dequantize(stored, tensor.dtype)
    else:
        values = dtypes.to_float32(stored, tensor.dtype)
    if dtype in ggml.BLOCK_BYTES:
        result = ggml.quantize(values, dtype)
    else:
        result = dtypes.from_float32(values, dtype)
    if not _finite(result, dtype):
        raise tensor.error(
            f"holds {np.abs(values).max():.3g}, which {dtype} cannot: choose float32 or bfloat16"
        )
    return result


def _finite(stored: np.ndarray, dtype: str) -> bool:
    return (ggml if dtype in ggml.BLOCK_BYTES else dtypes).all_finite(stored, dtype)
