"""Draws the training curves of runs that follow one another, against the tokens read.

python scripts/bundled_curves.py NAME=FOLDER … --png FILE
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from wkv.picture import picture


def points(folder: Path, key: str, before: float) -> list[tuple[float, float]]:
    """Million tokens, those ``before`` included, and a logged value."""
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    recipe = json.loads((folder / "recipe.json").read_text())
    step = recipe["run"]["batch"] * recipe["run"]["accumulate"] * recipe["data"]["context"]
    return [(before + row["step"] * step / 1e6, row[key]) for row in history if key in row]


def main() -> None:
    """Read the logs, draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--png", type=Path, required=True)
    options = parser.parse_args()
    with picture(options.png, 10, 3.4, dpi=100) as figure:
        axes: Any = figure.subplots(1, 2)
        loss, rate = axes
        before = 0.0
        for number, run in enumerate(options.runs):
            name, _, folder = run.partition("=")
            colour = f"C{number}"
            curve = points(Path(folder), "loss", before)
            loss.plot(*zip(*curve), lw=0.8, color=colour, label=name)
            held = points(Path(folder), "eval_loss", before)
            loss.plot(*zip(*held), "o", ms=4, color=colour, mec="k", mew=0.5)
            rate.plot(*zip(*points(Path(folder), "learning_rate", before)), color=colour)
            before = curve[-1][0]
        loss.set(
            xlabel="million tokens", ylabel="loss, nats a label (dots: validation)", ylim=(2.2, 6)
        )
        loss.legend(fontsize=8)
        rate.set(xlabel="million tokens", ylabel="learning rate", yscale="log")
        for one in axes:
            one.grid(alpha=0.3)


if __name__ == "__main__":
    main()
