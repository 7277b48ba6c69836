"""Which tokens of a corpus count in the loss: a second corpus of 0 and 1 beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import CorpusError
from .binidx import Binidx


def loss_mask(corpus: Binidx) -> np.ndarray | None:
    """Which tokens of a corpus count in the loss (uint8 [N]); None where all do."""
    base = corpus.path.with_suffix("")
    if not Path(f"{base}.mask.idx").is_file():
        return None
    mask = Binidx(Path(f"{base}.mask.bin"))
    if not np.array_equal(mask.starts, corpus.starts):
        raise CorpusError(mask.path, "its documents are not those of the corpus: tokenise again")
    return mask.tokens
