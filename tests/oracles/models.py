"""Random models for tests: every weight perturbed, since fresh ones are full of zeros and ones."""

from __future__ import annotations

import re

import numpy as np

from wkv.config import ModelConfig

_PARTS = (
    (r"^rwkv\.", ""),
    (r"^embeddings\.", "emb."),
    (r"\.pre_ln\.", ".ln0."),
    (r"\.attention\.", ".att."),
    (r"\.feed_forward\.", ".ffn."),
    (r"time_mix_key$", "time_mix_k"),
    (r"time_mix_value$", "time_mix_v"),
    (r"time_mix_receptance$", "time_mix_r"),
)


def original_name(name: str) -> str:
    """The original name of a Hugging Face tensor name (written apart from the package's table)."""
    for pattern, new in _PARTS:
        name = re.sub(pattern, new, name)
    return name


def random_weights(config: ModelConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor of a model by its original name, float32, of plausible size, none trivial."""
    rng = np.random.default_rng(seed)
    d, a, f, v = (
        config.hidden_size,
        config.attention_size,
        config.ffn_size,
        config.vocab_size,
    )
    out: dict[str, np.ndarray] = {}

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> None:
        out[name] = rng.normal(0, gain / np.sqrt(columns), (rows, columns))

    def norm(name: str) -> None:
        out[f"{name}.weight"] = rng.normal(1, 0.2, d)
        out[f"{name}.bias"] = rng.normal(0, 0.2, d)

    matrix("emb.weight", v, d, np.sqrt(d))
    for i in range(config.num_hidden_layers):
        b = f"blocks.{i}"
        for n in ("ln0", "ln1", "ln2") if i == 0 else ("ln1", "ln2"):
            norm(f"{b}.{n}")
        out[f"{b}.att.time_decay"] = rng.uniform(-5, 2, a)
        out[f"{b}.att.time_first"] = rng.normal(-1, 0.7, a)
        for n in ("att.time_mix_k", "att.time_mix_v", "att.time_mix_r"):
            out[f"{b}.{n}"] = rng.uniform(0, 1, (1, 1, d))
        for n in ("key", "value", "receptance"):
            matrix(f"{b}.att.{n}.weight", a, d, 1.5)
        matrix(f"{b}.att.output.weight", d, a)
        for n in ("ffn.time_mix_k", "ffn.time_mix_r"):
            out[f"{b}.{n}"] = rng.uniform(0, 1, (1, 1, d))
        matrix(f"{b}.ffn.key.weight", f, d, 1.5)
        matrix(f"{b}.ffn.receptance.weight", d, d)
        matrix(f"{b}.ffn.value.weight", d, f)
    norm("ln_out")
    matrix("head.weight", v, d, 2.0)
    return {name: x.astype(np.float32) for name, x in out.items()}


def torch_model(config: ModelConfig, weights: dict[str, np.ndarray]):
    """The package's PyTorch model with the given weights."""
    import torch

    from wkv.model.rwkv4 import Rwkv4

    model = Rwkv4(config)
    state = {n: torch.from_numpy(weights[original_name(n)].copy()) for n in model.state_dict()}
    model.load_state_dict(state)
    return model.eval()


def transformers_model(config: ModelConfig, weights: dict[str, np.ndarray]):
    """transformers' own class with the given weights: right for a batch of 1, without rescaling."""
    import torch
    from transformers.models.rwkv.configuration_rwkv import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvForCausalLM

    model = RwkvForCausalLM(
        RwkvConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            attention_hidden_size=config.attention_size,
            intermediate_size=config.ffn_size,
            layer_norm_epsilon=config.layer_norm_epsilon,
            rescale_every=0,
        )
    )
    state = {n: torch.from_numpy(weights[original_name(n)].copy()) for n in model.state_dict()}
    model.load_state_dict(state)
    return model.eval()
