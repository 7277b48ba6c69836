"""RWKV-4's published initialisation (RWKV-v4neo, ``src/model.py``; RWKV paper, appendix).

Most matrices start at zero and the embedding tiny, so the network begins as a LayerNorm of its
input and every layer switches itself on. A parameter that a checkpoint has already filled (marked
``_is_hf_initialized`` by transformers) is left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def _fill(parameter: torch.Tensor, fill: Callable[[torch.Tensor], Any]) -> None:
    if getattr(parameter, "_is_hf_initialized", False) or parameter.is_meta:
        return
    with torch.no_grad():
        fill(parameter)


def _depth(layer: int, num_layers: int) -> tuple[float, float]:
    """ρ from 0 to 1 and s from 1 to 1/L over the layers; a one-layer model is its first layer."""
    return (layer / (num_layers - 1) if num_layers > 1 else 0.0), 1.0 - layer / num_layers


def init_attention(module: Any) -> None:
    """Fill an attention module: decays from slow to fast over the channels, matrices mostly 0."""
    rho, s = _depth(module.layer, module.num_layers)
    channels = module.time_decay.shape[0]
    d = module.time_mix_key.shape[-1]
    h = torch.arange(channels, dtype=torch.float32)
    speed = -5 + 8 * (h / max(channels - 1, 1)) ** (0.7 + 1.3 * rho)
    zigzag = 0.5 * ((h + 1) % 3 - 1)
    x = (torch.arange(d, dtype=torch.float32) / d).view(1, 1, d)
    _fill(module.time_decay, lambda p: p.copy_(speed))
    _fill(module.time_first, lambda p: p.copy_(math.log(0.3) + zigzag))
    _fill(module.time_mix_key, lambda p: p.copy_(x**s))
    _fill(module.time_mix_value, lambda p: p.copy_(x**s + 0.3 * rho))
    _fill(module.time_mix_receptance, lambda p: p.copy_(x ** (0.5 * s)))
    for matrix in (module.key, module.receptance, module.output):
        _fill(matrix.weight, nn.init.zeros_)
    _fill(module.value.weight, lambda p: _orthogonal(p, 1.0))


def init_feed_forward(module: Any) -> None:
    """Fill a feed-forward module."""
    _, s = _depth(module.layer, module.num_layers)
    d = module.time_mix_key.shape[-1]
    x = (torch.arange(d, dtype=torch.float32) / d).view(1, 1, d)
    _fill(module.time_mix_key, lambda p: p.copy_(x**s))
    _fill(module.time_mix_receptance, lambda p: p.copy_(x**s))
    _fill(module.key.weight, lambda p: _orthogonal(p, 1.0))
    for matrix in (module.receptance, module.value):
        _fill(matrix.weight, nn.init.zeros_)


def init_embedding(embedding: nn.Embedding) -> None:
    """Uniform in ±1e-4 (SmallInitEmb): after the LayerNorm that follows only directions count."""
    _fill(embedding.weight, lambda p: nn.init.uniform_(p, -1e-4, 1e-4))


def init_head(head: nn.Linear) -> None:
    """Orthogonal with gain 0.5·√(V/D) where V > D."""
    _fill(head.weight, lambda p: _orthogonal(p, 0.5))


def _orthogonal(parameter: torch.Tensor, gain: float) -> None:
    """Orthogonal, with the gain times √(out/in) where a matrix widens, as in the original."""
    rows, columns = parameter.shape
    gain *= math.sqrt(rows / columns) if rows > columns else 1.0
    # The QR inside knows no 16-bit types.
    parameter.copy_(nn.init.orthogonal_(torch.empty(rows, columns), gain=gain))
