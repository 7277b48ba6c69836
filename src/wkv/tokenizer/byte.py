"""Text as its UTF-8 bytes."""

from __future__ import annotations

import os

from .protocol import ByteTable

END_OF_TEXT = "<|endoftext|>"


class ByteTokenizer(ByteTable):
    """One id a byte.

    With ``end_of_text`` (257 ids) id 0 ends a document and byte b is id b + 1: the first 257 ids of
    the World vocabulary. Without it (256 ids) the id is the byte.
    """

    def __init__(self, *, end_of_text: bool = True) -> None:
        self._offset = int(end_of_text)
        table = [b""] * self._offset + [bytes([b]) for b in range(256)]
        super().__init__("bytes", table, {END_OF_TEXT: 0} if end_of_text else {})

    def _encode(self, text: str) -> list[int]:
        return [b + self._offset for b in text.encode()]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Nothing to write: a vocabulary of 256 or 257 says it all."""
