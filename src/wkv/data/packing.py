"""Whole documents packed into rows of T tokens: short examples side by side, nothing cut in two.

A row may hold several documents; ``resets`` marks where each begins, and there the model's state
is reset exactly (``wkv.train.rows``), so each document is learnt as if it were alone.
"""

from __future__ import annotations

import bisect
import itertools

import numpy as np

from ..errors import ConfigError, CorpusError
from .binidx import Binidx
from .blocks import IGNORED
from .mask import loss_mask


class PackedDocuments:
    """Rows of whole documents over as many epochs as ``length`` takes.

    A document of n tokens takes n − 1 places (its last token is only a label). One longer than a
    row is cut into pieces that overlap by the one token that is the label of the one and the first
    input of the other, so that each label counts once an epoch. Which documents share a row is
    fixed (best fit, longest first); the order of the rows is drawn for each epoch.

    Args:
        corpus: the tokens, with a loss mask beside them where a template made them.
        context: T, places a row.
        length: items in all; None is one epoch.
        seed: of the order; None is a fixed order, for evaluation.
    """

    def __init__(
        self, corpus: Binidx, context: int, length: int | None = None, seed: int | None = 0
    ) -> None:
        if context < 1:
            raise ConfigError(f"context is {context}: a row needs at least 1 token")
        self._tokens, self._mask = corpus.tokens, loss_mask(corpus)
        self.context, self.seed = context, seed
        self._rows = _pack(_pieces(corpus.starts, context), context)
        if not self._rows:
            raise CorpusError(corpus.path, "no document has 2 tokens: an input and a label")
        self.per_epoch = len(self._rows)
        self._length = self.per_epoch if length is None else length
        self._cached: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        """``input_ids`` and ``labels``, int64 [T], and ``resets``, bool [T]."""
        if not 0 <= item < self._length:
            raise IndexError(f"item {item} of {self._length}")
        epoch, place = divmod(item, self.per_epoch)
        inputs = np.zeros(self.context, np.int64)
        labels = np.full(self.context, IGNORED, np.int64)
        resets = np.zeros(self.context, bool)
        at = 0
        for begin, size in self._rows[int(self._order(epoch)[place])]:
            piece = self._tokens[begin : begin + size + 1].astype(np.int64)
            inputs[at : at + size] = piece[:-1]
            labels[at : at + size] = piece[1:]
            if self._mask is not None:
                dropped = self._mask[begin + 1 : begin + size + 1] == 0
                labels[at : at + size][dropped] = IGNORED
            resets[at] = True
            at += size
        if at < self.context:
            resets[at] = True  # the filling must not see a document either
        return {"input_ids": inputs, "labels": labels, "resets": resets}

    def _order(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            order = np.arange(self.per_epoch)
            if self.seed is not None:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.per_epoch)
            self._cached = (epoch, order)
        return self._cached[1]


def _pieces(starts: np.ndarray, context: int) -> list[tuple[int, int]]:
    """(first token, places) of every piece of every document."""
    return [
        (at, min(context, end - 1 - at))
        for begin, end in itertools.pairwise(starts.tolist())
        for at in range(begin, end - 1, context)
    ]


def _pack(pieces: list[tuple[int, int]], context: int) -> list[list[tuple[int, int]]]:
    """Best fit, longest first: each piece into the fullest row that has room for it."""
    rows: list[list[tuple[int, int]]] = []
    with_room: dict[int, list[int]] = {}  # room → rows that have it
    rooms: list[int] = []  # the keys of with_room, ascending
    for piece in sorted(pieces, key=lambda p: (-p[1], p[0])):
        i = bisect.bisect_left(rooms, piece[1])
        if i == len(rooms):
            row, room = len(rows), context
            rows.append([])
        else:
            room = rooms[i]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[i]
        rows[row].append(piece)
        if room > piece[1]:
            left = room - piece[1]
            if left not in with_room:
                with_room[left] = []
                bisect.insort(rooms, left)
            with_room[left].append(row)
    return rows
