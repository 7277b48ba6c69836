"""What a file holds: weights, LoRA or state, as plain values."""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from .. import tokenizer as tokenizers
from ..config import PILE_VOCAB_SIZE, PRESETS, WORLD_VOCAB_SIZE, ModelConfig
from ..errors import StateError, TokenizerError
from ..state import FORMAT as STATE_FORMAT
from ..state import FORMAT_VERSION as STATE_VERSION
from ..state import State
from . import lora, safetensors_file
from .checkpoint import Checkpoint, Contents, open_contents
from .tensors import Mapping

_VOCABULARIES = {PILE_VOCAB_SIZE: "Pile (GPT-NeoX BPE)", WORLD_VOCAB_SIZE: "World"}


def describe(path: str | Path) -> dict[str, Any]:
    """A table of what the file or folder at ``path`` holds; only headers are read."""
    path = Path(path)
    if path.is_file() and _is_state(path):
        return _describe_state(path)
    contents = open_contents(path)
    try:
        if lora.has_lora(list(contents.tensors)):
            return _describe_lora(contents)
        return _describe_model(Checkpoint(contents))
    finally:
        contents.close()


def size_name(config: ModelConfig) -> str | None:
    """The published size with these numbers, ``"1B5"``; None if there is none."""
    for name, published in PRESETS.items():
        same = (
            (published.hidden_size, config.hidden_size),
            (published.num_hidden_layers, config.num_hidden_layers),
            (published.attention_size, config.attention_size),
            (published.ffn_size, config.ffn_size),
        )
        if all(a == b for a, b in same):
            return name.upper()
    return None


def _describe_model(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.config
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for name, dtype in checkpoint.dtypes.items():
        if name == "head.weight" and config.tie_word_embeddings:
            continue
        counts[dtype] += prod(checkpoint.shapes[name])
        sizes[dtype] += checkpoint.tensors[name].nbytes
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    tokenizer = problem = None
    try:
        tokenizer = tokenizers.find_tokenizer(folder, config.vocab_size).name
    except TokenizerError as error:  # nothing there, or something damaged
        problem = str(error)
    return {
        "kind": "model",
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "architecture": "RWKV-4",
        "size": size_name(config),
        "parameters": config.parameters,
        "files": [{"name": f.name, "bytes": f.stat().st_size} for f in checkpoint.files],
        "bytes": sum(f.stat().st_size for f in checkpoint.files),
        "tensors": len(checkpoint.tensors),
        "dtypes": {d: {"parameters": n, "bytes": sizes[d]} for d, n in counts.most_common()},
        "config": config.to_dict(),
        "vocabulary": _VOCABULARIES.get(config.vocab_size),
        "tokenizer": tokenizer,
        "tokenizer_problem": problem,
        "metadata": checkpoint.metadata,
    }


def _describe_lora(contents: Contents) -> dict[str, Any]:
    found = lora.sort_lora(contents.path, contents.tensors)
    dtypes = Counter(tensor.dtype for tensor in contents.tensors.values())
    return {
        "kind": "lora",
        "path": str(contents.path),
        "format": contents.format,
        "bytes": contents.path.stat().st_size,
        "ranks": found.ranks,
        "matrices": sorted(found.factors),
        "whole_tensors": sorted(found.whole),
        "parameters": sum(prod(t.shape) for t in contents.tensors.values()),
        "dtypes": dict(dtypes),
    }


def _is_state(path: Path) -> bool:
    with path.open("rb") as f:
        head = f.read(16)
    if not safetensors_file.looks_like(head, path.stat().st_size):
        return False
    mapping = Mapping(path)
    try:
        _, metadata = safetensors_file.read_safetensors(mapping)
    finally:
        mapping.close()
    return metadata.get("format") == STATE_FORMAT


def _describe_state(path: Path) -> dict[str, Any]:
    state = State.load(path)
    if state.att_x.shape[2] < 1 or state.num.shape[2] < 1:
        raise StateError(f"{path}: a state without channels")
    return {
        "kind": "state",
        "path": str(path),
        "format": STATE_FORMAT,
        "version": STATE_VERSION,
        "architecture": "RWKV-4",
        "sequences": state.batch_size,
        "layers": state.num_layers,
        "hidden_size": state.att_x.shape[2],
        "attention_hidden_size": state.num.shape[2],
        "bytes": path.stat().st_size,
        "model": state.fingerprint.shape if state.fingerprint else None,
    }
