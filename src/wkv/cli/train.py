"""``wkv train``: run a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UnavailableError


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The run, in YAML.")],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the recipe."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print parameters, tokens, memory and time, and train nothing."
        ),
    ] = False,
    processes: Annotated[
        int,
        typer.Option("--processes", min=1, help="For --dry-run: processes that share the work."),
    ] = 1,
) -> None:
    """Train or fine-tune as a recipe says, going on from the newest checkpoint of its output.

    wkv train recipes/169m.yaml run.batch=4 run.accumulate=2

    wkv train recipes/lora.yaml start=RWKV-4-Pile-169M.pth --dry-run

    On several processes: torchrun --standalone --nproc-per-node 2 -m wkv train RECIPE.yaml
    """
    from ..train.recipe import Recipe

    plan = Recipe.load(recipe, changes or ())
    try:
        import torch

        from ..train.memory import keep_freed_memory
        from ..train.run import train as run
    except ImportError as error:
        raise UnavailableError(
            f"training needs {error.name or 'more packages'}: pip install 'wkv[train]'"
        ) from error

    if dry_run:
        from ..train.plan import plan as estimate

        for line in estimate(plan, processes).lines(plan.run.steps):
            typer.echo(line)
        return
    if plan.run.device == "cpu" or not torch.accelerator.is_available():
        keep_freed_memory()
    on_terminal = sys.stderr.isatty()

    def progress(documents: int, tokens: int) -> None:
        if on_terminal or documents % 100_000 < 64:
            line = f"tokenised {documents:,} documents, {tokens:,} tokens"
            typer.echo(f"\r{line}" if on_terminal else line, err=True, nl=not on_terminal)

    trainer, metrics = run(plan, progress)
    if trainer.is_world_process_zero():
        for name, value in metrics.items():
            typer.echo(f"{name.removeprefix('eval_')}: {value:.4f}")
        typer.echo(f"{plan.run.output}: done after {trainer.state.global_step:,} steps")
