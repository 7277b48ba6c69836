"""RWKV-4 and GPT-NeoX at three sizes: the same blocks in the same order, each at its best rate.

    python benchmarks/scaling.py --train runs/bundled/train --validation runs/bundled/validation \\
        --output runs/scaling --png docs/images/scaling.png

Each size and architecture is trained at three learning rates, otherwise by its own published recipe
(RWKV: Adam (0.9, 0.99), exponential decay by 60, L2Wrap; GPT-NeoX: Adam (0.9, 0.95), weight decay
0.1, cosine to a tenth). What is finished is kept in ``results.jsonl`` and not run again. The table
has the best of three, the picture the training curves of these and a power law L = c·N^-b through
their validation losses. ``rise`` is the worst the training loss did against the mean of the twenty
log lines before it: a spike would be seen there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, report

from wkv.picture import picture

SIZES = {"1M": (96, 3), "3M": (160, 5), "10M": (320, 6)}  # width, layers
RATES = {"rwkv": (3e-3, 6e-3, 1.2e-2), "gpt_neox": (1e-3, 2e-3, 4e-3)}
NAMES = {"rwkv": "RWKV-4", "gpt_neox": "GPT-NeoX"}
RECIPES: dict[str, dict[str, Any]] = {
    "rwkv": {"schedule": {"fall": 60, "warmup": 20}, "l2wrap": 1e-4},
    "gpt_neox": {
        "optimizer": {"beta2": 0.95, "weight_decay": 0.1, "multipliers": {}},
        "schedule": {"fall": 10, "warmup": 20, "shape": "cosine"},
        "l2wrap": 0.0,
    },
}


def train(architecture: str, size: str, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """One run, on one thread."""
    import torch
    from peers import gpt_neox
    from torch.utils.data import Subset

    from wkv.data import Binidx, Blocks
    from wkv.hf import RwkvConfig, RwkvForCausalLM
    from wkv.train.memory import keep_freed_memory
    from wkv.train.recipe import Recipe
    from wkv.train.trainer import RecipeTrainer

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    values = json.loads(json.dumps(RECIPES[architecture]))
    schedule = values["schedule"]
    schedule["initial"] = rate
    schedule["final"] = rate / schedule.pop("fall")
    width, layers = SIZES[size]
    values["model"] = {
        "vocab_size": options.vocabulary,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "context_length": options.context,
    }
    values["data"] = {"train": options.train, "context": options.context}
    steps = options.tokens // (options.batch * options.context)
    values["run"] = {
        "output": str(Path(options.output) / f"{architecture}-{size}-{rate:g}"),
        "steps": steps,
        "batch": options.batch,
        "device": "cpu",
        "save_every": 10 * steps,
        "log_every": 5,
        "quiet": True,
        "plot": False,
    }
    recipe = Recipe.from_dict(values)
    assert recipe.model is not None
    torch.manual_seed(options.seed)
    if architecture == "rwkv":
        model: Any = RwkvForCausalLM(RwkvConfig.of(recipe.model))
    else:
        model = gpt_neox(recipe.model, options.context)
    blocks = Blocks(Binidx(options.train), options.context, steps * options.batch, options.seed)
    held = Blocks(Binidx(options.validation), options.context, seed=None)
    some = Subset(held, range(0, len(held), options.every))
    trainer = RecipeTrainer(model, recipe, blocks, some)
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    curve = [(h["step"], h["loss"]) for h in trainer.state.log_history if "loss" in h]
    losses = [loss for _, loss in curve]
    rises = [losses[i] - float(np.mean(losses[i - 20 : i])) for i in range(20, len(losses))]
    return {
        "architecture": architecture,
        "size": size,
        "rate": rate,
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": steps * options.batch * options.context,
        "loss": trainer.evaluate()["eval_loss"],
        "rise": max(rises, default=0.0),
        "seconds": seconds,
        "curve": curve,
    }


def finished(output: Path) -> dict[tuple[str, str, float], dict[str, Any]]:
    """What was run before, by architecture, size and rate."""
    file = output / "results.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = map(json.loads, lines)
    return {(row["architecture"], row["size"], row["rate"]): row for row in rows}


def run_all(options: argparse.Namespace) -> None:
    """Every run that is not finished, ``--workers`` at a time, the longest first."""
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    done = finished(output)
    wanted = [
        (architecture, size, rate)
        for size in reversed(SIZES)
        for architecture in RATES
        for rate in RATES[architecture]
        if (architecture, size, rate) not in done
    ]
    arguments = [a for a in sys.argv[1:] if a not in ("--json",)]

    def one(run: tuple[str, str, float]) -> None:
        command = [sys.executable, __file__, *arguments, "--one", *map(str, run)]
        out = subprocess.run(command, capture_output=True, text=True)
        if out.returncode:
            raise RuntimeError(f"{run}: {out.stderr[-2000:]}")
        with (output / "results.jsonl").open("a") as file:
            file.write(out.stdout.splitlines()[-1] + "\n")
        print("finished", *run, file=sys.stderr, flush=True)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(one, wanted))


def fit(rows: list[dict[str, Any]]) -> tuple[float, float]:
    """c and b of L = c·N^-b, by least squares on logarithms."""
    x = np.log([row["parameters"] for row in rows])
    slope, offset = np.polyfit(x, np.log([row["loss"] for row in rows]), 1)
    return float(np.exp(offset)), float(-slope)


def draw(best: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Training curves at the left, validation loss against size at the right."""
    with picture(path, 10, 4) as figure:
        left, right = figure.subplots(1, 2)
        for architecture, colour in (("rwkv", "C0"), ("gpt_neox", "C1")):
            rows = best[architecture]
            for row, style in zip(rows, (":", "--", "-"), strict=True):
                steps, losses = np.array(row["curve"]).T
                smooth = np.convolve(losses, np.ones(5) / 5, "valid")
                label = f"{NAMES[architecture]} {row['size']}"
                left.plot(steps[4:], smooth, style, color=colour, lw=1, label=label)
            c, b = fit(rows)
            n = np.array([row["parameters"] for row in rows])
            right.plot(n, [row["loss"] for row in rows], "o", color=colour)
            label = f"{NAMES[architecture]}: {c:.2f}·N^-{b:.3f}"
            right.plot(n, c * n**-b, color=colour, label=label)
        left.set(xlabel="step", ylabel="training loss, nats a token", ylim=(None, 7))
        right.set(xlabel="parameters", ylabel="validation loss, nats a token", xscale="log")
        for axes in (left, right):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", required=True, help="tokenised corpus (binidx)")
    parser.add_argument("--validation", required=True)
    parser.add_argument("--output", default="runs/scaling")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--every", type=int, default=3, help="validate on one block in so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of a run")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        architecture, size, rate = options.one
        print(json.dumps(train(architecture, size, float(rate), options)))
        return
    run_all(options)
    results = finished(Path(options.output)).values()
    best: dict[str, list[dict[str, Any]]] = {a: [] for a in RATES}
    rows = []
    for size in SIZES:
        for architecture, chosen in best.items():
            runs = [r for r in results if (r["architecture"], r["size"]) == (architecture, size)]
            chosen.append(min(runs, key=lambda run: run["loss"]))
            row = chosen[-1]
            tried = ", ".join(f"{r['rate']:g}: {r['loss']:.3f}" for r in runs)
            rise = f"{max(r['rise'] for r in runs):.2f}"
            name = NAMES[architecture]
            rows.append([name, f"{row['parameters']:,}", f"{row['loss']:.3f}", tried, rise])
    for architecture, chosen in best.items():
        c, b = fit(chosen)
        rows.append([f"{NAMES[architecture]}, fitted", "N", f"{c:.2f}·N^-{b:.3f}", "", ""])
    title = f"Scaling, {options.tokens:,} tokens, context {options.context}, {machine()}"
    header = ["model", "parameters", "validation loss", "by rate", "largest rise"]
    report(title, header, rows, options.json)
    if options.png:
        draw(best, options.png)


if __name__ == "__main__":
    main()
