"""What each quantized format costs on a text, this package's beside rwkv.cpp's.

    python benchmarks/quantization_quality.py MODEL TEXT --library librwkv.so

TEXT is a .txt file, or JSON lines with a ``text`` each: documents that start from an empty state.
Every format predicts the same tokens; the loss and the divergence of the next token's distribution
from float32's are taken token by token, so that differences are paired. rwkv.cpp runs its own
files by its own arithmetic.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from harness import report
from rwkv_cpp import RwkvCpp, converted

from wkv.data import read_documents
from wkv.engine.native import NativeEngine, load_format
from wkv.tokenizer import find_tokenizer

CHUNK = 256  # tokens whose logits are held at once
KINDS = ("q4_0", "q4_1", "q5_1", "q8_0", "float16")
# ids of one chunk, whether they begin a document -> logits [chunk, vocabulary]
Logits = Callable[[list[int], bool], np.ndarray]


def of_engine(engine: NativeEngine) -> Logits:
    """Logits of an engine of this package, its state carried from chunk to chunk."""
    held = None

    def logits(ids: list[int], first: bool) -> np.ndarray:
        nonlocal held
        found, held = engine.forward([ids], None if first else held, logits="all")
        return found

    return logits


def of_rwkv_cpp(model: RwkvCpp) -> Logits:
    """The same of rwkv.cpp."""

    def logits(ids: list[int], first: bool) -> np.ndarray:
        if first:
            model.reset()
        return np.stack([model.step(token).copy() for token in ids])

    return logits


def packed(source: Path, format: str, calibrate: str, work: Path, threads: int) -> Path:
    """The folder that ``wkv quantize`` writes, unless it is there."""
    folder = work / f"{source.name}-{format}-{calibrate}"
    if not folder.exists():
        command = ["quantize", str(source), str(folder), "--format", format]
        command += ["--calibrate", calibrate, "--threads", str(threads)]
        subprocess.run([sys.executable, "-m", "wkv", *command], check=True, stdout=sys.stderr)
    return folder


def chunks(ids: list[int]) -> Iterator[tuple[list[int], list[int], bool]]:
    """Ids to read and ids to predict, and whether they begin the document."""
    for at in range(0, len(ids) - 1, CHUNK):
        stop = min(at + CHUNK, len(ids) - 1)
        yield ids[at:stop], ids[at + 1 : stop + 1], at == 0


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Float64 [tokens, vocabulary]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def measure(
    exact: Logits, others: dict[str, Logits], texts: list[list[int]]
) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Losses of ``exact`` token by token, and of the others losses and divergences from it."""
    base: list[np.ndarray] = []
    losses: dict[str, list[np.ndarray]] = {name: [] for name in others}
    divergences: dict[str, list[np.ndarray]] = {name: [] for name in others}
    for number, ids in enumerate(texts):
        print(f"document {number + 1} of {len(texts)}", file=sys.stderr, flush=True)
        for read, target, first in chunks(ids):
            rows = np.arange(len(read))
            true = log_softmax(exact(read, first))
            base.append(-true[rows, target])
            for name, logits in others.items():
                mine = log_softmax(logits(read, first))
                losses[name].append(-mine[rows, target])
                divergences[name].append((np.exp(true) * (true - mine)).sum(axis=1))
    join = np.concatenate
    return join(base), {n: (join(losses[n]), join(divergences[n])) for n in others}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--library", help="librwkv.so; left out, only this package is measured")
    parser.add_argument("--calibrate", default="own,none", help="of q4: own, none, or text files")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wkv-bench")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    threads = options.threads

    exact = load_format(options.model, format="f32", threads=threads)
    others: dict[str, Logits] = {}
    for format in ("q8", "bf16"):
        others[f"wkv {format}"] = of_engine(
            load_format(options.model, format=format, threads=threads)
        )
    for calibrate in options.calibrate.split(","):
        folder = packed(options.model, "q4", calibrate, options.work, threads)
        others[f"wkv q4, --calibrate {calibrate}"] = of_engine(load_format(folder, threads=threads))
    for kind in KINDS if options.library else ():
        file = converted(options.model, kind, options.work)
        others[f"rwkv.cpp {kind}"] = of_rwkv_cpp(RwkvCpp(options.library, file, threads))

    tokenizer = find_tokenizer(options.model, exact.config.vocab_size)
    texts = [tokenizer.encode(text) for text in read_documents(options.text)]
    base, found = measure(of_engine(exact), others, [ids for ids in texts if len(ids) > 1])
    rows = [["float32", f"{np.exp(base.mean()):.4f}", "", "", ""]]
    for name, (losses, divergences) in found.items():
        difference = losses - base
        error = difference.std() / np.sqrt(len(base))
        rows.append(
            [
                name,
                f"{np.exp(losses.mean()):.4f}",
                f"{100 * np.expm1(difference.mean()):+.3f} % ± {100 * error:.3f}",
                f"{1e4 * divergences.mean():.2f}",
                f"{1e4 * divergences.std() / np.sqrt(len(base)):.2f}",
            ]
        )
    title = f"{len(base):,} tokens of {options.text.name}, {options.model.name}"
    header = ["format", "perplexity", "against float32 ± s.e.", "KL, 1e-4 nats", "± s.e."]
    report(title, header, rows, options.json)


if __name__ == "__main__":
    main()
