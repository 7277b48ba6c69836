"""What a run would take, before it is started: parameters, tokens, memory by part, time."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..data import Binidx
from .build import architecture, build_model
from .recipe import Recipe
from .trainer import RecipeTrainer
from .watch import floating_point_operations, matrix_peak


@dataclass
class Plan:
    """The answer of :func:`plan`. Bytes are of one process without sharding."""

    parameters: int
    trainable: int
    tokens_per_step: int
    tokens: int
    processes: int = 1
    corpus_tokens: int | None = None
    memory: dict[str, int] = field(default_factory=dict)
    step_seconds: float | None = None
    peak_share: float | None = None
    not_measured: str | None = None

    def lines(self, steps: int) -> list[str]:
        """The plan in words."""
        out = [f"parameters   {self.parameters:,} ({self.trainable:,} learnt)"]
        tokens = f"tokens       {self.tokens:,} in {steps:,} steps of {self.tokens_per_step:,}"
        if self.corpus_tokens:
            epochs = self.tokens / self.corpus_tokens
            tokens += f"; the corpus has {self.corpus_tokens:,} ({epochs:.2f} epochs)"
        else:
            tokens += "; the corpus is not tokenised yet"
        out.append(tokens)
        total = sum(self.memory.values())
        memory = f"memory       {_size(total)} a process"
        if self.processes > 1:
            fixed = sum(_fixed(self.parameters, self.trainable).values())
            shared = total - fixed + fixed / self.processes
            memory += f", {_size(shared)} in pieces over {self.processes} (FSDP2)"
        out.append(memory)
        out += [f"  {name:<22}{_size(n)}" for name, n in self.memory.items()]
        if self.step_seconds is None:
            out.append(f"time         not measured: {self.not_measured}")
        else:
            rate = self.tokens_per_step / self.step_seconds
            out.append(
                f"time         {_duration(self.step_seconds * steps)} for {steps:,} steps of "
                f"{self.step_seconds:.2f} s (measured: {rate:,.0f} tokens/s"
                + (f", {100 * self.peak_share:.0f}% of peak)" if self.peak_share else ")")
            )
        return out


def plan(recipe: Recipe, processes: int = 1) -> Plan:
    """Count what a recipe needs, and measure one step on random tokens if it fits here.

    Args:
        recipe: the run. Its corpus may be missing; nothing is tokenised or written.
        processes: that would share the work; the measured one stands for each of them.
    """
    run, context = recipe.run, recipe.data.context
    config = architecture(recipe)
    per_step = run.batch * run.accumulate * processes * context
    tokens = per_step * run.steps
    found = Plan(config.parameters, config.parameters, per_step, tokens, processes)
    found.corpus_tokens = _corpus_tokens(recipe)
    # Weights, gradients and Adam's two moments, all in float32.
    need = 16 * config.parameters
    available = _available(recipe)
    if need > available:
        found.memory = _fixed(config.parameters, config.parameters)
        found.not_measured = (
            f"{_size(need)} of weights, gradients and moments do not fit into this machine's "
            f"{_size(available)}"
        )
        return found
    model = build_model(recipe)
    found.trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found.parameters = sum(p.numel() for p in model.parameters())
    found.memory = _fixed(found.parameters, found.trainable)
    with tempfile.TemporaryDirectory() as output:  # the Trainer makes its folder at once
        recipe = dataclasses.replace(recipe, run=dataclasses.replace(run, output=output))
        _measure(found, recipe, model, config.vocab_size)
    return found


def _measure(found: Plan, recipe: Recipe, model: Any, vocab_size: int) -> None:
    run, context = recipe.run, recipe.data.context

    class Random:
        def __len__(self) -> int:
            return run.batch

        def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
            ids = torch.randint(0, vocab_size, (context + 1,))
            block = {"input_ids": ids[:-1], "labels": ids[1:]}
            if recipe.data.boundaries != "stream":
                block["resets"] = torch.arange(context) % max(context // 4, 1) == 0
            return block

    trainer = RecipeTrainer(model, recipe, Random())  # type: ignore[arg-type]
    batch = next(iter(trainer.get_train_dataloader()))
    device = trainer.args.device
    prepared, optimizer = trainer.accelerator.prepare(trainer.model, trainer.create_optimizer())
    trainer.model_wrapped = prepared
    kept = _Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack):
        trainer.training_step(prepared, batch, batch["labels"].numel())  # a warm-up as well
    found.memory["kept for going back"] = kept.most
    times = []
    for _ in range(2):
        begin = time.perf_counter()
        trainer.training_step(prepared, batch, batch["labels"].numel())
        _wait(device)
        times.append(time.perf_counter() - begin)
    begin = time.perf_counter()
    optimizer.step()
    _wait(device)
    update = time.perf_counter() - begin
    found.step_seconds = min(times) * run.accumulate + update
    dtype = torch.bfloat16 if run.precision == "bf16" else torch.float32
    work = floating_point_operations(model) * run.batch * context * run.accumulate
    found.peak_share = work / found.step_seconds / matrix_peak(device, dtype)


class _Kept:
    """Counts the bytes that autograd keeps, each storage once, weights not counted."""

    def __init__(self) -> None:
        self.most = self._live = 0
        self._users: dict[int, int] = {}

    def pack(self, x: torch.Tensor) -> Any:
        return x if isinstance(x, torch.nn.Parameter) else _Hold(self, x)

    def unpack(self, held: Any) -> torch.Tensor:
        return held.x if isinstance(held, _Hold) else held

    def change(self, key: int, size: int, by: int) -> None:
        users = self._users.get(key, 0)
        self._users[key] = users + by
        if users == 0 or users + by == 0:
            self._live += size * by
            self.most = max(self.most, self._live)


class _Hold:
    def __init__(self, kept: _Kept, x: torch.Tensor) -> None:
        storage = x.untyped_storage()
        self.x, self._kept = x, kept
        self._key, self._size = storage.data_ptr(), storage.nbytes()
        kept.change(self._key, self._size, 1)

    def __del__(self) -> None:
        self._kept.change(self._key, self._size, -1)


def _fixed(parameters: int, trainable: int) -> dict[str, int]:
    return {
        "weights": 4 * parameters,
        "gradients": 4 * trainable,
        "Adam's moments": 8 * trainable,
    }


def _corpus_tokens(recipe: Recipe) -> int | None:
    folder = recipe.data.cache or str(Path(recipe.run.output) / "corpus")
    for base in (Path(recipe.data.train), Path(folder) / "train"):
        if Path(f"{base}.idx").is_file():
            return len(Binidx(base).tokens)
    return None


def _available(recipe: Recipe) -> int:
    if recipe.run.device == "auto" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:,.0f} {unit}" if unit in ("B", "KiB") else f"{n:,.1f} {unit}"
        n /= 1024
    return f"{n:,.1f} TiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"
