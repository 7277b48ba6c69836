"""Training blocks of T + 1 tokens: each token once an epoch, in an order that a seed fixes.

A block is one row of a batch: T inputs and the T tokens that follow them. Which block is item n
depends on nothing but the corpus, the seed and n, so a run that stops resumes by counting.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError, CorpusError
from .binidx import Binidx
from .mask import loss_mask

IGNORED = -100  # the label that a loss skips


class Blocks:
    """The blocks of a corpus over as many epochs as ``length`` takes.

    Each epoch cuts the whole token stream and serves the pieces without replacement in random
    order; all tokens but the stream's first are a label exactly once an epoch. The stream is
    seldom a whole number of blocks: what is missing, split at random between its two ends, is
    token 0 with labels of −100. So a stream shorter than one block is one block.

    Args:
        corpus: the tokens.
        context: T, tokens a block.
        length: items in all; None is one epoch.
        seed: of cutting and order; None is file order from the first token, for evaluation.
        resets: also return where documents begin, so that none is seen from another: the first
            token of a document is then no label. A block that begins inside a document begins
            from the empty state, as in training without boundaries.
    """

    def __init__(
        self,
        corpus: Binidx,
        context: int,
        length: int | None = None,
        seed: int | None = 0,
        *,
        resets: bool = False,
    ) -> None:
        if context < 1:
            raise ConfigError(f"context is {context}: a block needs at least 1 token")
        if len(corpus.tokens) < 2:
            raise CorpusError(
                corpus.path, f"{len(corpus.tokens)} tokens: at least 2 make an input and a label"
            )
        self._tokens, self._mask = corpus.tokens, loss_mask(corpus)
        self._starts = corpus.starts if resets else None
        self.context, self.seed = context, seed
        self._labels = len(corpus.tokens) - 1
        self.per_epoch = -(-self._labels // context)
        self._length = self.per_epoch if length is None else length
        self._cached: tuple[int, int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        """``input_ids`` and ``labels`` (the next tokens), int64 [T]; ``resets``, bool [T]."""
        if not 0 <= item < self._length:
            raise IndexError(f"item {item} of {self._length}")
        epoch, place = divmod(item, self.per_epoch)
        phase, order = self._epoch(epoch)
        start = int(order[place]) * self.context - phase
        first = max(start, 0)
        piece = self._tokens[first : min(start + self.context, self._labels) + 1]
        inputs = np.zeros(self.context, np.int64)
        labels = np.full(self.context, IGNORED, np.int64)
        size = len(piece) - 1
        at = slice(max(-start, 0), max(-start, 0) + size)
        inputs[at] = piece[:-1]
        labels[at] = piece[1:]
        if self._mask is not None:
            labels[at][self._mask[first + 1 : first + size + 1] == 0] = IGNORED
        block = {"input_ids": inputs, "labels": labels}
        if self._starts is not None:
            span = np.searchsorted(self._starts, [first, first + size + 1])
            begins = np.unique(self._starts[span[0] : span[1]]) - first
            block["resets"] = resets = np.zeros(self.context, bool)
            resets[at][begins[begins < size]] = True
            labels[at][begins[begins > 0] - 1] = IGNORED
        return block

    def _epoch(self, epoch: int) -> tuple[int, np.ndarray]:
        """How far before the first token the first block begins, and the order of the blocks."""
        if self._cached is None or self._cached[0] != epoch:
            if self.seed is None:
                phase, order = 0, np.arange(self.per_epoch)
            else:
                rng = np.random.default_rng((self.seed, epoch))
                missing = self.per_epoch * self.context - self._labels
                phase = int(rng.integers(missing + 1))
                order = rng.permutation(self.per_epoch)
            self._cached = (epoch, phase, order)
        return self._cached[1], self._cached[2]
