"""Which model a set of tensors is: RWKV-4's numbers, or an error that names what it is instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path

from ..config import ModelConfig
from ..errors import ArchitectureError, CheckpointError, ConfigError
from . import names
from .tensors import StoredTensor, is_weight

# Tensors that one version has and RWKV-4 has not, newest version first.
_SIGNS = (
    ("RWKV-7", re.compile(r"\.(att|attention)\.(w0|w1|r_k|x_r|k_k|k_a|v0|a0)$")),
    ("RWKV-6", re.compile(r"\.(time_maa_\w+|time_decay_w[12]|time_mix_w[12])$")),
    (
        "RWKV-5",
        re.compile(r"\.(time_faaaa|time_faaa|time_mix_g|time_mix_gate|gate\.weight|ln_x\.\w+)$"),
    ),
)


def refuse_others(path: Path, found: Iterable[str]) -> None:
    """Raise :class:`ArchitectureError` if the names are another architecture's."""
    found = list(found)
    for version, sign in _SIGNS:
        witness = next((name for name in found if sign.search(name)), None)
        if witness is not None:
            raise ArchitectureError(
                path,
                f"this is {version} (it has {witness!r}); this version of wkv runs RWKV-4",
            )
    if not any(re.search(r"blocks\.\d+\.(att|attention)\.time_", name) for name in found):
        raise ArchitectureError(
            path, f"no RWKV model: its tensors are {sorted(found)[:3]} …; wkv runs RWKV-4"
        )


def detect_config(
    path: Path, tensors: Mapping[str, StoredTensor], given: Mapping[str, object]
) -> ModelConfig:
    """The model's numbers from its tensors; ``given`` adds those that tensors do not show.

    A number of ``given`` (from ``config.json`` or a file's header) that contradicts the tensors is
    an error.
    """
    refuse_others(path, tensors)

    def shape(name: str) -> tuple[int, int]:
        if name not in tensors:
            raise CheckpointError(path, "is missing: the file is not whole", tensor=name)
        found = tensors[name].shape
        if len(found) != 2:
            raise CheckpointError(
                path, f"has shape {list(found)}, expected two dimensions", tensor=name
            )
        return found[0], found[1]

    blocks = {inside[0] for inside in map(names.split_block, tensors) if inside}
    vocab, hidden = shape("emb.weight")
    shown = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_hidden_layers": len(blocks),
        "attention_hidden_size": shape("blocks.0.att.key.weight")[0],
        "intermediate_size": shape("blocks.0.ffn.key.weight")[0],
    }
    for key, value in shown.items():
        said = given.get(key)
        if said is not None and said != value:
            raise CheckpointError(
                path, f"its {key} is said to be {said!r}, but its tensors show {value}"
            )
    try:
        return ModelConfig.from_dict({**given, **shown})
    except ConfigError as error:
        raise CheckpointError(path, str(error)) from error


def check_tensors(
    path: Path, tensors: Mapping[str, StoredTensor], config: ModelConfig
) -> dict[str, tuple[int, ...]]:
    """The expected shapes, after checking that just these tensors are there, as weights."""
    expected = names.expected_tensors(config)
    for name, shape in expected.items():
        if name not in tensors:
            if name == "head.weight" and config.tie_word_embeddings:
                continue
            raise CheckpointError(path, "is missing: the file is not whole", tensor=name)
        tensor = tensors[name]
        if not is_weight(tensor.dtype):
            raise CheckpointError(path, f"is of {tensor.dtype}, not floating point", tensor=name)
        # Some files keep time_mix as [1, 1, D], others as [D].
        squeezed = ".time_" in name and prod(tensor.shape) == prod(shape) == max(
            tensor.shape, default=1
        )
        if tensor.shape != shape and not squeezed:
            raise CheckpointError(
                path, f"has shape {list(tensor.shape)}, expected {list(shape)}", tensor=name
            )
    for name in tensors:
        if name not in expected:
            raise CheckpointError(path, "is not a tensor of RWKV-4", tensor=name)
    return expected
