"""Byte-level BPE (GPT-NeoX 20B and its kin) through Hugging Face's ``tokenizers``."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from ..errors import TokenizerError
from .protocol import ByteTable

FILE_NAME = "tokenizer.json"


class BpeTokenizer(ByteTable):
    """A byte-level BPE from a ``tokenizer.json``.

    Tokens that the file's post-processor would add around a text are not added: RWKV models are
    trained without them.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        from tokenizers import Tokenizer

        self.path = Path(path)
        if self.path.is_dir():
            self.path /= FILE_NAME
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{self.path}: cannot read the tokenizer: {error}") from error
        try:
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{self.path}: damaged tokenizer: {error}") from error
        if not _is_byte_level(self._tokenizer):
            raise TokenizerError(
                f"{self.path}: neither its pre-tokenizer nor its decoder is ByteLevel: only "
                "byte-level tokenizers keep every text, so only these are supported"
            )
        # Names of special tokens in a text are text; encode(allow_special=True) splits them off.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        table, special = _tables(self._tokenizer)
        super().__init__(f"BPE ({len(table)})", table, special)
        self._newline = self._lone_newline()

    @property
    def end_of_text(self) -> int | None:
        """Token 0 where it is special, else the token named ``<|endoftext|>``."""
        found = super().end_of_text
        return self.special_tokens.get("<|endoftext|>") if found is None else found

    def encode_prompt(self, text: str, *, allow_special: bool = False) -> list[int]:
        r"""Text that a model is to continue to ids.

        GPT-2's rule keeps the last whitespace before a word apart: in ``"a\n\nb"`` the line breaks
        are two tokens, but at the end of ``"a\n\n"`` one, which training text shows only before
        further blank lines. So the last line break is encoded by itself: in the Pile vocabulary
        ``"\n\n"`` at the end is [187, 187], not [535], as the original author advises.
        """
        if self._newline is None or not text.endswith("\n\n"):
            return self.encode(text, allow_special=allow_special)
        return [*self.encode(text[:-1], allow_special=allow_special), self._newline]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenizer.json``, byte for byte the file that was read."""
        target = Path(folder) / FILE_NAME
        if not (target.exists() and target.samefile(self.path)):
            target.write_bytes(self.path.read_bytes())

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _lone_newline(self) -> int | None:
        newline = self._encode("\n")
        if len(newline) == 1 and self._encode("\n\nx")[:2] == newline * 2:
            return newline[0]
        return None


def _is_byte_level(tokenizer: Any) -> bool:
    import json

    def kinds(node: Any) -> set[str]:
        if not isinstance(node, dict):
            return set()
        children = [*(node.get("pretokenizers") or ()), *(node.get("decoders") or ())]
        return {node.get("type", "")}.union(*(kinds(c) for c in children))

    # Each part describes itself; the whole file, megabytes of vocabulary, is not parsed again.
    parts = (p.__getstate__() for p in (tokenizer.pre_tokenizer, tokenizer.decoder) if p)
    return any("ByteLevel" in kinds(json.loads(part)) for part in parts)


@functools.lru_cache(maxsize=1)
def byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet for bytes: printable ones stand for themselves, others for U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


def _tables(tokenizer: Any) -> tuple[list[bytes | None], dict[str, int]]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    added = tokenizer.get_added_tokens_decoder()
    byte_of = byte_of_character()
    table: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for token, i in vocabulary.items():
        if i in added:
            table[i] = token.encode()
        else:
            try:
                table[i] = bytes(byte_of[c] for c in token)
            except KeyError:
                table[i] = token.encode()  # an entry outside the byte alphabet stands for itself
    special = {token.content: i for i, token in added.items() if token.special}
    return table, special
