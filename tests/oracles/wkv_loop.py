"""The wkv recurrence as a PyTorch loop over tokens: what autograd makes of the plain formulas."""

from __future__ import annotations

import torch
from torch import Tensor


def wkv_loop(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    state: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """y [B, T, A] and the final (num, den, max) [B, A], in the dtype of k."""
    if state is None:
        num = den = torch.zeros_like(k[:, 0])
        top = torch.full_like(num, -1e38)
    else:
        num, den, top = state
    outputs = []
    for key, value in zip(k.unbind(1), v.unbind(1), strict=True):
        bonus = first + key
        q = torch.maximum(top, bonus)
        old, new = torch.exp(top - q), torch.exp(bonus - q)
        outputs.append((old * num + new * value) / (old * den + new))
        decayed = top + decay
        q = torch.maximum(decayed, key)
        old, new = torch.exp(decayed - q), torch.exp(key - q)
        num, den, top = old * num + new * value, old * den + new, q
    return torch.stack(outputs, 1) if outputs else torch.empty_like(v), (num, den, top)
