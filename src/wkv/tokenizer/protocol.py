"""What every tokenizer of this package can do, and decoding that streams."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from ..errors import TokenizerError


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back, byte for byte.

    Every id stands for a fixed string of bytes, whatever its neighbours; the text of a sequence
    is the concatenation, read as UTF-8. Special tokens stand for no bytes at all.
    """

    @property
    def name(self) -> str:
        """Which tokenizer this is, for messages: ``"World"``, ``"BPE (50277)"``, ``"bytes"``."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Special tokens by name. Their names in user text are text unless asked otherwise."""

    @property
    def end_of_text(self) -> int | None:
        """The id that ends a document, 0 in every published RWKV model; None if there is none."""

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Text to ids. ``allow_special`` reads the names of special tokens as these tokens."""

    def encode_prompt(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Text that a model is to continue to ids: as training text would have begun.

        A tokenizer that looks ahead gives line breaks at the end of the text other ids than the
        same line breaks before a word; the model expects those it saw in training.
        """

    def encode_bytes(self, data: bytes) -> list[int]:
        """Any bytes to ids with ``decode_bytes(encode_bytes(data)) == data``."""

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD."""

    def decode_bytes(self, ids: Iterable[int], *, keep_special: bool = False) -> bytes:
        """Ids to bytes. ``keep_special`` writes special tokens by name instead of nothing.

        An id that the model has and the vocabulary has not (padding rows) stands for no bytes.
        """

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the file that :func:`wkv.tokenizer.find_tokenizer` finds in a folder."""


class ByteTable:
    """Decoding shared by all tokenizers: one byte string per id, and the special tokens."""

    def __init__(
        self, name: str, table: Sequence[bytes | None], special: Mapping[str, int]
    ) -> None:
        self.name = name
        self.special_tokens: Mapping[str, int] = dict(special)
        self.table = table  # None where an id is in no vocabulary
        self._special_names = {i: s.encode() for s, i in special.items()}
        self._split = re.compile("(" + "|".join(map(re.escape, special)) + ")") if special else None

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self.table)

    @property
    def end_of_text(self) -> int | None:
        """Token 0 where it is special, as in every published RWKV model."""
        return 0 if 0 in self._special_names else None

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Text to ids. ``allow_special`` reads the names of special tokens as these tokens."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"text holds half a surrogate pair at position {error.start} "
                f"({text[error.start]!r}), which is no character: repair or remove it"
            ) from None
        if not allow_special or self._split is None:
            return self._encode(text)
        ids: list[int] = []
        for i, part in enumerate(self._split.split(text)):
            if i % 2:
                ids.append(self.special_tokens[part])
            elif part:
                ids += self._encode(part)
        return ids

    def encode_prompt(self, text: str, *, allow_special: bool = False) -> list[int]:
        """As :meth:`encode`: without look-ahead a prompt is like any text."""
        return self.encode(text, allow_special=allow_special)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Any bytes to ids with ``decode_bytes(encode_bytes(data)) == data``."""
        try:
            ids = self._encode(data.decode())
        except UnicodeDecodeError:
            ids = []
        if self.decode_bytes(ids) != data:  # not UTF-8, or changed by the tokenizer's normaliser
            ids = [self._byte(b) for b in data]
        return ids

    def decode(self, ids: Iterable[int], *, keep_special: bool = False) -> str:
        """Ids to text; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids, keep_special=keep_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int], *, keep_special: bool = False) -> bytes:
        """Ids to bytes. ``keep_special`` writes special tokens by name instead of nothing."""
        parts: list[bytes] = []
        for i in ids:
            i = int(i)
            if i < 0:
                raise TokenizerError(f"token id {i} is negative: ids run from 0")
            if i in self._special_names:
                if keep_special:
                    parts.append(self._special_names[i])
            elif i < len(self.table):
                parts.append(self.table[i] or b"")
        return b"".join(parts)

    def _byte(self, byte: int) -> int:
        if not hasattr(self, "_bytes"):
            self._bytes = {t[0]: i for i, t in enumerate(self.table) if t and len(t) == 1}
        try:
            return self._bytes[byte]
        except KeyError:
            raise TokenizerError(
                f"tokenizer {self.name} has no token for byte {byte:#04x}"
            ) from None

    def _encode(self, text: str) -> list[int]:
        raise NotImplementedError


class StreamDecoder:
    """Turns ids into text as they come, and never half a character.

    Bytes are held back until they complete a character; they become U+FFFD only once no
    continuation could make them valid. All pieces joined are ``tokenizer.decode`` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The text that is certain after these ids; may be empty."""
        return self._decoder.decode(self._tokenizer.decode_bytes(ids))

    def flush(self) -> str:
        """The rest at the end of the stream: U+FFFD for an unfinished character, or nothing."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
