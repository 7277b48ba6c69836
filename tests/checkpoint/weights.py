"""Small models' weights in files, written by others' code."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tests.oracles.models import random_weights
from wkv.config import ModelConfig

# Rows of a multiple of 32 values, which every format can hold.
CONFIG = ModelConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2)
WEIGHTS = random_weights(CONFIG)


def save_pth(path: Path, weights: dict[str, np.ndarray], dtype: str = "float32", **how) -> Path:
    """Write with PyTorch itself."""
    import torch

    kind = getattr(torch, dtype)
    torch.save({n: torch.from_numpy(w.copy()).to(kind) for n, w in weights.items()}, path, **how)
    return path


def save_ggml(path: Path, weights: dict[str, np.ndarray], half: bool = False) -> Path:
    """Write an unquantized rwkv.cpp file, by the format's description."""
    v, d = weights["emb.weight"].shape
    layers = sum(n.endswith("ln1.weight") for n in weights)
    out = [struct.pack("<6i", 0x67676D66, 100, v, d, layers, int(half))]
    for name, values in weights.items():
        if ".time_" in name:
            values = values.reshape(-1)
        if name.endswith("time_decay"):
            values = -np.exp(values)
        is_half = half and values.ndim == 2
        out.append(struct.pack("<3i", values.ndim, len(name), int(is_half)))
        out.append(struct.pack(f"<{values.ndim}i", *values.shape[::-1]) + name.encode())
        out.append(values.astype("<f2" if is_half else "<f4").tobytes())
    path.write_bytes(b"".join(out))
    return path
