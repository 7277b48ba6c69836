"""The picture of a run: loss, learning rate, gradient norm, throughput, loss by position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..picture import picture

_PANELS = (
    ("loss", "loss (nats a token)"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_second", "tokens a second"),
)


def plot_run(
    history: Sequence[dict[str, Any]],
    path: str | Path,
    loss_by_position: Sequence[tuple[int, float]] = (),
    title: str = "",
) -> None:
    """Draw a Trainer's ``log_history`` to a PNG; what was never logged is left out."""
    panels = [p for p in _PANELS if any(p[0] in entry for entry in history)]
    total = len(panels) + bool(loss_by_position)
    rows = max(1, (total + 1) // 2)
    with picture(path, 11, 3.2 * rows, dpi=110) as figure:
        axes = figure.subplots(rows, 2, squeeze=False).reshape(-1)
        for ax, (key, label) in zip(axes, panels):
            points = [(e["step"], e[key]) for e in history if key in e]
            ax.plot(*zip(*points, strict=True), lw=1, label="training")
            ax.set(xlabel="step", ylabel=label)
            if key == "loss":
                points = [(e["step"], e["eval_loss"]) for e in history if "eval_loss" in e]
                if points:
                    ax.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, label="validation")
                    ax.legend()
            if key in ("learning_rate", "grad_norm") and all(y > 0 for _, y in points or ()):
                ax.set_yscale("log")
            ax.grid(alpha=0.3)
        if loss_by_position:
            ax = axes[len(panels)]
            ax.plot(*zip(*loss_by_position, strict=True), ".-", lw=1)
            ax.set(xlabel="position in the context", ylabel="validation loss")
            ax.set_xscale("log", base=2)
            ax.grid(alpha=0.3)
        for ax in axes[total:]:
            ax.remove()
        if title:
            figure.suptitle(title)
