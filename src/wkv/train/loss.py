"""The loss: cross-entropy over the labels that count, divided by how many the whole step has.

Dividing by the step's total, over all chunks, accumulated batches and processes, makes the gradient
that of one large batch, however it was cut and however many labels a template leaves out.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..data import IGNORED
from .l2wrap import l2wrap


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each place in nats [B, T]; 0 where the label does not count."""
    return _cross_entropy(logits, labels, "none").view(labels.shape)


def step_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    count: torch.Tensor | float,
    pull: float = 0.0,
) -> torch.Tensor:
    """Summed cross-entropy ÷ ``count``, whose backward also has L2Wrap's pull.

    Args:
        logits: [B, T, V].
        labels: the next tokens [B, T], −100 where they do not count.
        count: labels that count in the whole step.
        pull: L2Wrap's factor; it acts at the places that count, divided by ``count`` too.
    """
    loss = _cross_entropy(logits, labels, "sum") / count
    return l2wrap(loss, logits, pull, count=count, where=labels != IGNORED)


def _cross_entropy(logits: torch.Tensor, labels: torch.Tensor, reduction: str) -> torch.Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return F.cross_entropy(
        wide.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction=reduction
    )
