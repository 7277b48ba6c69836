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
    def forward(ctx: Any, loss: torch.Tensor, logits: torch.Tensor, factor: float) -> torch.Tensor:
        top, where = logits.max(-1, keepdim=True)  # [..., 1]
        ctx.save_for_backward(top, where)
        ctx.shape, ctx.factor = logits.shape, factor
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        (grad,) = grads
        top, where = ctx.saved_tensors
        # Scaled by the incoming gradient, unlike the original: under loss scaling or gradient
        # accumulation the pull must keep its proportion to the loss.
        pull = top * (ctx.factor / top.numel()) * grad.to(top.dtype)
        return grad, top.new_zeros(ctx.shape).scatter_(-1, where, pull), None


def l2wrap(loss: torch.Tensor, logits: torch.Tensor, factor: float = FACTOR) -> torch.Tensor:
    """The same loss, whose backward also adds factor/(B·T)·max at each position's largest logit.

    Args:
        loss: a scalar.
        logits: [B, T, V] (any leading shape), the logits that the loss came from.
        factor: strength of the pull; 0 returns the loss itself.
    """
    if factor == 0 or not (torch.is_grad_enabled() and logits.requires_grad):
        return loss
    wrapped: torch.Tensor = _L2Wrap.apply(loss, logits, factor)
    return wrapped
