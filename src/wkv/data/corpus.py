"""Texts → tokens, once: JSON lines or plain text in, a binidx corpus out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorpusError
from .binidx import Binidx, BinidxWriter


def read_documents(path: str | Path, field: str = "text") -> Iterator[str]:
    """The texts of a file: ``field`` of each line of ``.jsonl``, or a whole ``.txt`` file."""
    path = Path(path)
    if not path.is_file():
        raise CorpusError(path, "no such file")
    try:
        if path.suffix == ".txt":
            yield path.read_text(encoding="utf-8")
            return
        if path.suffix not in (".jsonl", ".json"):
            raise CorpusError(path, f"{path.suffix or 'no'} suffix: give .jsonl or .txt")
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _field(path, number, line, field)
    except UnicodeDecodeError as error:
        raise CorpusError(path, f"not UTF-8 at byte {error.start}") from None


def _field(path: Path, number: int, line: str, field: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(path, f"line {number} is not JSON: {error}") from None
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        keys = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise CorpusError(path, f"line {number} has no text under {field!r}: it has {keys}")
    return text


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
