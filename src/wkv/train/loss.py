"""The loss: cross-entropy over the labels that count, divided by how many the whole step has.

Dividing by the step's total, over all chunks, accumulated batches and processes, makes the gradient
that of one large batch, however it was cut and however many labels a template leaves out.

L2Wrap is a pull on the largest logit of each position, in the backward pass only. It keeps logits
from drifting upwards, which matters for bfloat16 and costs no loss value (RWKV-LM,
``RWKV-v4neo/src/model.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from ..data import IGNORED

# Logits are by far the largest tensor of a step. On a CPU a slice of this many values stays in the
# cache from the first pass over it to the last; an accelerator wants few, large launches.
_SLICE = {"cpu": 1 << 20}
_WHOLE = 1 << 28


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each place in nats [B, T]; 0 where the label does not count."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    flat = F.cross_entropy(
        wide.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels.shape)


def step_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    count: torch.Tensor | float,
    pull: float = 0.0,
) -> torch.Tensor:
    """Summed cross-entropy ÷ ``count``, whose backward also has L2Wrap's pull.

    The backward adds pull/count·max at the largest logit of each place that counts, and scales
    with the incoming gradient, unlike the original: under loss scaling or gradient accumulation the
    pull must keep its proportion to the loss.

    Args:
        logits: [B, T, V], of any floating dtype; the arithmetic is float32 or wider.
        labels: the next tokens [B, T], −100 where they do not count.
        count: labels that count in the whole step.
        pull: L2Wrap's factor.
    """
    loss: torch.Tensor = _StepLoss.apply(
        logits.flatten(0, -2), labels.flatten(), torch.as_tensor(count), pull
    )
    return loss


class _StepLoss(torch.autograd.Function):
    """Two passes over the logits and one new tensor of their size, the gradient.

    ``F.cross_entropy`` keeps the log-probabilities too and adds dense zeros for what it gathers,
    and a separate L2Wrap as many again: at a vocabulary of 50,277 that is most of a step's memory.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, count: torch.Tensor, pull: float
    ) -> torch.Tensor:
        wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
        rows = logits.shape[0]
        scale = logits.new_empty(rows, dtype=wide)  # ln Σ exp of each place
        at = torch.empty_like(labels)  # its largest logit
        for part in _parts(logits):
            x = logits[part].to(wide)
            top, at[part] = x.max(-1)
            scale[part] = top + (x - top[:, None]).exp_().sum(-1).log()
        counts = labels != IGNORED
        chosen = torch.where(counts, labels, 0)
        gold = logits.gather(-1, chosen[:, None]).squeeze(-1).to(wide)
        ctx.save_for_backward(logits, chosen, counts, count, scale, at)
        ctx.pull = pull
        return torch.where(counts, scale - gold, 0).sum() / count

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        logits, chosen, counts, count, scale, at = ctx.saved_tensors
        weight = grads[0] / count * counts  # [rows]
        out = torch.empty_like(logits)
        for part in _parts(logits):
            x, w = logits[part], weight[part][:, None].to(scale.dtype)
            # In place where the gradient is as wide as the arithmetic.
            grad = (
                out[part] if out.dtype == scale.dtype else x.new_empty(x.shape, dtype=scale.dtype)
            )
            torch.sub(x, scale[part][:, None], out=grad).exp_().mul_(w)
            grad.scatter_add_(-1, chosen[part][:, None], -w)
            if ctx.pull:
                where = at[part][:, None]
                top = x.gather(-1, where).to(grad.dtype)
                grad.scatter_add_(-1, where, top.mul_(w * ctx.pull))
            if grad.dtype != out.dtype:
                out[part] = grad
        return out, None, None, None


def _parts(logits: torch.Tensor) -> Iterator[slice]:
    rows, width = logits.shape
    step = max(_SLICE.get(logits.device.type, _WHOLE) // max(width, 1), 1)
    return (slice(at, at + step) for at in range(0, rows, step))
