"""The World tokenizer as a transformers class, so that ``AutoTokenizer`` reads and writes it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import AddedToken, PreTrainedTokenizer

from .bpe import byte_of_character
from .byte import END_OF_TEXT
from .world import FILE_NAME, WorldTokenizer


class RwkvWorldTokenizer(PreTrainedTokenizer):
    """World tokenizer for transformers: ids 1 to 65529, 0 ends a text, pads and begins.

    Pads on the left, as generation needs. The token strings are those of byte-level BPE (one
    printable character a byte, a space is ``Ġ``). As with every transformers tokenizer the name of
    a special token in a text is read as that token unless ``split_special_tokens=True``.

    ``vocab_file`` is a vocabulary of the published form; None is the published one.
    """

    vocab_files_names = {"vocab_file": FILE_NAME}  # noqa: RUF012 (transformers reads a plain dict)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None = None,
        bos_token: str | AddedToken | None = END_OF_TEXT,
        eos_token: str | AddedToken | None = END_OF_TEXT,
        pad_token: str | AddedToken | None = END_OF_TEXT,
        **kwargs: Any,
    ) -> None:
        self._world = WorldTokenizer(vocab_file)
        character_of = {b: c for c, b in byte_of_character().items()}
        self._strings = [
            "".join(character_of[b] for b in entry or b"") for entry in self._world.table
        ]
        self._ids = {s: i for i, s in enumerate(self._strings) if s}
        self._added_tokens_decoder = {0: AddedToken(END_OF_TEXT, special=True, normalized=False)}
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(bos_token=bos_token, eos_token=eos_token, pad_token=pad_token, **kwargs)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; the models' own vocabulary is padded to 65536."""
        return self._world.vocab_size

    def get_vocab(self) -> dict[str, int]:
        """All tokens as strings, with their ids."""
        return {**self._ids, **self._added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._strings[i] for i in self._world.encode(text)]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token, self.unk_token_id)

    def _convert_id_to_token(self, index: int) -> str:
        return self._strings[index] if 0 <= index < len(self._strings) else ""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Token strings to text; bytes that are not UTF-8 become U+FFFD."""
        byte_of = byte_of_character()
        parts = [
            t.encode() if t in self._added_tokens_encoder else bytes(byte_of[c] for c in t)
            for t in tokens
        ]
        return b"".join(parts).decode("utf-8", errors="replace")

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary file; its path."""
        name = f"{filename_prefix}-{FILE_NAME}" if filename_prefix else FILE_NAME
        target = Path(save_directory) / name
        if not (target.exists() and target.samefile(self._world.path)):
            shutil.copyfile(self._world.path, target)
        return (str(target),)


class RWKVWorldTokenizer(RwkvWorldTokenizer):
    """The same under the name that the hub's World repositories carry.

    Their configuration names special tokens (``[EOS]``, ``[PAD]`` …) that no model was trained
    with; 0 takes the place of all of them.
    """

    def __init__(self, vocab_file: str | None = None, **kwargs: Any) -> None:
        for name in ("bos", "eos", "pad", "unk", "mask", "sep", "cls", "user", "bot"):
            kwargs.pop(f"{name}_token", None)
        super().__init__(vocab_file, **kwargs)
