"""Hugging Face's Trainer with RWKV's recipe: its loss, optimiser, schedule and data order.

Checkpointing, resuming, accumulation, mixed precision and everything distributed stay the
Trainer's. The model may be any causal language model of transformers, so that another architecture
can be trained on the same blocks for comparison.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments

from ..data import IGNORED, Blocks
from .l2wrap import l2wrap
from .optimizer import build_optimizer, parameter_groups
from .recipe import Recipe
from .schedule import Schedule


class RecipeTrainer(Trainer):
    """Trains a language model on :class:`~wkv.data.Blocks` as a :class:`Recipe` says."""

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train: Blocks,
        evaluation: Blocks | None = None,
        **trainer_options: Any,
    ) -> None:
        self.recipe = recipe
        super().__init__(
            model=model,
            args=training_arguments(recipe, evaluation is not None),
            train_dataset=train,
            eval_dataset=evaluation,
            **trainer_options,
        )
        # Our loss is a mean over the batch; the Trainer divides it when gradients accumulate.
        self.model_accepts_loss_kwargs = False
        self.can_return_loss = True

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Adam over the recipe's parameter groups."""
        if self.optimizer is None:
            o = self.recipe.optimizer
            groups = parameter_groups(
                self.model if model is None else model,
                self.recipe.schedule.initial,
                o.weight_decay,
                o.multipliers,
            )
            self.optimizer = build_optimizer(groups, (o.beta1, o.beta2), o.eps)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The recipe's schedule; each group's multiplier is already in its rate."""
        if self.lr_scheduler is None:
            s = self.recipe.schedule
            schedule = Schedule(s.initial, s.final, num_training_steps, s.warmup, s.shape)
            self.lr_scheduler = LambdaLR(
                optimizer or self.create_optimizer(),
                lambda step: schedule(step) / schedule.initial,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        # The blocks are already in their seeded order; a second shuffle would break the promise
        # that no token comes twice in an epoch, since one dataset spans several epochs.
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Mean cross-entropy over the labels that count, with L2Wrap in training."""
        logits = model(input_ids=inputs["input_ids"], use_cache=False).logits  # [B, T, V]
        loss = F.cross_entropy(
            logits.float().flatten(0, -2), inputs["labels"].flatten(), ignore_index=IGNORED
        )
        if model.training:
            loss = l2wrap(loss, logits, self.recipe.l2wrap)
        return (loss, {"logits": logits}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The loss alone: logits of a whole validation set would not fit in memory."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None


def training_arguments(recipe: Recipe, evaluate: bool) -> TrainingArguments:
    """The Trainer's own settings that follow from a recipe."""
    run = recipe.run
    return TrainingArguments(
        output_dir=str(Path(run.output)),
        max_steps=run.steps,
        per_device_train_batch_size=run.batch,
        per_device_eval_batch_size=run.batch,
        gradient_accumulation_steps=run.accumulate,
        max_grad_norm=recipe.optimizer.clip,
        bf16=run.precision == "bf16",
        seed=run.seed,
        logging_steps=run.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=run.save_every,
        save_total_limit=run.keep,
        eval_strategy="steps" if evaluate and run.evaluate_every else "no",
        eval_steps=run.evaluate_every or None,
        report_to=list(run.report_to),
        disable_tqdm=run.quiet,
        use_cpu=run.device == "cpu",
        dataloader_drop_last=False,
        remove_unused_columns=False,
        label_names=["labels"],
    )
