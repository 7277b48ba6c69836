"""Hugging Face's Trainer with RWKV's recipe: its loss, optimiser, schedule and data order.

Resuming, accumulation, mixed precision and everything distributed stay the Trainer's. The model may
be any causal language model of transformers, so that another architecture can be trained on the
same blocks for comparison; documents' boundaries and chunks through time need RWKV.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainingArguments

from ..data import IGNORED, Blocks, PackedDocuments
from ..errors import UnavailableError
from .bptt import chunked_backward
from .checkpoints import CheckpointWriter
from .guard import Guard, explain_out_of_memory
from .loss import step_loss
from .optimizer import build_optimizer, parameter_groups
from .recipe import Recipe
from .rows import run_rows
from .schedule import Schedule
from .sharding import honour_fsdp
from .validation import validate


class RecipeTrainer(CheckpointWriter, Trainer):
    """Trains a language model on blocks of a corpus as a :class:`Recipe` says.

    Args:
        model: :class:`~wkv.hf.RwkvForCausalLM`, something that wraps it (PEFT,
            :class:`~wkv.train.tuning.StateTuned`), or another causal language model.
        recipe: everything else.
        train: the blocks, in the order in which they are learnt.
        evaluation: blocks for validation.
        token_bytes: length in bytes of each token, for bits per byte.
        trainer_options: of the Trainer.
    """

    optimizer: torch.optim.Optimizer | None
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None
    control: Any

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        train: Blocks | PackedDocuments,
        evaluation: Blocks | PackedDocuments | None = None,
        *,
        token_bytes: np.ndarray | None = None,
        **trainer_options: Any,
    ) -> None:
        self.recipe = recipe
        self.token_bytes = token_bytes
        self.guard = Guard(recipe.run)
        self.extra_logs: dict[str, float] = {}
        arguments = training_arguments(recipe, evaluation is not None)
        honour_fsdp(arguments)
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=evaluation,
            **trainer_options,
        )
        # The Trainer counts the labels of the whole step, over accumulated batches and processes;
        # ours are the next tokens already.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = False
        self.can_return_loss = True
        self._is_rwkv = getattr(getattr(model, "config", None), "model_type", "") == "rwkv"
        if not self._is_rwkv and (recipe.bptt.chunk or recipe.data.boundaries != "stream"):
            raise UnavailableError(
                f"{type(model).__name__} carries no state: bptt.chunk must be 0 and "
                "data.boundaries stream"
            )

        if self.is_deepspeed_enabled and (recipe.bptt.chunk or recipe.run.nonfinite == "skip"):
            raise UnavailableError(
                "bptt.chunk and run.nonfinite=skip need PyTorch's own gradients, which DeepSpeed "
                "keeps to itself: use DDP or FSDP"
            )

    # --- optimiser and data -------------------------------------------------------------------

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
                self.create_optimizer() if optimizer is None else optimizer,
                lambda step: schedule(step) / schedule.initial,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        # The blocks are already in their seeded order; a second shuffle would break the promise
        # that no token comes twice in an epoch, since one dataset spans several epochs.
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    # --- one step -----------------------------------------------------------------------------

    def logits(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [B, T, V] of a batch."""
        if "resets" in inputs:
            return run_rows(model, inputs["input_ids"], None, inputs["resets"], self.initial)[0]
        logits: torch.Tensor = model(input_ids=inputs["input_ids"], use_cache=False).logits
        return logits

    @property
    def initial(self) -> Callable[[int], Any] | None:
        """Gives the learnt initial state to N sequences, where one is learnt."""
        return getattr(self.accelerator.unwrap_model(self.model), "initial_state", None)

    def _loss_of(self, inputs: dict[str, torch.Tensor], count: Any) -> Callable[..., torch.Tensor]:
        """Logits and labels → their share of the step's mean loss, over all processes."""
        if count is None:
            count = (inputs["labels"] != IGNORED).sum()
        elif self.model.training:
            # Gradients and logged losses are averaged over processes; ours are shares of a sum.
            count = count / self.accelerator.num_processes
        count = count.clamp(min=1) if isinstance(count, torch.Tensor) else max(count, 1)
        pull = self.recipe.l2wrap if self.model.training else 0.0
        return lambda logits, labels: step_loss(logits, labels, count, pull)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Cross-entropy per label that counts, with L2Wrap in training."""
        logits = self.logits(model, inputs)
        loss = self._loss_of(inputs, num_items_in_batch)(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """Forward and backward of one batch, in chunks through time if the recipe says so."""
        with explain_out_of_memory(self.recipe):
            if self.recipe.bptt.chunk:
                loss = self._chunked_step(model, inputs, num_items_in_batch)
            else:
                loss = super().training_step(model, inputs, num_items_in_batch)
        self.guard.remember(inputs, loss)
        return loss

    def _chunked_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], count: Any
    ) -> torch.Tensor:
        model.train()
        inputs = self._prepare_inputs(inputs)
        return chunked_backward(
            model,
            inputs["input_ids"],
            inputs["labels"],
            self._loss_of(inputs, count),
            self.recipe.bptt.chunk,
            gradients=self.recipe.bptt.gradients,
            resets=inputs.get("resets"),
            initial=self.initial,
            autocast=self.compute_loss_context_manager,
            no_sync=functools.partial(self._no_sync, model),
        )

    @contextlib.contextmanager
    def _no_sync(self, model: nn.Module) -> Iterator[None]:
        # Nested in the Trainer's own, when gradients accumulate: that one must stay in force.
        if self.accelerator.sync_gradients:
            with self.accelerator.no_sync(model):
                yield
        else:
            yield

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.guard.check(norm, self.state.global_step, model, self.accelerator)
        return norm

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        with explain_out_of_memory(self.recipe):
            return super()._clip_grad_norm(model)

    # --- validation and logs ------------------------------------------------------------------

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss per label, perplexity, bits per byte; loss by position in ``loss_by_position``."""
        metrics = validate(self, eval_dataset, metric_key_prefix)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

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

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what the callbacks measured to the training log."""
        if "loss" in logs:
            logs = {**logs, **self.extra_logs}
        super().log(logs, start_time)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best: bool = super()._determine_best_metric(metrics, trial)
        if best:
            self.control.should_save = True
        return best


def training_arguments(recipe: Recipe, evaluate: bool) -> TrainingArguments:
    """The Trainer's own settings that follow from a recipe."""
    run = recipe.run
    evaluate = evaluate and run.evaluate_every > 0
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
        save_total_limit=None,  # CheckpointWriter keeps as many as run.keep says
        eval_strategy="steps" if evaluate else "no",
        eval_steps=run.evaluate_every or None,
        metric_for_best_model="eval_loss" if evaluate and run.keep_best else None,
        greater_is_better=False if evaluate and run.keep_best else None,
        report_to=list(run.report_to),
        disable_tqdm=run.quiet,
        use_cpu=run.device == "cpu",
        torch_compile=run.compile,
        dataloader_drop_last=False,
        remove_unused_columns=False,
        label_names=["labels"],
    )
