"""Token ids to calibrate a quantization with: a text's, or what the model itself writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ShapeError
from .protocol import Engine

LENGTH = 256  # tokens of a sequence
SEQUENCES = 64  # of the model's own
MOST_SEQUENCES = 128  # of a text: bounds the memory of a pass over them
FEWEST_TOKENS = 2048


def own_samples(
    engine: Engine, *, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """What a model writes at temperature 1: int64 [64, 256], the same for the same seed.

    Its own text reaches the inputs that it will see, whatever language and tokenizer it has.
    """
    rng = np.random.default_rng(seed)
    ids = np.empty((SEQUENCES, LENGTH), np.int64)
    now, state = np.full(SEQUENCES, engine.config.bos_token_id or 0), None
    for at in range(LENGTH):
        ids[:, at] = now
        logits, state = engine.forward(now[:, None].tolist(), state)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True), dtype=np.float32)
        reached = np.cumsum(weights, axis=1, dtype=np.float64)
        drawn = rng.random((SEQUENCES, 1)) * reached[:, -1:]
        now = (reached <= drawn).sum(axis=1)
        if progress:
            progress(at + 1, LENGTH)
    return ids


def text_samples(ids: Sequence[int]) -> np.ndarray:
    """A text's token ids in sequences: int64 [n, 256], evenly from all of it.

    Raises:
        ShapeError: it is too short to tell one input from another.
    """
    if len(ids) < FEWEST_TOKENS:
        raise ShapeError(
            f"{len(ids)} tokens are too few to calibrate: give at least {FEWEST_TOKENS}"
        )
    whole = np.asarray(ids[: len(ids) // LENGTH * LENGTH], np.int64).reshape(-1, LENGTH)
    chosen = np.linspace(0, len(whole) - 1, min(len(whole), MOST_SEQUENCES)).round()
    return whole[chosen.astype(np.int64)]
