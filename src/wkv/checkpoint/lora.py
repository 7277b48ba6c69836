"""LoRA weights in the published ``.pth`` form: read, checked and merged into a model.

Such a file holds ``blocks.N.att.key.lora_A`` [r, in] and ``.lora_B`` [out, r] (some versions add
``.weight``) for the matrices trained by LoRA, and whole tensors under their own names for what was
trained fully (LayerNorms, ``time_*``). Merged: W + (alpha / r) · B·A.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from ..errors import CheckpointError, ConfigError
from . import dtypes, ggml
from .tensors import StoredTensor, is_weight, read

_FACTOR = re.compile(r"(.+)\.lora_([AB])(?:\.weight)?")


@dataclass(frozen=True)
class Lora:
    """The content of a LoRA file."""

    path: Path
    factors: dict[str, tuple[StoredTensor, StoredTensor]]  # original name -> (A, B)
    whole: dict[str, StoredTensor]  # original name -> replacement

    @property
    def ranks(self) -> list[int]:
        """The ranks in use, ascending."""
        return sorted({a.shape[0] for a, _ in self.factors.values()})


def has_lora(names: list[str]) -> bool:
    """Whether the tensors of a file are, in part, LoRA factors."""
    return any(_FACTOR.fullmatch(name) for name in names)


def sort_lora(path: Path, tensors: dict[str, StoredTensor]) -> Lora:
    """Pair the factors of a file's tensors, given by their original names."""
    factors: dict[str, dict[str, StoredTensor]] = {}
    whole = {}
    for name, tensor in tensors.items():
        if not is_weight(tensor.dtype):
            raise tensor.error(f"is of {tensor.dtype}, which no weight is")
        match = _FACTOR.fullmatch(name)
        if match:
            factors.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor
        else:
            whole[name] = tensor
    if not factors:
        raise CheckpointError(path, "holds no lora_A and lora_B: not a LoRA file")
    for name, pair in factors.items():
        if len(pair) != 2:
            missing = "A" if "B" in pair else "B"
            raise CheckpointError(path, f"lora_{missing} is missing", tensor=name)
        a, b = pair["A"], pair["B"]
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not a.shape[0]:
            raise CheckpointError(
                path,
                f"lora_A of {list(a.shape)} does not fit lora_B of {list(b.shape)}",
                tensor=name,
            )
    return Lora(path, {name: (p["A"], p["B"]) for name, p in factors.items()}, whole)


def merge(
    tensors: dict[str, StoredTensor], lora: Lora, alpha: float | None
) -> dict[str, StoredTensor]:
    """The tensors of a model with a LoRA merged in, computed as they are read.

    Merged matrices keep the precision of the model's, float32 where that is quantized.
    """
    if alpha is None:
        raise ConfigError(
            f"{lora.path} does not say its alpha: give the lora_alpha that it was trained with"
        )
    if not np.isfinite(alpha):
        raise ConfigError(f"lora_alpha is {alpha}: give the number that it was trained with")
    merged = dict(tensors)
    for name, tensor in lora.whole.items():
        if name not in tensors:
            raise CheckpointError(lora.path, "the model has no such tensor", tensor=name)
        if prod(tensor.shape) != prod(tensors[name].shape):
            raise CheckpointError(
                lora.path,
                f"has shape {list(tensor.shape)}, the model's {list(tensors[name].shape)}",
                tensor=name,
            )
        merged[name] = replace(tensor, name=name)
    for name, (a, b) in lora.factors.items():
        shape = (b.shape[0], a.shape[1])
        if name not in tensors or tensors[name].shape != shape:
            found = list(tensors[name].shape) if name in tensors else "no such tensor"
            raise CheckpointError(
                lora.path, f"is for a matrix of {list(shape)}; the model has {found}", tensor=name
            )
        merged[name] = _merged(merged[name], a, b, alpha / a.shape[0])
    return merged


def _merged(base: StoredTensor, a: StoredTensor, b: StoredTensor, scale: float) -> StoredTensor:
    quantized = base.dtype in ggml.BLOCK_BYTES
    dtype = "float32" if quantized else base.dtype

    factors: list[np.ndarray] = []  # while the rows are asked for from first to last

    def rows(start: int, stop: int) -> np.ndarray:
        if not factors:
            factors.extend((read(b, "float32") * np.float32(scale), read(a, "float32")))
        left, right = factors
        if stop == base.row_count:
            factors.clear()
        stored = base.rows(start, stop)
        if quantized:
            values = ggml.dequantize(stored, base.dtype)
        else:
            values = dtypes.to_float32(stored, base.dtype)
        return dtypes.from_float32(values + left[start:stop] @ right, dtype)

    return replace(base, dtype=dtype, rows=rows)
