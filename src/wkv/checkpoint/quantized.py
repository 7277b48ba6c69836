"""Folders whose weights lie as the native engine reads them: streamed out, opened by mapping.

A folder has ``config.json`` with ``quantization_config`` {"quant_method": "wkv", "version": 1,
"format": …, "formats": {tensor: format of the exceptions}} and one ``model.safetensors``: every
matrix a uint8 tensor [panels, bytes] on a 64-byte boundary, in the order in which a token reads
them, then the vectors in float32.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..atomic import new_folder
from ..config import ModelConfig
from ..errors import CheckpointError, ConfigError, ShapeError
from ..state import Fingerprint
from . import gptq, huggingface
from .calibration import walk
from .checkpoint import Checkpoint, open_checkpoint
from .folder import replaced, write_tokenizer
from .names import expected_tensors, from_hf, to_hf
from .packed import (
    FORMATS,
    PackedMatrix,
    check_format,
    default_formats,
    is_matrix,
    lanes_of,
    pack_chunks,
    packed_bytes,
    q4_panels,
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
    calibration: np.ndarray | None = None,
    threads: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Quantization:
    """Pack any checkpoint for the native engine, tensor by tensor.

    Args:
        source: whatever :func:`wkv.checkpoint.open_checkpoint` opens.
        destination: a folder, written beside and renamed when whole.
        format: ``"f32"``, ``"bf16"``, ``"q8"`` or ``"q4"``, of every matrix but those of
            :func:`wkv.checkpoint.packed.default_formats`.
        formats: exceptions, by original tensor name; they go before the default ones.
        calibration: token ids [sequences, tokens], at least some thousands in all. ``q4`` matrices
            are then rounded so that their products for these inputs come out right
            (:mod:`wkv.checkpoint.gptq`).
        threads: threads that pack.
        overwrite: replace what is at the destination.
        progress: called with bytes written, bytes in all, and the tensor's name.

    Raises:
        CheckpointError: a source that is damaged, a destination that cannot be written.
        ConfigError: an unknown format or tensor.
    """
    destination = Path(destination)
    check_format(format)
    if quantization_of(source) is not None:
        raise ConfigError(f"{source} is packed already: quantize the weights that it came from")
    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        shapes = {
            name: shape if is_matrix(shape) else (int(np.prod(shape)),)
            for name, shape in checkpoint.shapes.items()
            if not (name == "head.weight" and config.tie_word_embeddings)
        }
        for name in formats or {}:
            if name not in shapes or not is_matrix(shapes[name]):
                known = ", ".join(n for n in execution_order(shapes) if is_matrix(shapes[n]))
                raise ConfigError(f"{name!r} is not a matrix of {source}: they are {known}")
        if calibration is not None:
            _check_calibration(calibration, config)
        kinds = {**default_formats(config, format), **(formats or {})}
        exceptions = {name: check_format(f) for name, f in kinds.items() if f != format}
        header, sizes = _header(shapes, format, exceptions)
        total = len(header) + sum(sizes.values())
        with new_folder(destination, overwrite=overwrite, size=total, replaces=replaced) as folder:
            notes = write_tokenizer(checkpoint, folder, None)
            with (folder / WEIGHTS).open("xb") as file:
                file.write(header)
                out = _Writer(file, checkpoint, sizes, len(header), threads, progress)
                if calibration is None:
                    for name in sizes:
                        out.tensor(name, exceptions.get(name, format))
                else:
                    _write_calibrated(out, calibration, format, exceptions)
            _write_config(folder, config, format, exceptions)
    weights = sum(int(np.prod(s)) for s in shapes.values())
    return Quantization(destination, format, total, 8 * sum(sizes.values()) / weights, notes)


class _Writer:
    """Writes the tensors of a checkpoint one after the other."""

    def __init__(
        self,
        file: IO[bytes],
        checkpoint: Checkpoint,
        sizes: Mapping[str, int],
        start: int,
        threads: int,
        progress: Progress | None,
    ) -> None:
        self.checkpoint, self.threads = checkpoint, threads
        self._file, self._order, self._progress = file, list(sizes), progress
        self._done, self._total = start, start + sum(sizes.values())

    def tensor(self, name: str, format: str) -> None:
        """Pack a matrix as it is, or write a vector."""
        if is_matrix(self.checkpoint.shapes[name]):
            self.chunks(name, pack_chunks(self.checkpoint, name, format, threads=self.threads))
        else:
            self.chunks(name, [np.ascontiguousarray(self.checkpoint.tensor(name).reshape(-1))])

    def chunks(self, name: str, chunks: Iterable[np.ndarray]) -> None:
        """Write the bytes of the next tensor."""
        assert name == self._order.pop(0)
        for chunk in chunks:
            if self._progress:
                self._progress(self._done, self._total, name)
            self._file.write(chunk.data)
            self._done += chunk.nbytes
        if self._progress:
            self._progress(self._done, self._total, name)


def _check_calibration(ids: np.ndarray, config: ModelConfig) -> None:
    if ids.ndim != 2 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise ShapeError(
            f"calibration is {ids.dtype} {list(ids.shape)}: give ids [sequences, tokens]"
        )
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise ShapeError(
            f"calibration has ids from {ids.min()} to {ids.max()}: the vocabulary has "
            f"{config.vocab_size}"
        )


def _write_calibrated(
    out: _Writer, ids: np.ndarray, format: str, exceptions: Mapping[str, str]
) -> None:
    """Matrices in the order in which the calibration's pass meets them, then the vectors."""
    checkpoint = out.checkpoint
    tied = checkpoint.config.tie_word_embeddings

    def product(name: str, inputs: np.ndarray) -> np.ndarray:
        if name == "head.weight" and tied:
            return inputs
        weights = np.ascontiguousarray(checkpoint.tensor(name), np.float32)
        kind = exceptions.get(name, format)
        if kind == "q4":
            found = gptq.fit(weights, gptq.moments(inputs), threads=out.threads)
            out.chunks(name, [q4_panels(found, lanes_of(name))])
            weights = found.weights()
        else:
            out.tensor(name, kind)
        if name == "head.weight":
            return inputs  # nothing comes after it, and logits of every token would fill the memory
        return np.asarray(inputs @ weights.T)

    out.tensor("emb.weight", exceptions.get("emb.weight", format))
    walk(checkpoint, ids, product)
    for name, shape in checkpoint.shapes.items():
        if not is_matrix(shape):
            out.tensor(name, "f32")


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
