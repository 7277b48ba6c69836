"""Training speed by context length, this package beside GPT-NeoX of the same shape, with a picture.

    python benchmarks/training_contexts.py --png docs/images/training-contexts.png

Every context runs ``training_step.py`` for each model in a process of its own, ``--turns`` times in
turn: two models in one process disturb each other's heap. A step has as many rows as fill
``--tokens`` tokens.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from harness import machine, median, report

from wkv.picture import picture

STEP = Path(__file__).with_name("training_step.py")
MODELS = ("wkv", "GPT-NeoX")


def measure(name: str, context: int, options: argparse.Namespace) -> float:
    """Tokens/s of one model at one context."""
    batch = max(1, options.tokens // context)
    layers = options.layers if context <= options.whole_up_to else options.layers // 3
    others = [other for other in (*MODELS, "transformers RWKV") if other != name]
    command = [sys.executable, str(STEP), "--json", "--without", *others]
    command += ["--context", str(context), "--batch", str(batch), "--layers", str(layers)]
    # With freed memory kept, the heap fits a model only after a few steps.
    command += ["--rounds", "2", "--warmup", "1" if context > 4 * options.tokens else "2"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (row,) = json.loads(out.splitlines()[-1])["rows"]
    return float(row["tokens/s"])


def draw(found: dict[int, dict[str, float]], whole_up_to: int, path: Path) -> None:
    """Tokens/s where all layers fit, and the ratio of the two everywhere, against the context."""
    with picture(path, 9, 3.6) as figure:
        speed, ratio = figure.subplots(1, 2)
        whole = [context for context in found if context <= whole_up_to]
        for name in MODELS:
            speed.plot(whole, [found[context][name] for context in whole], "o-", label=name)
        speed.set(ylabel="training, tokens/s")
        speed.legend()
        ours, theirs = MODELS
        ratio.plot(list(found), [s[ours] / s[theirs] for s in found.values()], "o-", color="C2")
        ratio.axhline(1, color="0.5", lw=0.8)
        ratio.set(ylabel=f"{ours} ÷ {theirs}")
        for axes in (speed, ratio):
            axes.set_xscale("log", base=2)
            axes.set_ylim(bottom=0)
            axes.set(xlabel="context, tokens")
            axes.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--contexts", type=int, nargs="+", default=[128, 512, 1024, 2048, 4096, 8192, 16384]
    )
    parser.add_argument("--tokens", type=int, default=1024, help="a step, at least")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--whole-up-to", type=int, default=8192, help="a third of the layers beyond it, for memory"
    )
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[int, dict[str, float]] = {}
    for context in options.contexts:
        speeds: dict[str, list[float]] = {name: [] for name in MODELS}
        for _ in range(options.turns):
            for name in MODELS:
                speeds[name].append(measure(name, context, options))
                print(context, name, speeds[name], file=sys.stderr, flush=True)
        found[context] = {name: median(values) for name, values in speeds.items()}
    rows = [
        [f"{context:,}", *(f"{s[n]:.0f}" for n in MODELS), f"{s['wkv'] / s['GPT-NeoX']:.2f}"]
        for context, s in found.items()
    ]
    title = f"Training by context, {options.layers}×768, float32, {machine()}"
    report(title, ["context", *(f"{n}, tokens/s" for n in MODELS), "ratio"], rows, options.json)
    if options.png:
        draw(found, options.whole_up_to, options.png)


if __name__ == "__main__":
    main()
