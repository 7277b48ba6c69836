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
    """Cross-entropy of each place in nats, float32 [B, T]; 0 where the label does not count."""
    flat = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return flat.view(labels.shape)


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
    flat = logits.float().flatten(0, -2)
    loss = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="sum") / count
    return l2wrap(loss, logits, pull, count=count, where=labels != IGNORED)
