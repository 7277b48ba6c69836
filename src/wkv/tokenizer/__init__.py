"""Text to token ids and back: byte-level BPE, the World vocabulary, bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..config import PILE_VOCAB_SIZE, WORLD_VOCAB_SIZE
from ..errors import TokenizerError
from . import bpe, world
from .bpe import BpeTokenizer
from .byte import ByteTokenizer
from .protocol import StreamDecoder, Tokenizer
from .world import WorldTokenizer

__all__ = [
    "BpeTokenizer",
    "ByteTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "WorldTokenizer",
    "find_tokenizer",
    "load_tokenizer",
]

# Where the Pile models' tokenizer is published, as it is named in a Hugging Face cache.
NEOX_REPOSITORIES = ("EleutherAI/gpt-neox-20b", "RWKV/rwkv-4-169m-pile")
# The second name is the original project's for GPT-NeoX's file.
BPE_FILES = (bpe.FILE_NAME, "20B_tokenizer.json")
CONFIG_FILE = "tokenizer_config.json"


def load_tokenizer(source: str | os.PathLike[str]) -> Tokenizer:
    """A tokenizer by name or path.

    ``"world"`` and ``"bytes"`` are names; a path is a ``tokenizer.json``, a World vocabulary
    (``.txt``) or a folder with one of these.

    Raises:
        TokenizerError: nothing there, or damaged.
    """
    if source == "world":
        return WorldTokenizer()
    if source == "bytes":
        return ByteTokenizer()
    path = Path(source)
    if path.is_dir():
        found = _in_folder(path)
        if found is None:
            raise TokenizerError(
                f"{path}: no tokenizer in this folder; looked for {', '.join(_names())}"
            )
        return found
    if not path.is_file():
        raise TokenizerError(
            f"{path}: no such tokenizer: give a tokenizer.json, a World vocabulary (.txt), a "
            "folder with one of them, 'world' or 'bytes'"
        )
    return WorldTokenizer(path) if path.suffix == ".txt" else BpeTokenizer(path)


def find_tokenizer(folder: str | os.PathLike[str] | None, vocab_size: int) -> Tokenizer:
    """The tokenizer of a checkpoint: a file in its folder, else what its vocabulary size tells.

    65536 is the World vocabulary, 256 and 257 are bytes. 50277 is GPT-NeoX's, which is not
    shipped: it must lie beside the checkpoint or in the Hugging Face cache.

    Raises:
        TokenizerError: none found (the message says where it looked), or a damaged one.
    """
    looked: list[str] = []
    if folder is not None:
        found = _in_folder(Path(folder))
        if found is not None:
            if found.vocab_size > vocab_size:
                raise TokenizerError(
                    f"{folder}: its tokenizer {found.name} has {found.vocab_size} ids, the model's "
                    f"vocabulary {vocab_size}: they do not belong together"
                )
            return found
        looked.append(f"{', '.join(_names())} in {Path(folder).absolute()}")
    if vocab_size == WORLD_VOCAB_SIZE:
        return WorldTokenizer()
    if vocab_size in (256, 257):
        return ByteTokenizer(end_of_text=vocab_size == 257)
    if vocab_size == PILE_VOCAB_SIZE:
        cached = _cached_neox()
        if cached is not None:
            return BpeTokenizer(cached)
        looked.append(f"the Hugging Face cache of {' and '.join(NEOX_REPOSITORIES)}")
        hint = "GPT-NeoX's tokenizer.json (20B_tokenizer.json) beside the checkpoint"
    else:
        hint = "the tokenizer.json that the model was trained with beside the checkpoint"
    raise TokenizerError(
        f"no tokenizer for a vocabulary of {vocab_size}; looked for "
        f"{'; '.join(looked) or 'nothing: no folder is known'}. Put {hint}, or name it: "
        "wkv.load(..., tokenizer=PATH). Without one the model runs on token ids"
    )


def _names() -> Sequence[str]:
    return (*BPE_FILES, world.FILE_NAME, CONFIG_FILE)


def _in_folder(folder: Path) -> Tokenizer | None:
    for name in BPE_FILES:
        if (folder / name).is_file():
            return BpeTokenizer(folder / name)
    if (folder / world.FILE_NAME).is_file():
        return WorldTokenizer(folder / world.FILE_NAME)
    if (folder / CONFIG_FILE).is_file():
        try:
            values = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            name = str(values.get("tokenizer_class"))
        except (OSError, ValueError, AttributeError) as error:
            raise TokenizerError(f"{folder / CONFIG_FILE}: damaged: {error}") from error
        if name.lower() == "rwkvworldtokenizer":
            return WorldTokenizer()
    return None


def _cached_neox() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repository in NEOX_REPOSITORIES:
        found = try_to_load_from_cache(repository, bpe.FILE_NAME)
        if isinstance(found, str):
            return Path(found)
    return None
