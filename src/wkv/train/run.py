"""A whole run from a recipe: corpus, model, training, validation, what is left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback

from ..errors import ConfigError, UnavailableError
from ..tokenizer import Tokenizer
from .build import (
    architecture,
    build_blocks,
    build_corpora,
    build_model,
    build_tokenizer,
    token_bytes,
)
from .checkpoints import checkpoints
from .recipe import Recipe
from .trainer import RecipeTrainer
from .tuning import StateTuned
from .watch import Samples, Watch


class _Saved:
    """A tokenizer as the Trainer saves its ``processing_class``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def save_pretrained(self, folder: str, **kwargs: Any) -> None:
        self._tokenizer.save(folder)


def build_trainer(
    recipe: Recipe, progress: Callable[[int, int], None] | None = None
) -> RecipeTrainer:
    """Everything that a recipe names, ready to train.

    Args:
        recipe: the run.
        progress: called with documents and tokens so far while a corpus is tokenised.
    """
    state = PartialState(cpu=recipe.run.device == "cpu")
    # One process tokenises; the others then find what it wrote.
    with state.main_process_first():
        corpus, held = build_corpora(recipe, progress if state.is_main_process else None)
    run, config = recipe.run, architecture(recipe)
    items = run.steps * run.batch * run.accumulate * state.num_processes
    tokenizer = build_tokenizer(recipe)
    trainer = RecipeTrainer(
        build_model(recipe),
        recipe,
        build_blocks(recipe, corpus, items, recipe.data.seed),
        None if held is None else build_blocks(recipe, held, None, None),
        token_bytes=token_bytes(tokenizer, config.vocab_size),
        processing_class=None if tokenizer is None else _Saved(tokenizer),
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    tokens = items // run.steps * recipe.data.context
    trainer.watch = Watch(trainer, tokens, bar=not run.quiet and os.isatty(2))
    trainer.add_callback(trainer.watch)
    if trainer.is_fsdp_enabled and recipe.tune.method != "full":
        raise UnavailableError(
            f"tune.method={recipe.tune.method} does not work with FSDP: what it learns is small, "
            "use DDP (torchrun alone)"
        )
    if run.sample_every:
        if tokenizer is None:
            raise UnavailableError(
                "run.sample_every writes text: name the tokenizer (data.tokenizer)"
            )
        if trainer.is_fsdp_enabled:
            raise UnavailableError(
                "run.sample_every does not work with FSDP, whose weights are in pieces: set it to 0"
            )
        trainer.add_callback(Samples(trainer, tokenizer))
    return trainer


def train(
    recipe: Recipe, progress: Callable[[int, int], None] | None = None
) -> tuple[RecipeTrainer, dict[str, float]]:
    """Train as a recipe says, going on from the newest checkpoint in its output folder.

    Leaves there: ``checkpoint-N`` folders, the final model (``model.safetensors`` and
    ``config.json``; LoRA adapters, and the merged model in ``merged``; or ``state.safetensors``),
    the tokenizer, ``recipe.json``, ``trainer_state.json``, ``metrics.json`` and ``training.png``.

    Args:
        recipe: the run.
        progress: see :func:`build_trainer`.

    Returns:
        The trainer, and the last validation's metrics (none without a validation set).

    Raises:
        NonFiniteError: see ``run.nonfinite``.
        ConfigError: the checkpoints to go on from are of another model, corpus or batch.
        OutOfMemoryError: the message says which setting to lower.
        CheckpointError: a checkpoint could not be written; older ones are as they were.
    """
    output = Path(recipe.run.output)
    output.mkdir(parents=True, exist_ok=True)
    trainer = build_trainer(recipe, progress)
    found, first = checkpoints(output), trainer.is_world_process_zero()
    if found and recipe.run.resume:
        _check_same_run(output / "recipe.json", recipe)
    trainer.accelerator.wait_for_everyone()  # all have looked before anything there changes
    if found and not recipe.run.resume:
        if first:
            _set_aside(found)
        found = []
    if first:
        (output / "recipe.json").write_text(json.dumps(recipe.to_dict(), indent=1) + "\n")
    try:
        trainer.train(resume_from_checkpoint=str(found[-1]) if found else None)
    finally:
        trainer.watch.close()
    metrics = trainer.evaluate() if trainer.eval_dataset is not None else {}
    _leave(trainer, output)
    if first:
        trainer.state.save_to_json(str(output / "trainer_state.json"))
        result = {**metrics, "loss_by_position": getattr(trainer, "loss_by_position", [])}
        (output / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return trainer, metrics


def _check_same_run(path: Path, recipe: Recipe) -> None:
    """What the newest checkpoint has learnt from what must be what the recipe goes on with."""
    if not path.is_file():
        return
    old = json.loads(path.read_text(encoding="utf-8"))
    new = json.loads(json.dumps(recipe.to_dict()))
    free = {"data": {"workers", "cache", "validation"}, "tune": {"merge", "lora"}}
    fixed = {"run": ("batch", "accumulate", "seed")}
    for section in ("model", "start", "data", "tune", "run"):
        a, b = old.get(section), new[section]
        if not (isinstance(a, dict) and isinstance(b, dict)):
            a, b = {"": a}, {"": b}
        for key in fixed.get(section, b):
            if key not in free.get(section, ()) and key in a and a[key] != b[key]:
                raise ConfigError(
                    f"{f'{section}.{key}'.strip('.')} is {b[key]!r}, but the checkpoints in "
                    f"{path.parent} are of a run with {a[key]!r}: choose another run.output, or "
                    "set run.resume=false to begin anew there"
                )


def _set_aside(found: list[Path]) -> None:
    """Checkpoints of an earlier run out of the way of a new one, which counts from 0 again."""
    number = 1
    while (folder := found[0].with_name(f"earlier-{number}")).exists():
        number += 1
    folder.mkdir()
    for path in found:
        path.rename(folder / path.name)


def _leave(trainer: RecipeTrainer, output: Path) -> None:
    """The final model, in the form that its tuning asks for."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, StateTuned):
        if trainer.is_world_process_zero():
            model.learnt().save(output / "state.safetensors")
        return
    if trainer.is_fsdp_enabled:
        # Checkpoints are in pieces; what is left at the end is one model. All processes take part.
        whole = trainer.accelerator.get_state_dict(trainer.model)
        if trainer.is_world_process_zero():
            trainer._save(str(output), state_dict=whole)
        return
    trainer.save_model(str(output))
    if trainer.recipe.tune.method == "lora" and trainer.recipe.tune.merge:
        merged = model.merge_and_unload()
        if trainer.is_world_process_zero():
            merged.save_pretrained(output / "merged")
            if trainer.processing_class is not None:
                trainer.processing_class.save_pretrained(str(output / "merged"))
