"""Perplexity, bits per byte and loss by position on a tokenised corpus.

A model is a function from token ids [B, T] to logits [B, T, V], so that any architecture is
measured in the same way. Losses are natural logarithms (nats) and are summed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..data import IGNORED, Binidx, Blocks
from ..errors import ConfigError, CorpusError
from ..train.loss import token_losses

Logits = Callable[[torch.Tensor], torch.Tensor]
Stepping = Callable[[torch.Tensor, Any], tuple[torch.Tensor, Any]]


@dataclass(frozen=True)
class HeldOut:
    """Summed loss over some tokens.

    Attributes:
        nats: −Σ ln p(token).
        tokens: how many were predicted.
    """

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return math.exp(self.loss)

    def bits_per_byte(self, size: int) -> float:
        """Bits spent on each byte of the text that the tokens encode, ``size`` bytes in all.

        Unlike perplexity it can be compared between tokenizers.
        """
        return self.nats / math.log(2) / size


@torch.inference_mode()
def blockwise(model: Logits, corpus: Binidx, context: int, batch: int = 8) -> HeldOut:
    """The corpus in blocks of ``context`` tokens, each read from an empty state.

    The measure to compare architectures with: no token sees more than the block before it.
    """
    blocks = Blocks(corpus, context, seed=None)
    nats, count = 0.0, 0
    for start in range(0, len(blocks), batch):
        rows = [blocks[i] for i in range(start, min(start + batch, len(blocks)))]
        ids, labels = (
            torch.from_numpy(np.stack([r[k] for r in rows])) for k in ("input_ids", "labels")
        )
        nats += token_losses(model(ids), labels).double().sum().item()
        count += int((labels != IGNORED).sum())
    return HeldOut(nats, count)


@torch.inference_mode()
def carried(model: Stepping, corpus: Binidx, chunk: int = 512) -> HeldOut:
    """Each document from its first token to its last, the state carried from chunk to chunk.

    ``model`` takes ids [1, T] and a state (None at a document's start) and returns logits and the
    new state. A document is preceded by token 0, so that its first token is predicted too.
    """
    nats, count = 0.0, 0
    for number in range(len(corpus)):
        labels = torch.from_numpy(corpus.document(number).astype(np.int64))[None]
        ids = F.pad(labels, (1, -1))
        state = None
        for start in range(0, ids.shape[1], chunk):
            span = slice(start, start + chunk)
            logits, state = model(ids[:, span], state)
            nats += token_losses(logits, labels[:, span]).double().sum().item()
        count += labels.shape[1]
    if not count:
        raise CorpusError(corpus.path, "no tokens to predict")
    return HeldOut(nats, count)


@torch.inference_mode()
def loss_by_position(
    model: Logits, corpus: Binidx, edges: Sequence[int], batch: int = 4
) -> list[HeldOut]:
    """Loss between one distance from the start and the next.

    Windows of ``edges[-1]`` tokens, each inside one document, are read from an empty state; all
    bins so average over the same windows.

    Args:
        model: token ids to logits.
        corpus: documents; those shorter than a window are left out.
        edges: rising positions, e.g. (0, 64, 512, 2048): bins [0, 64), [64, 512), [512, 2048).
        batch: windows at a time.

    Returns:
        One :class:`HeldOut` a bin.
    """
    edges = list(edges)
    if len(edges) < 2 or edges[0] < 0 or any(b <= a for a, b in pairwise(edges)):
        raise ConfigError(f"positions {edges}: give at least two, rising from 0 or more")
    length = edges[-1]
    windows = []
    for number in range(len(corpus)):
        document = corpus.document(number)
        windows += [
            document[start : start + length + 1].astype(np.int64)
            for start in range(0, len(document) - length, length)
        ]
    if not windows:
        raise CorpusError(corpus.path, f"no document has {length + 1} tokens")
    sums = np.zeros(length)
    for start in range(0, len(windows), batch):
        rows = torch.from_numpy(np.stack(windows[start : start + batch]))
        sums += token_losses(model(rows[:, :-1]), rows[:, 1:]).double().sum(0).numpy()
    return [HeldOut(float(sums[a:b].sum()), len(windows) * (b - a)) for a, b in pairwise(edges)]
