"""The ``rwkv`` package as an oracle: it reads a ``.pth`` file and computes in float32."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np

from wkv.config import ModelConfig


def rwkv_package_model(config: ModelConfig, weights: dict[str, np.ndarray], folder: Path):
    """The package's model of weights by original names, through a ``.pth`` file in ``folder``.

    ``forward(tokens, state, full_output)`` gives logits and a state, which it changes in place.
    """
    import os

    # Read once, at import: the classic forward code, in plain PyTorch.
    os.environ.setdefault("RWKV_V7_ON", "0")
    os.environ.setdefault("RWKV_JIT_ON", "0")
    import torch

    path = folder / "model.pth"
    torch.save({name: torch.from_numpy(x.copy()) for name, x in weights.items()}, path)
    with contextlib.redirect_stdout(io.StringIO()):
        from rwkv.model import RWKV

        return RWKV(model=str(path), strategy="cpu fp32", verbose=False)
