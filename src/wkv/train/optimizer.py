"""Parameter groups of the published recipe: faster decays, weight decay on matrices only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# The decay is learnt twice, the first-token bonus three times as fast (RWKV-LM, layer-wise rates).
MULTIPLIERS: Mapping[str, float] = {"time_decay": 2.0, "time_first": 3.0}


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 0.0,
    multipliers: Mapping[str, float] = MULTIPLIERS,
) -> list[dict[str, Any]]:
    """Trainable parameters, grouped by learning-rate multiplier and weight decay.

    Args:
        model: any module; a parameter's multiplier goes by the last part of its name.
        learning_rate: of a multiplier of 1.
        weight_decay: of matrices; a vector (also one stored as [1, 1, D]) is never decayed.
        multipliers: last part of a parameter's name → multiplier.

    Returns:
        One dictionary a group, as :class:`torch.optim.Adam` takes them, with ``multiplier`` beside.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            multiplier = multipliers.get(name.rpartition(".")[2], 1.0)
            matrix = sum(size > 1 for size in parameter.shape) >= 2
            key = (multiplier, weight_decay if matrix else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * multiplier,
            "weight_decay": decay,
            "multiplier": multiplier,
        }
        for (multiplier, decay), parameters in groups.items()
    ]


def build_optimizer(
    groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay, in one fused pass where the device has it.

    AdamW without weight decay is Adam; with it, AdamW is what "never on vectors" is meant for.
    """
    return torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=0.0, fused=True)
