"""L2Wrap: a pull on the largest logit of each position, in the backward pass only.

It keeps logits from drifting upwards, which matters for bfloat16 and costs no loss value (RWKV-LM,
``RWKV-v4neo/src/model.py``).
"""

from __future__ import annotations

from typing import Any

import torch

FACTOR = 1e-4


class _L2Wrap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, loss: torch.Tensor, logits: torch.Tensor, strength: torch.Tensor
    ) -> torch.Tensor:
        top, at = logits.max(-1, keepdim=True)  # [..., 1]
        ctx.save_for_backward(top, at, strength)
        ctx.shape = logits.shape
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (grad,) = grads
        top, at, strength = ctx.saved_tensors
        # Scaled by the incoming gradient, unlike the original: under loss scaling or gradient
        # accumulation the pull must keep its proportion to the loss.
        pull = top * (strength * grad).to(top.dtype)
        return grad, top.new_zeros(ctx.shape).scatter_(-1, at, pull), None


def l2wrap(
    loss: torch.Tensor,
    logits: torch.Tensor,
    factor: float = FACTOR,
    *,
    count: torch.Tensor | float | None = None,
    where: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same loss, whose backward also adds factor/count·max at each position's largest logit.

    Args:
        loss: a scalar.
        logits: [B, T, V] (any leading shape), the logits that the loss came from.
        factor: strength of the pull; 0 returns the loss itself.
        count: what the loss was divided by; None is the number of positions, B·T.
        where: bool [B, T], the positions that are pulled; None is all.
    """
    if factor == 0 or not (torch.is_grad_enabled() and logits.requires_grad):
        return loss
    positions = logits.numel() // logits.shape[-1] if count is None else count
    pulled: Any = 1.0 if where is None else where[..., None]
    strength = pulled * loss.new_tensor(factor) / positions
    wrapped: torch.Tensor = _L2Wrap.apply(loss, logits, strength)
    return wrapped
