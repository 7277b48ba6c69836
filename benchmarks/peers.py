"""Peers to train beside: transformers' GPT-NeoX with as many parameters as an RWKV-4."""

from __future__ import annotations

import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from wkv.config import ModelConfig


def gpt_neox(
    config: ModelConfig, context: int, *, head: int = 32, intermediate: int | None = None
) -> GPTNeoXForCausalLM:
    """GPT-NeoX of the same width, depth and vocabulary, with heads of ``head`` channels.

    Unless ``intermediate`` is given, its feed-forward layer is widened until it has as many
    parameters as RWKV, to within 0.5%.
    """

    def build(intermediate: int) -> GPTNeoXConfig:
        return GPTNeoXConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=max(1, config.hidden_size // head),
            intermediate_size=intermediate,
            max_position_embeddings=4 * context,
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )

    def parameters(intermediate: int) -> int:
        with torch.device("meta"):
            model = GPTNeoXForCausalLM(build(intermediate))
        return sum(p.numel() for p in model.parameters())

    if intermediate is not None:
        return GPTNeoXForCausalLM(build(intermediate))
    widths = range(4 * config.hidden_size, 6 * config.hidden_size, 8)
    best = min(widths, key=lambda width: abs(parameters(width) - config.parameters))
    return GPTNeoXForCausalLM(build(best))
