"""Validation: the loss of every label that counts, once, over all processes."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch

from ..data import IGNORED
from .loss import token_losses
from .rows import run_rows

if TYPE_CHECKING:
    from .trainer import RecipeTrainer

POSITIONS = 32  # groups of neighbouring positions in the loss by position


def validate(trainer: RecipeTrainer, dataset: Any = None, prefix: str = "eval") -> dict[str, float]:
    """Measure a model on a set of blocks.

    Sets ``trainer.loss_by_position``: pairs of a group's last position (from 1) and its loss.

    Returns:
        ``{prefix}_loss`` (nats a label), ``_perplexity``, ``_tokens_per_second``, and, if the
        trainer knows the tokens' lengths, ``_bits_per_byte``.
    """
    loader = trainer.get_eval_dataloader(dataset)
    model, context = trainer.model_wrapped, trainer.recipe.data.context
    was_training = model.training
    model.eval()
    groups = min(POSITIONS, context)
    group = torch.arange(context, device=trainer.args.device) * groups // context
    sizes = None
    if trainer.token_bytes is not None:
        sizes = torch.from_numpy(trainer.token_bytes).to(trainer.args.device)
    # Per group: summed loss and labels; and bytes in all.
    totals = torch.zeros(2 * groups + 1, dtype=torch.float64)
    begin = time.perf_counter()
    for inputs in loader:
        inputs = trainer._prepare_inputs(inputs)
        labels = inputs["labels"]
        with torch.no_grad(), trainer.compute_loss_context_manager():
            losses = _losses(trainer, model, inputs)  # [B, T]
        counts = labels != IGNORED
        rows = torch.zeros(len(labels), 2 * groups + 1, dtype=torch.float32, device=labels.device)
        at = group.expand_as(labels)
        rows[:, :groups].scatter_add_(1, at, losses.float())
        rows[:, groups : 2 * groups].scatter_add_(1, at, counts.float())
        if sizes is not None:
            rows[:, -1] = (sizes[labels.clamp(min=0)] * counts).sum(1)
        # Drops what was repeated to give each process as many rows.
        totals += trainer.accelerator.gather_for_metrics(rows).double().sum(0).cpu()
    model.train(was_training)
    seconds = time.perf_counter() - begin
    sums, labels_in = totals[:groups], totals[groups : 2 * groups]
    trainer.loss_by_position = [
        (-(-(i + 1) * context // groups), float(sums[i] / labels_in[i]))
        for i in range(groups)
        if labels_in[i] > 0
    ]
    count = float(labels_in.sum())
    loss = float(sums.sum()) / max(count, 1.0)
    metrics = {
        f"{prefix}_loss": loss,
        f"{prefix}_perplexity": math.exp(min(loss, 700.0)),
        f"{prefix}_tokens_per_second": count / seconds,
    }
    if float(totals[-1]) > 0:
        metrics[f"{prefix}_bits_per_byte"] = loss * count / math.log(2) / float(totals[-1])
    return metrics


def _losses(trainer: RecipeTrainer, model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Loss of each place, in chunks where training runs in chunks."""
    chunk = trainer.recipe.bptt.chunk
    if not chunk:
        return token_losses(trainer.logits(model, inputs), inputs["labels"])
    state, parts = None, []
    for at in range(0, inputs["input_ids"].shape[1], chunk):
        span = slice(at, at + chunk)
        resets = inputs["resets"][:, span] if "resets" in inputs else None
        logits, state = run_rows(
            model, inputs["input_ids"][:, span], state, resets, trainer.initial
        )
        parts.append(token_losses(logits, inputs["labels"][:, span]))
    return torch.cat(parts, 1)
