"""A checkpoint as a PyTorch state dict, sharing the file's memory where it can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import UnavailableError
from .checkpoint import Checkpoint, open_checkpoint
from .dtypes import STORAGE, canonical
from .names import to_hf

if TYPE_CHECKING:
    import torch


def load_state_dict(
    source: str | Path | Checkpoint, dtype: str | torch.dtype | None = None
) -> dict[str, torch.Tensor]:
    """All tensors under their Hugging Face names (``rwkv.blocks.0.attention.key.weight`` …).

    ``dtype`` None keeps each tensor's own (quantized ones become float32). A tensor that is stored
    in the wanted dtype is a copy-on-write view of the file: nothing is read until it is used, and
    changing it never changes the file. A :class:`Checkpoint` must have been opened with
    ``writable=True`` for that; from others tensors are copied.
    """
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(
            "loading weights as PyTorch tensors needs torch: pip install 'wkv[torch]'"
        ) from error

    wanted = canonical(str(dtype)) if dtype is not None else None
    checkpoint = (
        source if isinstance(source, Checkpoint) else open_checkpoint(source, writable=True)
    )
    tensors = {}
    for name, stored in checkpoint.dtypes.items():
        kind = wanted or (stored if stored in STORAGE else "float32")
        array = checkpoint.tensor(name, kind)
        tensor = torch.from_numpy(np.require(array, requirements=["C", "A", "W"]))
        tensors[to_hf(name)] = tensor.view(torch.bfloat16) if kind == "bfloat16" else tensor
    if checkpoint.config.tie_word_embeddings:
        tensors["head.weight"] = tensors["rwkv.embeddings.weight"]
    return tensors
