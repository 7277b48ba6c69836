"""What an engine does: tokens and a state in, logits and a state out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from ..config import ModelConfig
from ..errors import ConfigError, ShapeError
from ..state import Fingerprint, State

Logits = Literal["last", "all", "none"]


@runtime_checkable
class Engine(Protocol):
    """A loaded model that runs ragged batches.

    An engine holds no sequence: everything that a sequence remembers is in its state. Calls from
    several threads are allowed.
    """

    @property
    def name(self) -> str:
        """``"native"`` or ``"torch"``."""

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        """What marks this model's states."""

    def forward(
        self,
        tokens: Sequence[Sequence[int]],
        state: State | None = None,
        *,
        logits: Logits = "last",
    ) -> tuple[np.ndarray, State]:
        """Run B sequences on from their states.

        Args:
            tokens: new token ids of each sequence, at least one each.
            state: B rows, of this model, never changed; None is the state before the first token.
            logits: ``"last"``: after each sequence's last token; ``"all"``: after every token,
                sequence after sequence; ``"none"``.

        Returns:
            Logits float32 [B, V], [ΣT, V] or [0, V], and the new state of B rows. What else is in
            the batch changes a sequence's result by rounding at most.

        Raises:
            ShapeError: no sequence, an empty one, or an id outside the vocabulary.
            StateError: a state of another model or batch size.
        """


def check_batch(
    engine: Engine, tokens: Sequence[Sequence[int]], state: State | None, logits: str
) -> tuple[np.ndarray, np.ndarray]:
    """The checks of :meth:`Engine.forward`, the same for every engine.

    Returns:
        The ids of all sequences in a row [ΣT] int64, and their offsets [B+1] int64.
    """
    if logits not in get_args(Logits):
        raise ConfigError(f"logits is {logits!r}: choose from {', '.join(get_args(Logits))}")
    if len(tokens) == 0:
        raise ShapeError("no sequence to run: give at least one")
    try:
        rows = [np.asarray(row) for row in tokens]
    except (ValueError, TypeError, OverflowError) as error:
        raise ShapeError(f"token ids must be whole numbers: {error}") from None
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise ShapeError(f"sequence {i} has shape {row.shape}: expected token ids [T]")
        if not len(row):
            raise ShapeError(f"sequence {i} is empty: give at least one token")
        if row.dtype.kind not in "iu":
            raise ShapeError(f"sequence {i} is of {row.dtype}: token ids must be whole numbers")
    flat = np.concatenate(rows).astype(np.int64)
    bad = np.flatnonzero((flat < 0) | (flat >= engine.config.vocab_size))
    if len(bad):
        raise ShapeError(
            f"token id {flat[bad[0]]} is outside the vocabulary, 0 to "
            f"{engine.config.vocab_size - 1}: is this the model's tokenizer?"
        )
    if state is not None:
        state.check_fingerprint(engine.fingerprint)
        state.check(engine.config, batch_size=len(rows))
    return flat, np.cumsum([0, *map(len, rows)])
