"""The one table of RWKV-4's tensors: original name, Hugging Face name, shape.

Canonical names inside this project are those of the original ``.pth`` files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..config import ModelConfig

# Shapes in letters: V vocabulary, D hidden, A attention, F feed-forward, 1 a literal one.
_OUTSIDE = {
    "emb.weight": ("rwkv.embeddings.weight", "VD"),
    "ln_out.weight": ("rwkv.ln_out.weight", "D"),
    "ln_out.bias": ("rwkv.ln_out.bias", "D"),
    "head.weight": ("head.weight", "VD"),
}
_BLOCK = {
    "ln1.weight": ("ln1.weight", "D"),
    "ln1.bias": ("ln1.bias", "D"),
    "ln2.weight": ("ln2.weight", "D"),
    "ln2.bias": ("ln2.bias", "D"),
    "ln0.weight": ("pre_ln.weight", "D"),
    "ln0.bias": ("pre_ln.bias", "D"),
    "att.time_decay": ("attention.time_decay", "A"),
    "att.time_first": ("attention.time_first", "A"),
    "att.time_mix_k": ("attention.time_mix_key", "11D"),
    "att.time_mix_v": ("attention.time_mix_value", "11D"),
    "att.time_mix_r": ("attention.time_mix_receptance", "11D"),
    "att.key.weight": ("attention.key.weight", "AD"),
    "att.value.weight": ("attention.value.weight", "AD"),
    "att.receptance.weight": ("attention.receptance.weight", "AD"),
    "att.output.weight": ("attention.output.weight", "DA"),
    "ffn.time_mix_k": ("feed_forward.time_mix_key", "11D"),
    "ffn.time_mix_r": ("feed_forward.time_mix_receptance", "11D"),
    "ffn.key.weight": ("feed_forward.key.weight", "FD"),
    "ffn.receptance.weight": ("feed_forward.receptance.weight", "DD"),
    "ffn.value.weight": ("feed_forward.value.weight", "DF"),
}
_OUTSIDE_FROM_HF = {hf: name for name, (hf, _) in _OUTSIDE.items()}
_BLOCK_FROM_HF = {hf: name for name, (hf, _) in _BLOCK.items()}
_IN_BLOCK = re.compile(r"blocks\.(0|[1-9]\d{0,5})\.(.+)")
# Wrappers that trainers leave in front of every name.
_WRAPPERS = ("_forward_module.", "module.", "_orig_mod.", "model.")


def split_block(name: str) -> tuple[int, str] | None:
    """``"blocks.3.att.key.weight"`` -> ``(3, "att.key.weight")``; None outside the blocks."""
    match = _IN_BLOCK.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def to_hf(name: str) -> str:
    """The Hugging Face name of an original name; KeyError if RWKV-4 has no such tensor."""
    inside = split_block(name)
    if inside is None:
        return _OUTSIDE[name][0]
    return f"rwkv.blocks.{inside[0]}.{_BLOCK[inside[1]][0]}"


def from_hf(name: str) -> str | None:
    """The original name of a Hugging Face name; None if RWKV-4 has no such tensor.

    The base model saved alone has the same names without ``rwkv.``; they are taken too.
    """
    full = name if name.startswith(("rwkv.", "head.")) else f"rwkv.{name}"
    if full in _OUTSIDE_FROM_HF:
        return _OUTSIDE_FROM_HF[full]
    inside = split_block(full.removeprefix("rwkv."))
    if inside is None or inside[1] not in _BLOCK_FROM_HF:
        return None
    return f"blocks.{inside[0]}.{_BLOCK_FROM_HF[inside[1]]}"


def unwrap(names: Iterable[str]) -> str:
    """The prefix that wrappers (DeepSpeed, Lightning, torch.compile) put before every name."""
    names = list(names)
    prefix = ""
    while names:
        found = next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), None)
        if found is None:
            break
        prefix += found
    return prefix


def in_hf_style(names: Iterable[str]) -> bool:
    """Whether names are Hugging Face's rather than the original ones."""
    return any(n.startswith("rwkv.") or n == "embeddings.weight" for n in names)


def expected_tensors(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model by its original name, in the order of the original files."""
    sizes = {
        "V": config.vocab_size,
        "D": config.hidden_size,
        "A": config.attention_size,
        "F": config.ffn_size,
        "1": 1,
    }

    def shape(letters: str) -> tuple[int, ...]:
        return tuple(sizes[letter] for letter in letters)

    tensors = {"emb.weight": shape(_OUTSIDE["emb.weight"][1])}
    for layer in range(config.num_hidden_layers):
        for name, (_, letters) in _BLOCK.items():
            if layer == 0 or not name.startswith("ln0."):
                tensors[f"blocks.{layer}.{name}"] = shape(letters)
    for name, (_, letters) in _OUTSIDE.items():
        tensors.setdefault(name, shape(letters))
    return tensors
