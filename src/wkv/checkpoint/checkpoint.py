"""Open any weight file or folder: one face for all formats.

The format is told by the content, never by the name. Nothing is loaded before it is asked for;
everything that the file says about itself is checked on opening, and values as they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError
from ..state import FORMAT as STATE_FORMAT
from ..state import Fingerprint
from . import huggingface, lora, names, pth, rwkv_cpp, safetensors_file
from .architecture import check_tensors, detect_config
from .dtypes import canonical
from .tensors import Mapping, StoredTensor, read


class RawTensor(NamedTuple):
    """A tensor in storage form.

    ``data`` has the tensor's shape for floating-point dtypes (bfloat16 as uint16 bits), and is
    uint8 [rows, bytes] for block formats. It is a view of the file where the file's layout allows,
    and then may be unaligned (rwkv.cpp files have no padding).
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray


@dataclass
class Contents:
    """What the files at a path hold, before anyone asks which model it is."""

    path: Path
    format: str  # "pth", "safetensors", "hf" or "rwkv.cpp"
    tensors: dict[str, StoredTensor]  # by original name
    mappings: list[Mapping]
    given: dict[str, Any] = field(default_factory=dict)  # what headers and config.json say
    metadata: dict[str, Any] = field(default_factory=dict)

    closed: bool = False

    def close(self) -> None:
        """Drop the mappings."""
        self.closed = True
        for mapping in self.mappings:
            mapping.close()


class Checkpoint:
    """The weights of one RWKV-4 model in a file or folder, read on demand.

    ``names()`` gives the original names; ``config`` the model's numbers; ``dtypes`` how each tensor
    is stored. A context manager; arrays stay valid after closing.
    """

    def __init__(self, contents: Contents) -> None:
        self.path = contents.path
        self.format = contents.format
        self.metadata = contents.metadata
        self._contents = contents
        with _nested(self.path):
            self.config = detect_config(self.path, contents.tensors, contents.given)
        self.shapes = check_tensors(self.path, contents.tensors, self.config)
        self.tensors = {
            name: replace(contents.tensors[name], shape=shape)
            for name, shape in self.shapes.items()
            if name in contents.tensors
        }
        # Tied: the head is the embedding, and the file need not repeat it.
        self.tensors.setdefault("head.weight", self.tensors["emb.weight"])

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, format={self.format!r}, config={self.config})"

    def close(self) -> None:
        """Drop the files; arrays that were read stay valid."""
        self._contents.close()

    def names(self) -> list[str]:
        """Original names of all tensors, in the order of the original files."""
        return list(self.shapes)

    @property
    def dtypes(self) -> dict[str, str]:
        """How each tensor is stored: ``"float16"``, ``"bfloat16"``, ``"q5_1"`` …"""
        return {name: self.tensors[name].dtype for name in self.shapes}

    @property
    def dtype(self) -> str:
        """How the matrices of the blocks are stored."""
        return self.tensors["blocks.0.att.key.weight"].dtype

    @property
    def files(self) -> list[Path]:
        """The weight files."""
        return [mapping.path for mapping in self._contents.mappings]

    def tensor(self, name: str, dtype: str = "float32") -> np.ndarray:
        """A tensor by its original name, in its published shape, checked to be finite.

        ``dtype`` is ``"float32"``, ``"float64"``, ``"float16"`` or ``"bfloat16"`` (uint16 bits).
        Where it is the stored one, the array is a read-only view of the file and takes no memory.
        """
        return read(self._find(name), canonical(dtype)).reshape(self.shapes[name])

    def raw(self, name: str) -> RawTensor:
        """A tensor in storage form, checked to be finite."""
        tensor = self._find(name)
        return RawTensor(tensor.dtype, self.shapes[name], read(tensor, tensor.dtype))

    def fingerprint(self) -> Fingerprint:
        """What marks the states of this model."""
        return Fingerprint.of(self.config, lambda name: self.tensor(name).reshape(-1))

    def merged(self, other: lora.Lora, alpha: float | None) -> Checkpoint:
        """This checkpoint with a LoRA merged in as tensors are read."""
        merged = lora.merge(self.tensors, other, alpha)
        if self.config.tie_word_embeddings and merged["head.weight"] != merged["emb.weight"]:
            merged["head.weight"] = merged["emb.weight"]
        tensors = replace(self._contents, tensors=merged, given=self.config.to_dict())
        return Checkpoint(tensors)

    def _find(self, name: str) -> StoredTensor:
        if self._contents.closed:
            raise ValueError(f"{self.path} is closed: read tensors before leaving its 'with'")
        if name not in self.shapes:
            raise KeyError(f"{name!r} is not a tensor of {self.path}")
        return self.tensors[name]


def open_checkpoint(path: str | Path, *, writable: bool = False) -> Checkpoint:
    """Open a ``.pth``, safetensors or rwkv.cpp file, or a Hugging Face folder, by its content.

    ``writable`` maps the files copy-on-write: arrays may be changed, the files never are.
    Raises :class:`CheckpointError` naming file and tensor for everything that is wrong.
    """
    contents = open_contents(path, writable=writable)
    if lora.has_lora(list(contents.tensors)):
        raise CheckpointError(
            path, "holds LoRA weights, not a model: convert the model with --lora and this file"
        )
    return Checkpoint(contents)


def open_lora(path: str | Path) -> lora.Lora:
    """Open a LoRA file in the published ``.pth`` form."""
    contents = open_contents(path)
    return lora.sort_lora(contents.path, contents.tensors)


def open_contents(path: str | Path, *, writable: bool = False) -> Contents:
    """The tensors at a path by their original names, of whatever model they are."""
    with _nested(Path(path)):
        return _open(Path(path), writable)


@contextmanager
def _nested(path: Path) -> Iterator[None]:
    """JSON that is nested to just below Python's limit fails when it is to be shown."""
    try:
        yield
    except RecursionError as error:
        raise CheckpointError(path, "damaged: nested beyond all reason") from error


def _open(path: Path, writable: bool) -> Contents:
    if path.is_dir():
        return _open_folder(path, writable)
    if not path.exists():
        raise CheckpointError(path, "no such file or folder")
    if not path.is_file():
        raise CheckpointError(path, "is neither a file nor a folder")
    mapping = Mapping(path, writable=writable)
    contents = _open_file(mapping)
    config = path.parent / "config.json"
    if contents.format != "rwkv.cpp" and path.name in huggingface.WEIGHT_FILES and config.is_file():
        contents.given = huggingface.read_config(config)
    return contents


def _open_file(mapping: Mapping) -> Contents:
    path = mapping.path
    head = mapping.read(0, 16)
    given: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    if head.startswith(rwkv_cpp.MAGIC):
        kind = "rwkv.cpp"
        tensors, header = rwkv_cpp.read_rwkv_cpp(mapping)
        given = {k: header[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}
        metadata = {"file_version": header["version"]}
    elif head.startswith(pth.ZIP_MAGIC) or pth.looks_like_pickle(head):
        kind = "pth"
        tensors = pth.read_pth(mapping)
    elif safetensors_file.looks_like(head, len(mapping)):
        kind = "safetensors"
        tensors, metadata = safetensors_file.read_safetensors(mapping)
        if metadata.get("format") == STATE_FORMAT:
            raise CheckpointError(path, "is a saved state, not a model: open it with State.load")
    else:
        raise CheckpointError(path, f"no weight file: begins with {head[:8]!r}{_hint(head)}")
    context = re.search(r"ctx(\d{3,6})\b", path.stem)  # how published files tell it
    if kind != "safetensors" and context and int(context[1]):
        given["context_length"] = int(context[1])
    return Contents(path, kind, _rename(path, tensors), [mapping], given, metadata)


def _hint(head: bytes) -> str:
    for magic, hint in (
        (b"GGUF", "a GGUF file: rwkv.cpp's own .bin is read"),
        (b"version https", "a Git LFS pointer: fetch the file itself with 'git lfs pull'"),
        (b"<", "a web page: the download went wrong"),
        (b"{", "a JSON file: give the folder that it is in"),
    ):
        if head.startswith(magic):
            return f", {hint}"
    return "; .pth, safetensors and rwkv.cpp .bin are read"


def _rename(path: Path, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Original names for whatever style the file is in; unknown names are kept."""
    prefix = names.unwrap(tensors)
    plain = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
    if not names.in_hf_style(plain):
        return plain
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in plain.items():
        original = names.from_hf(name) or name
        if original in renamed:
            raise CheckpointError(path, f"is given twice, as {name!r} too", tensor=original)
        renamed[original] = tensor
    return renamed


def _open_folder(folder: Path, writable: bool) -> Contents:
    if not any((folder / name).is_file() for name in huggingface.WEIGHT_FILES):
        single = sorted(p for p in folder.glob("*.*") if p.suffix in (".pth", ".bin"))
        if len(single) == 1:
            return _open(single[0], writable)
        if single:
            listed = ", ".join(p.name for p in single)
            raise CheckpointError(folder, f"holds several models, name one: {listed}")
    files, table = huggingface.weight_files(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(folder, "no config.json beside the weights: name the weight file")
    given = huggingface.read_config(config)
    tensors: dict[str, StoredTensor] = {}
    mappings = []
    metadata: dict[str, Any] = {}
    for path in files:
        part = _open_file(Mapping(path, writable=writable))
        metadata = part.metadata
        mappings += part.mappings
        for name, tensor in part.tensors.items():
            if name in tensors:
                raise CheckpointError(path, "is in another shard too", tensor=name)
            tensors[name] = tensor
    if table is not None:
        _check_index(folder, table, tensors)
    return Contents(folder, "hf", tensors, mappings, given, metadata)


def _check_index(folder: Path, table: dict[str, str], tensors: dict[str, StoredTensor]) -> None:
    """The index and the shards must agree on which file holds which tensor."""
    held = {tensor.name: tensor.path.name for tensor in tensors.values()}
    for name in sorted({*table, *held}):
        if table.get(name) != held.get(name):
            raise CheckpointError(
                folder,
                f"is in {held.get(name, 'no shard')}; the index says {table.get(name, 'nothing')}",
                tensor=name,
            )
