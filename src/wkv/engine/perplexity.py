"""How well an engine predicts a text: without PyTorch, for any engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ShapeError
from .protocol import Engine


def perplexity(
    engine: Engine,
    ids: Sequence[int],
    *,
    chunk: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """e^(mean −ln p) of every token but the first, the state carried over the whole text.

    Args:
        engine: any engine.
        ids: at least two token ids.
        chunk: tokens a call: bounds the memory of the logits.
        progress: called with tokens done and tokens in all.
    """
    if len(ids) < 2:
        raise ShapeError(f"{len(ids)} tokens have no next token to predict: give at least two")
    total, state = 0.0, None
    for start in range(0, len(ids) - 1, chunk):
        stop = min(start + chunk, len(ids) - 1)
        logits, state = engine.forward([ids[start:stop]], state, logits="all")
        top = logits.max(axis=1, keepdims=True)
        partition = np.exp(logits - top, dtype=np.float32).sum(axis=1, dtype=np.float64)
        target = logits[np.arange(stop - start), list(ids[start + 1 : stop + 1])]
        total += float((np.log(partition) + top[:, 0] - target).sum())
        if progress:
            progress(stop, len(ids) - 1)
    return math.exp(total / (len(ids) - 1))
