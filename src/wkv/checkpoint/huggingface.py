"""Hugging Face model folders: ``config.json`` and safetensors or ``.bin`` files, maybe sharded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..errors import ArchitectureError, CheckpointError, ConfigError
from . import dtypes
from .names import to_hf
from .safetensors_file import write_safetensors
from .tensors import Planned

# Weight files in the order of preference; an index names the shards.
WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_SHARD = re.compile(r"[^/\\\0]+\.(safetensors|bin)")
_MAX_JSON = 64 << 20
_CONFIG_KEYS = frozenset(
    {
        "vocab_size",
        "context_length",
        "hidden_size",
        "num_hidden_layers",
        "attention_hidden_size",
        "intermediate_size",
        "layer_norm_epsilon",
        "bos_token_id",
        "eos_token_id",
        "rescale_every",
        "tie_word_embeddings",
    }
)


# --- reading ----------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a table."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise CheckpointError(path, "is too large for what it should hold")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"damaged JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(path, "damaged: not a table of values")
    return data


def read_config(path: Path) -> dict[str, Any]:
    """The keys of a ``config.json`` that describe the model; others are transformers' own."""
    data = read_json(path)
    kind = data.get("model_type")
    if kind != "rwkv":
        raise ArchitectureError(path, f"model_type is {kind!r}; this version of wkv runs 'rwkv'")
    return {k: v for k, v in data.items() if k in _CONFIG_KEYS and (v is not None or "token" in k)}


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """The weight files of a folder, and which one holds each tensor if an index says so."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(
            folder, f"a folder without weights: looked for {', '.join(WEIGHT_FILES)}"
        )
    if found.suffix != ".json":
        return [found], None
    table = read_json(found).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise CheckpointError(found, "damaged: no weight_map in the index")
    shards = []
    for name, shard in table.items():
        if not isinstance(shard, str) or not _SHARD.fullmatch(shard):
            raise CheckpointError(
                found, f"is in file {shard!r:.80}, which is not a file of this folder", tensor=name
            )
        if shard not in shards:
            shards.append(shard)
    for shard in shards:
        if not (folder / shard).is_file():
            raise CheckpointError(
                folder / shard, f"is missing, but {found.name} lists it: download it"
            )
    return [folder / shard for shard in sorted(shards)], table


# --- writing ----------------------------------------------------------------------------------


def config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The content of ``config.json``, as the hub's RWKV-4 repositories have it."""
    return {
        "architectures": ["RwkvForCausalLM"],
        "model_type": "rwkv",
        **config.to_dict(),
        "torch_dtype": dtype,
        "use_cache": True,
    }


def plan_shards(
    planned: Iterable[Planned], max_shard_size: int | str
) -> tuple[dict[str, list[Planned]], dict[str, Any] | None]:
    """The tensors of each weight file, and the index if there are several files."""
    from huggingface_hub import split_state_dict_into_shards_factory

    renamed = {to_hf(p.name): p for p in planned}
    try:
        number = re.match(r"[\d.]+", str(max_shard_size).strip())
        if not number or not float(number[0]) > 0:  # which the library takes for a size
            raise ValueError(max_shard_size)
        split = split_state_dict_into_shards_factory(
            renamed,
            get_storage_size=lambda p: p.nbytes,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConfigError(
            f"max_shard_size is {max_shard_size!r}: give a size like '5GB' or '500MB'"
        ) from error
    files = {
        file: [renamed[name] for name in tensors]
        for file, tensors in split.filename_to_tensors.items()
        if tensors
    }
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    return files, index if split.is_sharded else None


def write_folder(
    folder: Path,
    config: ModelConfig,
    planned: list[Planned],
    chunks: Callable[[Planned], Iterable[np.ndarray]],
    max_shard_size: int | str = "5GB",
) -> None:
    """Write weights, index, ``config.json`` and ``generation_config.json`` into a folder."""
    files, index = plan_shards(planned, max_shard_size)
    original = {to_hf(p.name): p for p in planned}
    for name, tensors in files.items():
        with (folder / name).open("xb") as out:
            write_safetensors(
                out,
                [Planned(to_hf(p.name), p.dtype, p.shape) for p in tensors],
                lambda p: chunks(original[p.name]),
                {"format": "pt"},
            )
    if index is not None:
        write_json(folder / "model.safetensors.index.json", index)
    kinds = [p.dtype for p in planned if len(p.shape) == 2]
    main = max(set(kinds), key=kinds.count)
    assert main in dtypes.STORAGE
    write_json(folder / "config.json", config_json(config, main))
    write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": config.eos_token_id,
        },
    )


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a table as transformers does: two spaces, sorted, a final newline."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
