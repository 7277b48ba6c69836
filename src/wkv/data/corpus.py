"""Texts → tokens, once: JSON lines or plain text in, a binidx corpus out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .binidx import Binidx, BinidxWriter
from .sources import read_records, text_of


def read_documents(path: str | Path, field: str = "text") -> Iterator[str]:
    """The texts of a source: ``field`` of each record of :func:`read_records`."""
    for number, record in enumerate(read_records(path), 1):
        yield text_of(path, number, record, "text" if Path(path).suffix == ".txt" else field)


def tokenize(
    texts: Iterable[str],
    base: str | Path,
    tokenizer: Any,
    *,
    end_of_text: int = 0,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Binidx:
    """Encode texts into the corpus ``base``.bin / ``base``.idx, each ended by ``end_of_text``.

    Args:
        texts: one document each; an empty one is left out.
        base: where to write. Nothing is there until all of it is.
        tokenizer: a ``tokenizers.Tokenizer`` (batches are encoded in parallel).
        end_of_text: the id after each document.
        batch: documents encoded at a time.
        progress: called with documents and tokens so far, after each batch.

    Returns:
        The corpus, opened. Its ids are uint16, or int32 for a vocabulary beyond 65,536 entries.
    """
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.int32
    documents = tokens = 0
    texts = iter(texts)
    with BinidxWriter(base, dtype) as writer:
        while group := list(islice(texts, batch)):
            kept: Sequence[str] = [text for text in group if text]
            for encoding in tokenizer.encode_batch(kept, add_special_tokens=False):
                writer.append([*encoding.ids, end_of_text])
                documents += 1
                tokens += len(encoding.ids) + 1
            if progress:
                progress(documents, tokens)
    return Binidx(base)
