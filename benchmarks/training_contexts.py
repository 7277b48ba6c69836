"""Training speed by context length, this package beside GPT-NeoX of the same shape, with a picture.

    python benchmarks/training_contexts.py --png docs/images/training-contexts.png

Runs ``training_step.py`` once a context, as many rows as fill ``--tokens`` tokens: three rounds
where one row is no more than that, one round beyond.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import machine, report

STEP = Path(__file__).with_name("training_step.py")
MODELS = ("wkv", "GPT-NeoX")


def measure(context: int, options: argparse.Namespace) -> dict[str, float]:
    """Tokens/s of each model at one context."""
    batch = max(1, options.tokens // context)
    layers = options.layers if context <= options.whole_up_to else options.layers // 2
    command = [sys.executable, str(STEP), "--json", "--without", "transformers RWKV"]
    command += ["--context", str(context), "--batch", str(batch), "--layers", str(layers)]
    short = context <= options.tokens
    # With freed memory kept, the heap fits a new pair of models only after a few steps.
    command += ["--rounds", "3" if short else "1", "--warmup", "3" if short else "1"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = json.loads(out.splitlines()[-1])["rows"]
    return {row["model"]: float(row["tokens/s"]) for row in rows}


def draw(found: dict[int, dict[str, float]], path: Path) -> None:
    """Tokens/s against the context, both axes logarithmic in two."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    for name in MODELS:
        axes.plot(list(found), [speeds[name] for speeds in found.values()], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set(xlabel="context, tokens", ylabel="training, tokens/s")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096, 8192, 16384]
    )
    parser.add_argument("--tokens", type=int, default=1024, help="a step, at least")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--whole-up-to", type=int, default=8192, help="half the layers beyond it, for memory"
    )
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {}
    for context in options.contexts:
        found[context] = measure(context, options)
        print(context, found[context], file=sys.stderr, flush=True)
    rows = [
        [f"{context:,}", *(f"{s[n]:.0f}" for n in MODELS), f"{s['wkv'] / s['GPT-NeoX']:.2f}"]
        for context, s in found.items()
    ]
    title = f"Training by context, {options.layers}×768, float32, {machine()}"
    report(title, ["context", *(f"{n}, tokens/s" for n in MODELS), "ratio"], rows, options.json)
    if options.png:
        draw(found, options.png)


if __name__ == "__main__":
    main()
