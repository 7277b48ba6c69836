"""Folders whose weights lie as the native engine reads them: streamed out, opened by mapping.

A folder has ``config.json`` with ``quantization_config`` {"quant_method": "wkv", "version": 1,
"format": …, "formats": {tensor: format of the exceptions}} and one ``model.safetensors``: every
matrix a uint8 tensor [panels, bytes] on a 64-byte boundary, in the order in which a token reads
them, then the vectors in float32.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import new_folder
from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError
from ..state import Fingerprint
from . import huggingface
from .checkpoint import Checkpoint, open_checkpoint
from .convert import _REPLACED, _write_tokenizer
from .names import expected_tensors, from_hf, to_hf
from .packed import (
    FORMATS,
    PackedMatrix,
    check_format,
    is_matrix,
    lanes_of,
    pack_chunks,
    packed_bytes,
)
from .safetensors_file import read_safetensors
from .tensors import Mapping as FileMapping
from .tensors import StoredTensor

METHOD = "wkv"
VERSION = 1
WEIGHTS = "model.safetensors"
ALIGNMENT = 64
Progress = Callable[[int, int, str], None]
# Projections in the order in which a token reads them.
_ORDER = (
    "att.key",
    "att.value",
    "att.receptance",
    "att.output",
    "ffn.key",
    "ffn.receptance",
    "ffn.value",
)


@dataclass(frozen=True)
class Quantized:
    """An opened folder. ``matrices`` are views of the mapped file, ``vectors`` are float32 [n]."""

    path: Path
    config: ModelConfig
    format: str
    matrices: dict[str, PackedMatrix]
    vectors: dict[str, np.ndarray]

    def fingerprint(self) -> Fingerprint:
        """What marks the states of this model."""
        return Fingerprint.of(self.config, lambda name: self.vectors[name])

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        matrices = sum(m.data.nbytes for m in self.matrices.values())
        return matrices + sum(v.nbytes for v in self.vectors.values())


def quantization_of(path: str | Path) -> dict[str, Any] | None:
    """The ``quantization_config`` of a folder of this package, None for anything else."""
    config = Path(path) / "config.json"
    if not config.is_file():
        return None
    found = huggingface.read_json(config).get("quantization_config")
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        return None
    return found


def execution_order(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """All tensor names: matrices as a token meets them, then the vectors."""

    def rank(name: str) -> tuple[int, int]:
        if name == "emb.weight":
            return -1, 0
        if name == "head.weight":
            return 1 << 30, 0
        _, layer, part = name.split(".", 2)
        return int(layer), _ORDER.index(part.removesuffix(".weight"))

    matrices = [name for name, shape in shapes.items() if is_matrix(shape)]
    return sorted(matrices, key=rank) + [n for n in shapes if not is_matrix(shapes[n])]


# --- writing ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantization:
    """What :func:`quantize` wrote."""

    path: Path
    format: str
    nbytes: int
    bits_per_weight: float
    notes: list[str]


def quantize(
    source: str | Path,
    destination: str | Path,
    *,
    format: str = "q4",
    formats: Mapping[str, str] | None = None,
    importance: Mapping[str, np.ndarray] | None = None,
    threads: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Pack any checkpoint for the native engine, tensor by tensor.

    Args:
        source: whatever :func:`wkv.checkpoint.open_checkpoint` opens.
        destination: a folder, written beside and renamed when whole.
        format: of every matrix: ``"f32"``, ``"bf16"``, ``"q8"`` or ``"q4"``.
        formats: exceptions, by original tensor name.
        importance: a weight for each input column of a matrix, by original name: the mean square
            of its inputs makes q4 minimise the error of the products.
        threads: threads that pack.
        overwrite: replace what is at the destination.
        progress: called with bytes written, bytes in all, and the tensor's name.

    Raises:
        CheckpointError: a source that is damaged, a destination that cannot be written.
        ConfigError: an unknown format or tensor.
    """
    destination = Path(destination)
    check_format(format)
    exceptions = {name: check_format(f) for name, f in (formats or {}).items() if f != format}
    if quantization_of(source) is not None:
        raise ConfigError(f"{source} is packed already: quantize the weights that it came from")
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        shapes = {
            name: shape if is_matrix(shape) else (int(np.prod(shape)),)
            for name, shape in checkpoint.shapes.items()
            if not (name == "head.weight" and config.tie_word_embeddings)
        }
        for name in (*exceptions, *(importance or {})):
            if name not in shapes or not is_matrix(shapes[name]):
                known = ", ".join(n for n in execution_order(shapes) if is_matrix(shapes[n]))
                raise ConfigError(f"{name!r} is not a matrix of {source}: they are {known}")
        header, sizes = _header(shapes, format, exceptions)
        total = len(header) + sum(sizes.values())
        with new_folder(destination, overwrite=overwrite, size=total, replaces=_replaced) as folder:
            notes = _write_tokenizer(checkpoint, folder, None)
            done = 0
            with (folder / WEIGHTS).open("xb") as out:
                out.write(header)
                for name, size in sizes.items():
                    if progress:
                        progress(done, total, name)
                    for chunk in _chunks(
                        checkpoint, name, exceptions.get(name, format), importance, threads
                    ):
                        out.write(chunk.data)
                        done += chunk.nbytes
                        if progress:
                            progress(done, total, name)
                    assert size == packed_size(name, shapes[name], exceptions.get(name, format))
            _write_config(folder, config, format, exceptions)
    weights = sum(int(np.prod(s)) for s in shapes.values())
    return Quantization(destination, format, total, 8 * sum(sizes.values()) / weights, notes)


def _replaced(name: str) -> bool:
    return _REPLACED.fullmatch(name) is not None


def packed_size(name: str, shape: tuple[int, ...], format: str) -> int:
    """Bytes of a tensor in the file."""
    return packed_bytes(name, shape, format) if is_matrix(shape) else 4 * shape[0]


def _header(
    shapes: Mapping[str, tuple[int, ...]], format: str, exceptions: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The file's first bytes, up to where the data begins, and the size of each tensor."""
    entries: dict[str, Any] = {"__metadata__": {"format": "wkv-packed"}}
    sizes = {}
    at = 0
    for name in execution_order(shapes):
        shape = shapes[name]
        size = packed_size(name, shape, exceptions.get(name, format))
        if is_matrix(shape):
            panels = -(-shape[0] // (16 * lanes_of(name)))
            entry = {"dtype": "U8", "shape": [panels, size // panels]}
        else:
            entry = {"dtype": "F32", "shape": list(shape)}
        entries[to_hf(name)] = {**entry, "data_offsets": [at, at + size]}
        sizes[name] = size
        at += size
    blob = json.dumps(entries, separators=(",", ":")).encode()
    blob += b" " * (-(8 + len(blob)) % ALIGNMENT)
    return struct.pack("<Q", len(blob)) + blob, sizes


def _chunks(
    checkpoint: Checkpoint,
    name: str,
    format: str,
    importance: Mapping[str, np.ndarray] | None,
    threads: int,
) -> Any:
    if is_matrix(checkpoint.shapes[name]):
        weights = (importance or {}).get(name)
        return pack_chunks(checkpoint, name, format, threads=threads, importance=weights)
    return [np.ascontiguousarray(checkpoint.tensor(name).reshape(-1))]


def _write_config(
    folder: Path, config: ModelConfig, format: str, exceptions: Mapping[str, str]
) -> None:
    data = huggingface.config_json(config, "float32")
    data["quantization_config"] = {
        "quant_method": METHOD,
        "version": VERSION,
        "format": format,
        **({"formats": dict(exceptions)} if exceptions else {}),
    }
    huggingface.write_json(folder / "config.json", data)


# --- reading ----------------------------------------------------------------------------------


def open_quantized(path: str | Path) -> Quantized:
    """Map a folder that :func:`quantize` wrote. Sizes are checked; no weight is read.

    Raises:
        CheckpointError: naming the file, and the tensor that is missing, unknown or misshapen.
    """
    folder = Path(path)
    described = quantization_of(folder)
    if described is None:
        raise CheckpointError(folder, "holds no weights packed by wkv: see 'wkv quantize'")
    format, exceptions = _described(folder / "config.json", described)
    try:
        config = ModelConfig.from_dict(huggingface.read_config(folder / "config.json"))
    except ConfigError as error:
        raise CheckpointError(folder / "config.json", str(error)) from error
    file = folder / WEIGHTS
    if not file.is_file():
        raise CheckpointError(file, "is missing: quantize again, or copy the whole folder")
    mapping = FileMapping(file)
    tensors, _ = read_safetensors(mapping)
    starts = _starts(mapping)
    _check_bounds(folder / "config.json", config, len(tensors))
    found = {from_hf(name) or name: tensor for name, tensor in tensors.items()}
    expected = {
        name: shape if is_matrix(shape) else (int(np.prod(shape)),)
        for name, shape in expected_tensors(config).items()
        if not (name == "head.weight" and config.tie_word_embeddings)
    }
    if extra := sorted(set(found) - set(expected)):
        raise CheckpointError(file, "is no tensor of this model", tensor=extra[0])
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, np.ndarray] = {}
    for name, shape in expected.items():
        tensor = found.get(name)
        if tensor is None:
            raise CheckpointError(file, "is missing: the file is not whole", tensor=name)
        kind = exceptions.get(name, format)
        size = packed_size(name, shape, kind)
        if is_matrix(shape):
            panels = -(-shape[0] // (16 * lanes_of(name)))
            _expect(file, name, tensor, "U8", (panels, size // panels))
            data = _bytes(mapping, starts[tensor.name], name, size)
            matrices[name] = PackedMatrix(data, kind, shape[0], shape[1], lanes_of(name))
        else:
            _expect(file, name, tensor, "float32", shape)
            vector = _bytes(mapping, starts[tensor.name], name, size).view(np.float32)
            if not np.isfinite(vector).all():
                raise CheckpointError(file, "holds NaN or infinite values", tensor=name)
            vectors[name] = vector
    if config.tie_word_embeddings:
        matrices["head.weight"] = matrices["emb.weight"]
    return Quantized(folder, config, format, matrices, vectors)


def _described(path: Path, described: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    version, format = described.get("version"), described.get("format")
    exceptions = described.get("formats", {})
    if version != VERSION:
        raise CheckpointError(
            path, f"packed in version {version!r}; this wkv reads {VERSION}: quantize again"
        )
    if not isinstance(exceptions, dict):
        raise CheckpointError(path, f"quantization_config has formats {exceptions!r:.80}")
    for value in (format, *exceptions.values()):
        if value not in FORMATS:
            raise CheckpointError(path, f"unknown weight format {value!r:.80} in it")
    return str(format), exceptions


def _check_bounds(path: Path, config: ModelConfig, tensors: int) -> None:
    """Refuse numbers that no such file can have, before anything is sized by them."""
    sizes = (config.hidden_size, config.attention_size, config.ffn_size)
    if config.num_hidden_layers > tensors or config.vocab_size > 1 << 24 or max(sizes) > 1 << 20:
        raise CheckpointError(
            path, f"describes a model that {tensors} tensors cannot hold: {config.to_dict()}"
        )


def _expect(
    file: Path, name: str, tensor: StoredTensor, dtype: str, shape: tuple[int, ...]
) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        raise CheckpointError(
            file,
            f"is {tensor.dtype} {list(tensor.shape)}; config.json asks for {dtype} {list(shape)}",
            tensor=name,
        )


def _starts(mapping: FileMapping) -> dict[str, int]:
    """Where each tensor begins in a file whose header was checked."""
    (length,) = struct.unpack("<Q", mapping.read(0, 8))
    header = json.loads(mapping.read(8, 8 + length))
    header.pop("__metadata__", None)
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


def _bytes(mapping: FileMapping, start: int, name: str, size: int) -> np.ndarray:
    if start % 4 != 0:
        raise CheckpointError(
            mapping.path, f"begins at byte {start}, not a multiple of 4", tensor=name
        )
    return mapping.bytes[start : start + size]
