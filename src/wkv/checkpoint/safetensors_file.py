"""One safetensors file: read by mapping, written as a stream.

The ``safetensors`` library cannot hand bfloat16 to NumPy, nor write a file that does not fit in
memory, so header and offsets are handled here. What is accepted is what the library accepts:
u64 header length, JSON header, then the tensors without holes or overlaps to the end of the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError
from .tensors import Mapping, Planned, StoredTensor, mapped, nbytes

MAX_HEADER = 100_000_000  # the library's own limit
_ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "BOOL": 1,
    **{f"{sign}{bits}": bits // 8 for sign in "IU" for bits in (8, 16, 32, 64)},
}
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def looks_like(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``head`` may be safetensors."""
    if len(head) < 9:
        return False
    (length,) = struct.unpack_from("<Q", head)
    return head[8:9] == b"{" and length <= max(MAX_HEADER, size)


def read_safetensors(mapping: Mapping) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """All tensors by name, and the header's metadata. Every bound is checked; no data is read."""
    path, size = mapping.path, len(mapping)
    head = mapping.read(0, 8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise CheckpointError(
            path, f"damaged: a header of {length} bytes in a file of {size}: download it again"
        )
    header = _parse(path, mapping.read(8, 8 + length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(path, "damaged: the header's metadata is not a table of text")
    data = 8 + length
    spans = []
    tensors = {}
    for name, entry in header.items():
        code, shape, begin, end = _entry(path, name, entry)
        if data + end > size:
            raise CheckpointError(
                path,
                f"ends at byte {data + end} of a file of {size}: the file is cut short",
                tensor=name,
            )
        spans.append((begin, end, name))
        tensors[name] = mapped(mapping, name, _DTYPES.get(code, code), shape, data + begin)
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            what = "overlaps another tensor" if begin < at else f"leaves {begin - at} bytes unused"
            raise CheckpointError(path, f"begins at byte {begin} and {what}", tensor=name)
        at = end
    if data + at != size:
        raise CheckpointError(path, f"holds {size - data - at} bytes that belong to no tensor")
    return tensors, metadata


def _parse(path: Path, blob: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            raise ValueError("a name is given twice")
        return table

    try:
        header = json.loads(blob.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"damaged header: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(path, "damaged: the header is not a table of tensors")
    return header


def _entry(path: Path, name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Dtype code, shape and data offsets, checked against one another."""

    def count(value: Any) -> bool:
        return type(value) is int and 0 <= value < 1 << 63

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, f"damaged entry {entry!r:.100}", tensor=name)
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _ITEM_BYTES:
        raise CheckpointError(path, f"is of unknown dtype {code!r:.50}", tensor=name)
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(count, shape)):
        raise CheckpointError(path, f"has shape {shape!r:.100}", tensor=name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(count, offsets)):
        raise CheckpointError(path, f"has data offsets {offsets!r:.100}", tensor=name)
    begin, end = offsets
    want = prod(shape) * _ITEM_BYTES[code]
    if end - begin != want:
        raise CheckpointError(
            path, f"has {end - begin} bytes where {code} of {shape} needs {want}", tensor=name
        )
    return code, tuple(shape), begin, end


def write_safetensors(
    out: BinaryIO,
    planned: Iterable[Planned],
    chunks: Callable[[Planned], Iterable[np.ndarray]],
    metadata: dict[str, str],
) -> None:
    """Write a file tensor by tensor; ``chunks`` gives each one's values in storage form."""
    # Wide types first, as the library orders them: every tensor is aligned to its own size.
    ordered = sorted(planned, key=lambda p: -nbytes(p.dtype, (1,)))
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for p in ordered:
        offsets = [at, at + p.nbytes]
        header[p.name] = {"dtype": _CODES[p.dtype], "shape": p.shape, "data_offsets": offsets}
        at += p.nbytes
    blob = json.dumps(header, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)
    out.write(struct.pack("<Q", len(blob)) + blob)
    for p in ordered:
        for chunk in chunks(p):
            out.write(np.ascontiguousarray(chunk).data.cast("B"))
