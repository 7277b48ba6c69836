"""Every file format, through both engines, against the float64 recurrence on what the file holds.

    python benchmarks/parity_formats.py

A random float32 ``.pth`` is converted to each format and each result is loaded as a user would. The
error is that of running the file: the float64 recurrence gets the same, dequantized weights. The
last column is what the format itself costs: float64 on the file's weights against float64 on the
original ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import machine, report

sys.path.insert(0, str(Path(__file__).parents[1]))  # the oracles live with the tests

from tests.oracles import rwkv_float64
from tests.oracles.models import random_weights

import wkv
from wkv.checkpoint import convert, open_checkpoint
from wkv.config import ModelConfig

FILES = (
    ("original .pth", "a.pth", "float32"),
    ("original .pth", "a16.pth", "bfloat16"),
    ("Hugging Face folder", "hf", "float32"),
    ("Hugging Face folder", "hf16", "float16"),
    *(
        ("rwkv.cpp .bin", f"{dtype}.bin", dtype)
        for dtype in ("float32", "float16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
    ),
)


def run(engine, tokens: list[int], together: bool) -> np.ndarray:
    if together:
        return engine.forward([tokens], logits="all")[0]
    state, rows = None, []
    for token in tokens:
        row, state = engine.forward([[token]], state)
        rows.append(row[0])
    return np.stack(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config = ModelConfig(vocab_size=1000, hidden_size=args.hidden, num_hidden_layers=args.layers)
    weights = random_weights(config)
    tokens = np.random.default_rng(0).integers(1, 1000, 48).tolist()
    exact = rwkv_float64.forward(weights, tokens)[0]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "source.pth"
        torch.save({n: torch.from_numpy(w) for n, w in weights.items()}, source)
        for kind, file, dtype in FILES:
            convert(source, folder / file, dtype=dtype)
            with open_checkpoint(folder / file) as checkpoint:
                held = {n: checkpoint.tensor(n) for n in checkpoint.names()}
            want = rwkv_float64.forward(held, tokens)[0]
            cells = [kind, dtype]
            for engine in ("torch", "native"):
                model = wkv.load(folder / file, engine=engine, dtype="float32")
                for together in (True, False):
                    error = np.abs(run(model.engine, tokens, together) - want).max()
                    cells.append(f"{error:.1e}")
            rows.append([*cells, f"{np.abs(want - exact).max():.1e}"])
    title = (
        f"Largest error of a logit, {args.layers} layers of {args.hidden}, logits up to "
        f"{np.abs(exact).max():.0f}, {machine()}"
    )
    header = ["file", "dtype", "torch prefill", "decode", "native prefill", "decode ", "rounding"]
    report(title, header, rows, args.json)


if __name__ == "__main__":
    main()
