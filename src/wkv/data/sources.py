"""Where documents come from: text, JSON lines, Parquet, folders of these, any ``datasets`` path."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CorpusError, UnavailableError

SUFFIXES = (".txt", ".jsonl", ".json", ".parquet")
Record = Mapping[str, Any]


def read_records(source: str | Path, split: str = "train") -> Iterator[Record]:
    """The records of a source, one at a time; each is a table of fields.

    Args:
        source: a ``.txt`` file (one record, its ``text``), ``.jsonl``/``.json`` (a record a line),
            ``.parquet`` (a record a row), a folder of such files (in the order of their names), a
            folder of ``datasets.save_to_disk``, or whatever ``datasets.load_dataset`` takes.
        split: of a ``datasets`` source.

    Raises:
        CorpusError: missing, unreadable or damaged; the message names file and line.
        UnavailableError: a library that the source needs is not installed.
    """
    path = Path(source)
    if path.is_dir():
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            yield from _saved_dataset(path, split)
            return
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not files:
            raise CorpusError(path, f"a folder without any {', '.join(SUFFIXES)} file")
        for file in files:
            yield from _file(file)
    elif path.is_file():
        yield from _file(path)
    elif path.suffix in SUFFIXES:
        raise CorpusError(path, "no such file")
    else:
        yield from _hub_dataset(str(source), split)


def text_of(path: str | Path, number: int, record: Any, field: str) -> str:
    """The text under ``field``; CorpusError where there is none. ``number`` counts from 1."""
    text = record.get(field) if isinstance(record, Mapping) else None
    if not isinstance(text, str):
        keys = sorted(record) if isinstance(record, Mapping) else type(record).__name__
        raise CorpusError(path, f"line {number} has no text under {field!r}: it has {keys}")
    return text


def _file(path: Path) -> Iterator[Record]:
    try:
        if path.suffix == ".txt":
            yield {"text": path.read_text(encoding="utf-8")}
        elif path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix in (".jsonl", ".json"):
            yield from _json_lines(path)
        else:
            raise CorpusError(
                path, f"{path.suffix or 'no'} suffix: give {', '.join(SUFFIXES)} or a folder"
            )
    except UnicodeDecodeError as error:
        raise CorpusError(path, f"not UTF-8 at byte {error.start}") from None


def _json_lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    raise CorpusError(path, f"line {number} is not JSON: {error}") from None


def _parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UnavailableError(
            f"{path}: Parquet needs pyarrow: pip install 'wkv[train]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(path, f"damaged Parquet: {error}") from None


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UnavailableError(
            "this source needs Hugging Face's datasets: pip install 'wkv[train]'"
        ) from error
    return datasets


def _saved_dataset(path: Path, split: str) -> Iterator[Record]:
    data = _datasets().load_from_disk(str(path))
    if isinstance(data, Mapping):
        if split not in data:
            raise CorpusError(path, f"has no split {split!r}: choose from {', '.join(data)}")
        data = data[split]
    yield from data


def _hub_dataset(name: str, split: str) -> Iterator[Record]:
    datasets = _datasets()
    name, _, configuration = name.partition(":")
    try:
        data = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
    except Exception as error:  # the library lets many kinds through
        raise CorpusError(
            name,
            f"neither a file nor a dataset that could be loaded (split {split!r}): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
        ) from error
    yield from data
