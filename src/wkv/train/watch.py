"""Watching a run: progress bar, throughput, pictures on request, samples."""

from __future__ import annotations

import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..errors import WkvError
from ..tokenizer import Tokenizer
from .plots import plot_run


def floating_point_operations(model: torch.nn.Module) -> float:
    """Of one token, forward and backward: 2 a weight going on, 2 going back, 2 to learn it.

    Only matrices count, and not the embedding, which is looked up. Running a chunk or a block
    again is not counted: it is a price, not work done.
    """
    total = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight
            total += (6 if weight.requires_grad else 4) * weight.numel()
    return total


def matrix_peak(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """Measured floating-point operations a second of a square matrix product: the fastest of 5."""
    if device.type == "cuda":
        size *= 8
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best


class Watch(TrainerCallback):
    """Progress, throughput and pictures of one run.

    ``training.png`` is drawn at the end and, while running, whenever the process gets SIGUSR1.
    """

    def __init__(self, trainer: Any, tokens_per_step: int, bar: bool) -> None:
        self._trainer = trainer
        self._tokens, self._bar_wanted = tokens_per_step, bar
        self._bar: Any = None
        self._began = self._seconds = 0.0
        self._steps = 0
        self._peak: float | None = None
        self._asked = threading.Event()
        self._old_handler: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the machine, open the bar, listen for SIGUSR1."""
        dtype = torch.bfloat16 if args.bf16 else torch.float32
        self._peak = matrix_peak(args.device, dtype)
        self._operations = floating_point_operations(self._trainer.model)
        if state.is_world_process_zero:
            if self._bar_wanted:
                self._bar = tqdm(
                    total=state.max_steps, initial=state.global_step, unit="step", file=sys.stderr
                )
            if threading.current_thread() is threading.main_thread() and hasattr(signal, "SIGUSR1"):
                self._old_handler = signal.signal(signal.SIGUSR1, lambda *_: self._asked.set())

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Throughput since the last log line: of the steps alone, not of saving and validating."""
        if args.device.type == "cuda" and control.should_log:
            torch.cuda.synchronize(args.device)
        self._seconds += time.perf_counter() - self._began
        self._steps += 1
        rate = self._tokens * self._steps / max(self._seconds, 1e-9)
        share = rate * self._operations / args.world_size / (self._peak or 1.0)
        self._trainer.extra_logs = {"tokens_per_second": rate, "peak_share": share}
        if control.should_save or control.should_evaluate:
            # A line ends wherever a checkpoint may be written (a validation may be the best so
            # far), so that a resumed run's lines are the same.
            control.should_log = True
        if self._bar:
            self._bar.update(state.global_step - self._bar.n)
        if self._asked.is_set():
            self._asked.clear()
            self._draw(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Write a line, or renew the bar's."""
        if not state.is_world_process_zero or not logs:
            return
        if "loss" in logs:
            self._seconds, self._steps = 0.0, 0
            line = (
                f"loss {logs['loss']:.4f}  {logs['tokens_per_second']:,.0f} tokens/s  "
                f"{100 * logs['peak_share']:.0f}% of peak"
            )
            if self._bar:
                self._bar.set_postfix_str(line)
                return
            norm = logs.get("grad_norm")
            line += f"  rate {logs['learning_rate']:.2e}"
            line += f"  norm {norm:.3f}" if norm is not None else ""
        elif "eval_loss" in logs:
            line = (
                f"validation loss {logs['eval_loss']:.4f}  perplexity {logs['eval_perplexity']:.2f}"
            )
            if "eval_bits_per_byte" in logs:
                line += f"  bits/byte {logs['eval_bits_per_byte']:.4f}"
        else:
            return
        tqdm.write(f"step {state.global_step}/{state.max_steps}  {line}", file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar, draw the picture, listen no longer."""
        self.close()
        self._draw(state)

    def close(self) -> None:
        """Leave the terminal and the signal as they were."""
        if self._bar:
            self._bar.close()
            self._bar = None
        if self._old_handler is not None:
            signal.signal(signal.SIGUSR1, self._old_handler)
            self._old_handler = None

    def _draw(self, state: Any) -> None:
        if state.is_world_process_zero and self._trainer.recipe.run.plot:
            output = Path(self._trainer.args.output_dir)
            positions = getattr(self._trainer, "loss_by_position", ())
            try:
                plot_run(state.log_history, output / "training.png", positions, output.name)
            except WkvError as error:  # a run is worth more than its picture
                tqdm.write(f"no picture: {error}", file=sys.stderr)


class Samples(TrainerCallback):
    """Writes what the model says every N steps, to the terminal and to ``samples.txt``."""

    def __init__(self, trainer: Any, tokenizer: Tokenizer) -> None:
        self._trainer, self._tokenizer = trainer, tokenizer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sample where it is time. The run's own random numbers stay as they were."""
        run = self._trainer.recipe.run
        if state.global_step % run.sample_every or not state.is_world_process_zero:
            return
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        devices = [args.device] if args.device.type == "cuda" else []
        was_training = model.training
        model.eval()
        lines = []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(run.seed)
            for prompt in run.sample_prompts:
                ids = torch.tensor([self._tokenizer.encode_prompt(prompt) or [0]])
                out = model.generate(
                    input_ids=ids.to(args.device),
                    max_new_tokens=run.sample_tokens,
                    do_sample=True,
                    top_p=0.7,
                )
                text = self._tokenizer.decode(out[0].tolist())
                lines.append(f"--- step {state.global_step}\n{text}\n")
        model.train(was_training)
        tqdm.write("".join(lines), file=sys.stderr)
        with (Path(args.output_dir) / "samples.txt").open("a", encoding="utf-8") as file:
            file.writelines(lines)
