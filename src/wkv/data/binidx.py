"""Megatron-style tokenised corpora: ``NAME.bin`` holds the tokens, ``NAME.idx`` where they lie.

The index is the magic, a version, the dtype's code, the number of sequences and of document
boundaries, then sizes (int32), byte offsets (int64) and boundaries (int64), all little-endian.
RWKV corpora are uint16 and end each document with token 0.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import CorpusError

MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_CODES = {np.dtype(name): code for code, name in _DTYPES.items()}


def _paths(base: str | Path) -> tuple[Path, Path]:
    """``NAME``, ``NAME.bin`` or ``NAME.idx`` → both files."""
    base = Path(base)
    if base.suffix in (".bin", ".idx"):
        base = base.with_suffix("")
    return Path(f"{base}.bin"), Path(f"{base}.idx")


class BinidxWriter:
    """Writes one document after another.

    Both files appear complete, at :meth:`close`, or not at all. Use as a context manager: leaving
    it by an exception removes what was written.
    """

    def __init__(self, base: str | Path, dtype: str | np.dtype | type = np.uint16) -> None:
        self._bin, self._idx = _paths(base)
        self.dtype = np.dtype(dtype)
        if self.dtype not in _CODES:
            raise CorpusError(
                self._idx, f"dtype {self.dtype} has no code: choose from {[*_DTYPES.values()]}"
            )
        self._bin.parent.mkdir(parents=True, exist_ok=True)
        self._partial = self._bin.with_name(f"{self._bin.name}.{os.getpid()}.part")
        self._file = self._partial.open("wb")
        self._sizes: list[int] = []

    def append(self, tokens: Iterable[int] | np.ndarray) -> None:
        """Add one document's token ids; an id outside the dtype's range is a CorpusError."""
        wide = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if wide.ndim != 1 or (wide.size and wide.dtype.kind not in "iu"):
            raise CorpusError(
                self._bin,
                f"document {len(self._sizes)} is {wide.dtype}{list(wide.shape)}: "
                "expected a row of whole numbers",
            )
        bounds = np.iinfo(self.dtype)
        if wide.size and (int(wide.min()) < bounds.min or int(wide.max()) > bounds.max):
            raise CorpusError(
                self._bin,
                f"document {len(self._sizes)} has ids from {wide.min()} to {wide.max()}, outside "
                f"{self.dtype} ({bounds.min} to {bounds.max}): write with a wider dtype",
            )
        self._file.write(wide.astype(self.dtype).tobytes())
        self._sizes.append(int(wide.size))

    def close(self) -> None:
        """Write the index and put both files in place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sizes = np.array(self._sizes, "<i4")
        offsets = np.zeros(len(sizes), "<i8")
        offsets[1:] = np.cumsum(sizes[:-1], dtype="<i8") * self.dtype.itemsize
        documents = np.arange(len(sizes) + 1, dtype="<i8")
        header = _HEADER.pack(MAGIC, 1, _CODES[self.dtype], len(sizes), len(documents))
        index = self._idx.with_name(f"{self._idx.name}.{os.getpid()}.part")
        with index.open("wb") as file:
            for part in (header, sizes, offsets, documents):
                file.write(part if isinstance(part, bytes) else part.tobytes())
            file.flush()
            os.fsync(file.fileno())
        # The index is what readers open first: it goes last, so that it never names missing tokens.
        self._partial.replace(self._bin)
        index.replace(self._idx)

    def __enter__(self) -> BinidxWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()
            self._partial.unlink(missing_ok=True)


class Binidx:
    """A tokenised corpus, memory-mapped.

    Attributes:
        tokens: every token in file order, read-only, [N] in the file's dtype.
        starts: where each document begins in ``tokens``, and N at the end: int64 [documents + 1].
    """

    def __init__(self, base: str | Path) -> None:
        data, index = _paths(base)
        for path in (data, index):
            if not path.is_file():
                raise CorpusError(path, "no such file: a corpus is a .bin and an .idx beside it")
        self.path = data
        raw = index.read_bytes()
        if len(raw) < _HEADER.size or raw[:9] != MAGIC:
            raise CorpusError(index, f"not a Megatron index: it begins {raw[:9]!r}, not {MAGIC!r}")
        _, version, code, sequences, boundaries = _HEADER.unpack_from(raw)
        if version != 1:
            raise CorpusError(index, f"version {version}: only version 1 is read")
        if code not in _DTYPES:
            raise CorpusError(index, f"dtype code {code} is unknown: expected one of {[*_DTYPES]}")
        expected = _HEADER.size + 12 * sequences + 8 * boundaries
        if len(raw) != expected:
            raise CorpusError(
                index,
                f"{len(raw)} bytes, but {sequences} sequences and {boundaries} document "
                f"boundaries take {expected}: it is damaged or still being written",
            )
        dtype = np.dtype(_DTYPES[code])
        at = _HEADER.size
        sizes = np.frombuffer(raw, "<i4", sequences, at).astype(np.int64)
        offsets = np.frombuffer(raw, "<i8", sequences, at + 4 * sequences)
        documents = np.frombuffer(raw, "<i8", boundaries, at + 12 * sequences)
        ends = np.concatenate([[0], np.cumsum(sizes)])
        if (sizes < 0).any() or not np.array_equal(offsets, ends[:-1] * dtype.itemsize):
            raise CorpusError(index, "sequences overlap or leave gaps: rewrite the corpus")
        if (
            not len(documents)
            or documents[0] != 0
            or documents[-1] != sequences
            or (np.diff(documents) < 0).any()
        ):
            raise CorpusError(
                index, f"document boundaries must rise from 0 to the {sequences} sequences"
            )
        size = data.stat().st_size
        if size != ends[-1] * dtype.itemsize:
            raise CorpusError(
                data, f"{size} bytes, but the index counts {ends[-1]} tokens of {dtype.itemsize}"
            )
        # An empty file cannot be mapped.
        self.tokens: np.ndarray = np.memmap(data, dtype, "r") if size else np.zeros(0, dtype)
        self.starts: np.ndarray = ends[documents]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def document(self, number: int) -> np.ndarray:
        """Token ids of one document, a view of the map."""
        return self.tokens[self.starts[number] : self.starts[number + 1]]
