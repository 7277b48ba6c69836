"""Convert weights between formats, tensor by tensor: memory does not grow with the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..atomic import new_file, new_folder
from ..errors import CheckpointError, ConfigError
from . import ggml, huggingface, pth, rwkv_cpp
from .checkpoint import Checkpoint, open_checkpoint, open_lora
from .dtypes import STORAGE, canonical
from .folder import replaced, write_tokenizer
from .tensors import Planned, chunks

FORMATS = ("hf", "pth", "rwkv.cpp")
DTYPES = ("float32", "float16", "bfloat16", *ggml.BLOCK_BYTES)
Progress = Callable[[int, int, str], None]

_SUFFIXES = {".pth": "pth", ".pt": "pth", ".bin": "rwkv.cpp"}
_OTHER_SUFFIXES = {".safetensors", ".gguf", ".ggml", ".ckpt", ".onnx", ".json", ".zip"}


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote."""

    path: Path
    format: str
    dtype: str
    files: list[Path]
    nbytes: int
    notes: list[str] = field(default_factory=list)


def format_of(destination: Path) -> str:
    """The format that a destination's ending implies; a name without one is a folder."""
    suffix = destination.suffix.lower()
    if suffix in _OTHER_SUFFIXES:
        raise ConfigError(
            f"{destination}: wkv does not write {suffix} files: end it in .pth, or .bin for "
            "rwkv.cpp, or name a folder"
        )
    return _SUFFIXES.get(suffix, "hf")


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    tokenizer: str | Path | None = None,
    max_shard_size: int | str = "5GB",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert any weight file or folder into another format.

    Args:
        source: ``.pth``, safetensors, rwkv.cpp ``.bin`` or a Hugging Face folder.
        destination: a file or folder; written beside and renamed when whole.
        format: ``"hf"``, ``"pth"`` or ``"rwkv.cpp"``; by default what the ending implies.
        dtype: for every tensor, or every matrix in rwkv.cpp files. By default tensors keep theirs;
            quantized ones become float32, and bfloat16 becomes float16 in rwkv.cpp files.
        lora: a LoRA ``.pth`` to merge, with its ``lora_alpha``.
        tokenizer: a tokenizer's file or name for a Hugging Face folder; by default the one found
            beside the source.
        max_shard_size: the largest file in a Hugging Face folder.
        overwrite: replace what is at the destination.
        progress: called with bytes written, bytes in all, and the tensor's name.

    Raises:
        CheckpointError: a source that is damaged, a destination that cannot be written.
        ConfigError: a choice that the format cannot hold.
    """
    destination = Path(destination)
    kind = format or format_of(destination)
    if kind not in FORMATS:
        raise ConfigError(f"unknown format {kind!r}: choose from {', '.join(FORMATS)}")
    if dtype is not None and canonical(dtype) not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose from {', '.join(DTYPES)}")
    if tokenizer is not None and kind != "hf":
        raise ConfigError(f"a tokenizer goes into Hugging Face folders only, not {kind} files")
    if lora_alpha is not None and lora is None:
        raise ConfigError("lora_alpha without a LoRA file: give both or neither")
    with open_checkpoint(source) as opened:
        checkpoint = opened.merged(open_lora(lora), lora_alpha) if lora else opened
        _check_epsilon(checkpoint, kind)
        planned, written_as = _plan(checkpoint, kind, canonical(dtype) if dtype else None)
        total = sum(p.nbytes for p in planned)
        feed = _feed(checkpoint, total, progress)
        if kind == "hf":
            files, notes = _write_hf(
                checkpoint, destination, planned, feed, max_shard_size, tokenizer, overwrite, total
            )
            return Conversion(destination, kind, written_as, files, total, notes)
        with new_file(destination, overwrite=overwrite, size=total) as out:
            if kind == "pth":
                pth.write_pth(out, planned, feed)
            else:
                rwkv_cpp.write_rwkv_cpp(out, checkpoint.config, written_as, planned, feed)
    return Conversion(destination, kind, written_as, [destination], total)


def _plan(checkpoint: Checkpoint, kind: str, dtype: str | None) -> tuple[list[Planned], str]:
    """The tensors to write, and the dtype that describes the file as a whole."""
    if kind == "rwkv.cpp":
        stored = checkpoint.dtype
        default = {"bfloat16": "float16", "float64": "float32"}.get(stored, stored)
        chosen = dtype or default
        plan = rwkv_cpp.plan_rwkv_cpp(checkpoint.config, checkpoint.shapes, chosen)
        return plan, chosen
    if dtype in ggml.BLOCK_BYTES:
        raise ConfigError(f"{dtype} exists in rwkv.cpp files only: end the destination in .bin")

    def keep(stored: str) -> str:
        return stored if stored in STORAGE else "float32"

    planned = [
        Planned(name, dtype or keep(checkpoint.dtypes[name]), shape)
        for name, shape in checkpoint.shapes.items()
        if not (kind == "hf" and name == "head.weight" and checkpoint.config.tie_word_embeddings)
    ]
    return planned, dtype or keep(checkpoint.dtype)


def _check_epsilon(checkpoint: Checkpoint, kind: str) -> None:
    epsilon = checkpoint.config.layer_norm_epsilon
    if kind != "hf" and epsilon != 1e-5:
        raise ConfigError(
            f"layer_norm_epsilon is {epsilon}; {kind} files cannot say so, and what reads them "
            "takes 1e-05: convert to a Hugging Face folder"
        )


def _feed(
    checkpoint: Checkpoint, total: int, progress: Progress | None
) -> Callable[[Planned], Iterable[np.ndarray]]:
    done = 0

    def feed(planned: Planned) -> Iterator[np.ndarray]:
        nonlocal done
        for chunk in chunks(checkpoint.tensors[planned.name], planned.dtype):
            if progress:
                progress(done, total, planned.name)
            yield chunk
            done += chunk.nbytes
        if progress:
            progress(done, total, planned.name)

    return feed


# --- Hugging Face folders ---------------------------------------------------------------------


def _write_hf(
    checkpoint: Checkpoint,
    destination: Path,
    planned: list[Planned],
    feed: Callable[[Planned], Iterable[np.ndarray]],
    max_shard_size: int | str,
    tokenizer: str | Path | None,
    overwrite: bool,
    total: int,
) -> tuple[list[Path], list[str]]:
    with new_folder(destination, overwrite=overwrite, size=total, replaces=replaced) as folder:
        notes = write_tokenizer(checkpoint, folder, tokenizer)
        huggingface.write_folder(folder, checkpoint.config, planned, feed, max_shard_size)
        generation = checkpoint.path / "generation_config.json"
        if checkpoint.format == "hf" and generation.is_file():
            shutil.copyfile(generation, folder / generation.name)
        names = sorted(p.name for p in folder.iterdir())
    return [destination / name for name in names], notes


def require_size(checkpoint: Checkpoint, size: str) -> None:
    """Raise unless the checkpoint is of a published size, as ``"169M"`` … ``"14B"``."""
    from ..config import preset

    wanted = preset(size)
    found = checkpoint.config
    for key in ("num_hidden_layers", "hidden_size"):
        if getattr(wanted, key) != getattr(found, key):
            raise CheckpointError(
                checkpoint.path,
                f"is not of size {size}: its {key} is {getattr(found, key)}, not "
                f"{getattr(wanted, key)}",
            )
