"""What goes wrong in a step: numbers that are not finite, and memory that runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import NonFiniteError, OutOfMemoryError
from .recipe import Recipe, RunRecipe


class Guard:
    """Stops at, or skips, a step whose loss or gradient is not finite; keeps its batches."""

    def __init__(self, run: RunRecipe) -> None:
        self._run = run
        self._batches: list[dict[str, Any]] = []
        self.skipped = 0

    def remember(self, inputs: dict[str, Any], loss: torch.Tensor) -> None:
        """One batch of the current step, and its loss."""
        self._batches.append({"inputs": inputs, "loss": loss})

    def check(self, norm: Any, step: int, model: nn.Module, accelerator: Any) -> None:
        """Called once a step, between the gradients and the optimiser.

        Raises:
            NonFiniteError: with ``run.nonfinite: stop``. The message names the saved batch.
        """
        batches, self._batches = self._batches, []
        losses = torch.stack([b["loss"].detach().float() for b in batches]) if batches else None
        value = float(norm)
        # The norm is of gradients that all processes share; a loss is each process's own.
        bad = losses is not None and not bool(torch.isfinite(losses).all())
        if accelerator.num_processes > 1:
            flag = torch.tensor(float(bad), device=accelerator.device)
            bad = bool(accelerator.reduce(flag, reduction="sum"))
        if not bad and torch.isfinite(torch.tensor(value)):
            return
        path = (
            Path(self._run.output) / f"nonfinite-step-{step}-process-{accelerator.process_index}.pt"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "step": step,
                "grad_norm": value,
                "losses": None if losses is None else losses.cpu(),
                "batches": [{k: v.cpu() for k, v in b["inputs"].items()} for b in batches],
            },
            path,
        )
        what = (
            f"step {step}: loss {[] if losses is None else losses.tolist()}, gradient norm {value}"
        )
        if self._run.nonfinite == "stop":
            raise NonFiniteError(
                f"{what}. The batch is in {path}; nothing of this step was learnt, and the newest "
                "checkpoint is from before it. Lower schedule.initial or raise schedule.warmup, or "
                "set run.nonfinite=skip to leave such steps out"
            )
        self.skipped += 1
        # Without gradients the optimiser changes neither weights nor moments.
        for parameter in model.parameters():
            parameter.grad = None


@contextlib.contextmanager
def explain_out_of_memory(recipe: Recipe) -> Iterator[None]:
    """Turn a failed allocation into an error that says which setting to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error)
        if not (
            isinstance(error, torch.OutOfMemoryError | MemoryError)
            or "DefaultCPUAllocator: can't allocate" in text
            or "not enough memory" in text
        ):
            raise
        raise OutOfMemoryError(
            f"out of memory at run.batch={recipe.run.batch}, "
            f"data.context={recipe.data.context}: {'; '.join(_ways_out(recipe))}. "
            f"({text.splitlines()[0] if text else type(error).__name__})"
        ) from error


def _ways_out(recipe: Recipe) -> list[str]:
    """What to change, the least painful first."""
    run, ways = recipe.run, []
    if run.batch > 1:
        ways.append(
            f"set run.batch={run.batch // 2} and run.accumulate={run.accumulate * 2} (the same "
            "step in smaller pieces)"
        )
    if not run.gradient_checkpointing:
        ways.append("set run.gradient_checkpointing=true")
    span = recipe.bptt.chunk or recipe.data.context
    if span > 128:
        ways.append(f"set bptt.chunk={span // 2} (the same gradients, in pieces of the context)")
    if recipe.tune.method == "full" and recipe.start:
        ways.append("set tune.method=lora")
    return ways or ["use a smaller model, or more processes with FSDP"]
