"""Tiny runs for tests: a corpus that is quickly learnt, and recipes over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from wkv.data import BinidxWriter
from wkv.train.recipe import Recipe

MODEL = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2}


def write_corpus(base: Path, documents: int = 8, seed: int = 0) -> None:
    """Documents that count up from somewhere."""
    rng = np.random.default_rng(seed)
    with BinidxWriter(base) as writer:
        for _ in range(documents):
            start = int(rng.integers(1, 17))
            length = int(rng.integers(20, 60))
            writer.append([(start + i) % 16 + 1 for i in range(length)] + [0])


def recipe_values(folder: Path, **sections: Any) -> dict[str, Any]:
    """Nested values of a small recipe, sections updated."""
    if not (folder / "c.idx").is_file():
        write_corpus(folder / "c")
    values: dict[str, Any] = {
        "model": MODEL,
        "data": {"train": str(folder / "c"), "context": 16},
        "schedule": {"initial": 1e-2, "final": 1e-3, "warmup": 2},
        "run": {
            "output": str(folder / "out"),
            "steps": 8,
            "batch": 4,
            "device": "cpu",
            "log_every": 1,
            "save_every": 4,
            "quiet": True,
            "plot": False,
        },
    }
    for name, change in sections.items():
        both = isinstance(change, dict) and isinstance(values.get(name), dict)
        values[name] = {**values[name], **change} if both else change
    return {name: value for name, value in values.items() if value is not None}


def recipe_of(folder: Path, **sections: Any) -> Recipe:
    """The same as a recipe."""
    return Recipe.from_dict(recipe_values(folder, **sections))


def losses(output: Path) -> dict[int, float]:
    """Step → logged loss of a finished run."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
