"""What a recipe asks for: the model, its tokenizer, the corpora and their blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import load_state_dict, open_checkpoint
from ..config import ModelConfig
from ..data import Binidx, Blocks, Ingest, PackedDocuments, ingest
from ..errors import ConfigError, CorpusError, TokenizerError
from ..hf import RwkvConfig, RwkvForCausalLM
from ..hub import download, is_repository_name
from ..tokenizer import Tokenizer, find_tokenizer, load_tokenizer
from .recipe import Recipe
from .tuning import StateTuned, with_lora

_CHECKED = 1 << 26  # tokens of a ready corpus whose ids are held against the vocabulary


def start_path(recipe: Recipe) -> Path | None:
    """Where the starting checkpoint is; one on the Hugging Face Hub is fetched."""
    if recipe.start is None:
        return None
    path = Path(recipe.start)
    return (
        download(recipe.start) if not path.exists() and is_repository_name(recipe.start) else path
    )


def architecture(recipe: Recipe) -> ModelConfig:
    """The numbers of the recipe's model, from the recipe or from its starting checkpoint."""
    path = start_path(recipe)
    if path is None:
        assert recipe.model is not None
        return recipe.model
    with open_checkpoint(path) as checkpoint:
        found = checkpoint.config
    if recipe.model is not None:
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "attention_size",
            "ffn_size",
        ):
            if getattr(recipe.model, name) != getattr(found, name):
                raise ConfigError(
                    f"model.{name} is {getattr(recipe.model, name)}, but {recipe.start} has "
                    f"{getattr(found, name)}: leave model out to take the checkpoint's"
                )
    return found


def build_model(recipe: Recipe) -> Any:
    """The model to train, in float32 on the CPU, with what it learns marked as such."""
    torch.manual_seed(recipe.run.seed)
    config, path = architecture(recipe), start_path(recipe)
    longest = max(config.context_length, recipe.data.context)
    hf_config = RwkvConfig.of(replace(config, context_length=longest), use_cache=True)
    if path is None:
        model = RwkvForCausalLM(hf_config)
    else:
        with torch.device("meta"):  # no memory, and no random numbers, for weights that follow
            model = RwkvForCausalLM(hf_config)
        model.load_state_dict(load_state_dict(path, "float32"), assign=True)
        model.tie_weights()
        model.name_or_path = str(recipe.start)
    model.rwkv.gradient_checkpointing = recipe.run.gradient_checkpointing
    if recipe.tune.method == "lora":
        return with_lora(model, recipe.tune)
    if recipe.tune.method == "state":
        return StateTuned(model)
    return model


def build_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The named tokenizer, else the starting checkpoint's; None where neither is known."""
    if recipe.data.tokenizer is not None:
        return load_tokenizer(recipe.data.tokenizer)
    path = start_path(recipe)
    if path is None:
        return None
    try:
        folder = path if path.is_dir() else path.parent
        return find_tokenizer(folder, architecture(recipe).vocab_size)
    except TokenizerError:
        return None


def build_corpora(
    recipe: Recipe, progress: Callable[[int, int], None] | None = None
) -> tuple[Binidx, Binidx | None]:
    """Training and validation corpus, tokenised if they are not yet."""
    data, vocabulary = recipe.data, architecture(recipe).vocab_size
    train, held = _corpus(recipe, data.train, "train", data.holdout, progress)
    if data.validation is not None:
        held, _ = _corpus(recipe, data.validation, "validation", 0.0, progress)
    for corpus in (train, held):
        if corpus is not None and len(corpus.tokens):
            largest = int(corpus.tokens[:_CHECKED].max())
            if largest >= vocabulary:
                raise CorpusError(
                    corpus.path,
                    f"holds token {largest}, but the model's vocabulary ends at {vocabulary - 1}: "
                    "was it made with another tokenizer?",
                )
    return train, held


def _corpus(
    recipe: Recipe,
    source: str,
    name: str,
    holdout: float,
    progress: Callable[[int, int], None] | None,
) -> tuple[Binidx, Binidx | None]:
    data = recipe.data
    base = Path(source).with_suffix("") if source.endswith((".bin", ".idx")) else Path(source)
    if Path(f"{base}.idx").is_file():
        if holdout:
            raise ConfigError(
                f"data.holdout: {source} is tokenised already; name a validation corpus instead"
            )
        return Binidx(base), None
    tokenizer = data.tokenizer
    if tokenizer is None:
        path = start_path(recipe)
        if path is None:
            raise ConfigError(
                f"data.train: {source} is no tokenised corpus (no {base}.idx), and text needs "
                "data.tokenizer: name one"
            )
        tokenizer = str(path if path.is_dir() else path.parent)
        if architecture(recipe).vocab_size == 65536:
            tokenizer = "world"
    folder = Path(data.cache) if data.cache else Path(recipe.run.output) / "corpus"
    how = Ingest(source, tokenizer, data.field, data.template, data.split, holdout, data.seed)
    return ingest(how, folder / name, workers=data.workers, progress=progress)


def build_blocks(
    recipe: Recipe, corpus: Binidx, length: int | None, seed: int | None
) -> Blocks | PackedDocuments:
    """A corpus as the recipe's kind of blocks; see :class:`~wkv.data.Blocks`."""
    data = recipe.data
    if data.boundaries == "pack":
        return PackedDocuments(corpus, data.context, length, seed)
    return Blocks(corpus, data.context, length, seed, resets=data.boundaries == "reset")


def token_bytes(tokenizer: Tokenizer | None, vocab_size: int) -> np.ndarray | None:
    """Length in bytes of each token [V]; None without a tokenizer."""
    if tokenizer is None:
        return None
    return np.array([len(tokenizer.decode_bytes([i])) for i in range(vocab_size)], np.float32)
