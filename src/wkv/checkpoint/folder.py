"""What lies beside the weights in a folder that is written here."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from .. import tokenizer as tokenizers
from ..errors import ConfigError, TokenizerError
from . import huggingface
from .checkpoint import Checkpoint

_REPLACED = re.compile(
    r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?"
    r"|(generation_)?config\.json"
)


def replaced(name: str) -> bool:
    """Whether a file of this name is a model's, which overwriting the folder takes away."""
    return _REPLACED.fullmatch(name) is not None


def write_tokenizer(checkpoint: Checkpoint, folder: Path, wanted: str | Path | None) -> list[str]:
    """The tokenizer's files; what is to be said where there is none."""
    vocabulary = checkpoint.config.vocab_size
    source = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if wanted is None and checkpoint.format == "hf":
        copied = [n for n in huggingface.TOKENIZER_FILES if (source / n).is_file()]
        for name in (*copied, *(p.name for p in source.glob("*vocab*.txt"))):
            shutil.copyfile(source / name, folder / name)
        if copied:
            return []
    try:
        if wanted is not None:
            found = tokenizers.load_tokenizer(str(wanted))
            if found.vocab_size > vocabulary:
                raise ConfigError(
                    f"tokenizer {found.name} of {wanted} has {found.vocab_size} ids, the model "
                    f"{vocabulary}: they do not belong together"
                )
        else:
            found = tokenizers.find_tokenizer(source, vocabulary)
    except TokenizerError:
        if wanted is not None:
            raise
        return [
            f"written without a tokenizer: none in {source} for a vocabulary of {vocabulary}; "
            "name it with --tokenizer_file (tokenizer=)"
        ]
    found.save(folder)
    if isinstance(found, tokenizers.ByteTokenizer):
        return []
    world = isinstance(found, tokenizers.WorldTokenizer)
    config = {
        "tokenizer_class": "RwkvWorldTokenizer" if world else "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    end = next((t for t, i in found.special_tokens.items() if i == found.end_of_text), None)
    if end is not None:
        config |= {"bos_token": end, "eos_token": end, "unk_token": end}
    huggingface.write_json(folder / "tokenizer_config.json", config)
    return []
