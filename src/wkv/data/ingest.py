"""A source of documents → tokenised corpora for training and validation, once and in parallel.

Beside ``NAME.bin`` and ``NAME.idx`` lie ``NAME.json``, which tells what the corpus was made from
and whether it can be used again, and, where a template was used, ``NAME.mask.*`` (uint8): which
tokens count in the loss.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ConfigError, CorpusError
from ..tokenizer import Tokenizer, load_tokenizer
from .binidx import Binidx, BinidxWriter
from .sources import Record, read_records, text_of
from .templates import Segment, Template, encode_example, templates

_BATCH = 64  # records a task: enough to hide the hand-over, few enough to keep all processes busy


@dataclass(frozen=True)
class Ingest:
    """How a source becomes tokens.

    Attributes:
        source: see :func:`wkv.data.read_records`.
        tokenizer: a name or path, see :func:`wkv.tokenizer.load_tokenizer`.
        field: of a record that holds the text (without a template).
        template: a name of :data:`wkv.data.TEMPLATES` for instructions and conversations; or
            several, joined by ``+``: each record then takes one of them, which its text decides.
        split: of a ``datasets`` source.
        holdout: share of the documents, from 0 to below 1, that goes to validation. Which ones is
            decided by their text, so that copies of one document land on the same side.
        seed: of that choice.
    """

    source: str
    tokenizer: str
    field: str = "text"
    template: str | None = None
    split: str = "train"
    holdout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"holdout is {self.holdout!r}: give a share from 0 to below 1")
        if self.template is not None:
            templates(self.template)


class _Document(NamedTuple):
    ids: np.ndarray
    mask: np.ndarray | None
    held_out: bool


def ingest(
    how: Ingest,
    base: str | Path,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Binidx, Binidx | None]:
    """Tokenise a source to ``base`` and, with ``holdout``, ``base-validation``.

    A corpus that was made there before in the same way from files that have not changed since is
    opened as it is. Nothing is at ``base`` until all of it is.

    Args:
        how: source, tokenizer and form.
        base: common part of the files' names.
        workers: processes that encode; 0 takes every core.
        progress: called with documents and tokens so far, after each batch.

    Returns:
        Training corpus, and validation corpus (None where no document was held out).

    Raises:
        CorpusError: an unreadable source, or one without a document of two tokens.
    """
    base = Path(base)
    made_from = _signature(how)
    if _made_from(base) == made_from:
        return Binidx(base), _validation(base)
    tokenizer = load_tokenizer(how.tokenizer)
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    held = base.with_name(f"{base.name}-validation")
    for stale in (base, held):
        for suffix in (".json", ".idx", ".bin", ".mask.idx", ".mask.bin"):
            Path(f"{stale}{suffix}").unlink(missing_ok=True)
    documents = tokens = held_tokens = 0
    with contextlib.ExitStack() as stack:
        # Closed last to first: whoever finds the training corpus finds the rest too.
        writers = [stack.enter_context(BinidxWriter(base, dtype))]
        if how.holdout:
            writers.append(stack.enter_context(BinidxWriter(held, dtype)))
        masks: list[BinidxWriter] = []
        if how.template:
            masks = [
                stack.enter_context(BinidxWriter(f"{b}.mask", np.uint8))
                for b in (base, held)[: len(writers)]
            ]
        for batch in _encoded(how, tokenizer, workers):
            for document in batch:
                # The first document is always learnt: a tiny corpus must not be empty.
                side = int(document.held_out and documents > 0 and how.holdout > 0)
                writers[side].append(document.ids)
                if document.mask is not None:
                    masks[side].append(document.mask)
                documents += 1
                tokens += len(document.ids)
                held_tokens += side * len(document.ids)
            if progress:
                progress(documents, tokens)
        if tokens - held_tokens < 2:
            raise CorpusError(how.source, f"{documents} documents, {tokens} tokens: too few")
    record = {**made_from, "documents": documents, "tokens": tokens}
    partial = Path(f"{base}.json.part")
    partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    partial.replace(f"{base}.json")
    return Binidx(base), _validation(base)


def _validation(base: Path) -> Binidx | None:
    held = base.with_name(f"{base.name}-validation")
    if not Path(f"{held}.idx").is_file():
        return None
    corpus = Binidx(held)
    return corpus if len(corpus.tokens) >= 2 else None


def _signature(how: Ingest) -> dict[str, Any]:
    def stamp(name: str) -> list[Any]:
        path = Path(name)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files if p.is_file()]

    return {"made_from": asdict(how), "files": [stamp(how.source), stamp(how.tokenizer)]}


def _made_from(base: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(Path(f"{base}.json").read_text(encoding="utf-8"))
        return {key: record[key] for key in ("made_from", "files")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _encoded(how: Ingest, tokenizer: Tokenizer, workers: int) -> Iterator[list[_Document]]:
    """Batches of encoded documents in the order of the source."""
    numbered = enumerate(read_records(how.source, how.split), 1)
    batches = iter(lambda: list(islice(numbered, _BATCH)), [])
    workers = workers or os.cpu_count() or 1
    if workers == 1:
        for batch in batches:
            yield _encode(batch, how, tokenizer)
        return
    # Not forked: a copy of a process whose library threads hold locks may never wake up.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin_worker, (how,)) as pool:
        waiting: deque[Future[list[_Document]]] = deque()
        for batch in batches:
            waiting.append(pool.submit(_encode_in_worker, batch))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker: tuple[Ingest, Tokenizer]


def _begin_worker(how: Ingest) -> None:
    global _worker
    _worker = how, load_tokenizer(how.tokenizer)


def _encode_in_worker(batch: list[tuple[int, Record]]) -> list[_Document]:
    return _encode(batch, *_worker)


def _encode(
    batch: Iterable[tuple[int, Record]], how: Ingest, tokenizer: Tokenizer
) -> list[_Document]:
    end = tokenizer.end_of_text or 0
    field = "text" if Path(how.source).suffix == ".txt" else how.field
    forms = templates(how.template) if how.template else []
    found = []
    for number, record in batch:
        mask = None
        if forms:
            try:
                segments = _segments(forms, record)
            except (ConfigError, AttributeError, TypeError) as error:
                raise CorpusError(how.source, f"record {number}: {error}") from None
            text = "".join(s.text for s in segments)
            tokens, counts = encode_example(segments, tokenizer, end)
            mask = np.array(counts, np.uint8)
        else:
            text = text_of(how.source, number, record, field)
            tokens = [*tokenizer.encode(text), end]
        if text:
            digest = hashlib.blake2b(f"{how.seed}\n{text}".encode(), digest_size=8).digest()
            share = int.from_bytes(digest, "little") / 2**64
            found.append(_Document(np.array(tokens, np.int32), mask, share < how.holdout))
    return found


def _segments(forms: list[Template], record: Record) -> list[Segment]:
    """A record in the form that its own text chooses, so that copies look alike."""
    segments = forms[0].segments(record)
    if len(forms) == 1:
        return segments
    text = "".join(s.text for s in segments)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return forms[int.from_bytes(digest, "little") % len(forms)].segments(record)
