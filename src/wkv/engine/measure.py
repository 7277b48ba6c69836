"""What ``wkv bench`` measures: speeds of the native engine beside what the machine could do.

Every timing is paired with a bandwidth reading taken beside it, since a shared machine's memory
is now fast and now slow.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .. import _native
from ..checkpoint.names import expected_tensors
from ..checkpoint.packed import (
    PackedMatrix,
    check_format,
    default_formats,
    is_matrix,
    lanes_of,
    packed_bytes,
)
from ..config import ModelConfig
from ..picture import picture
from ..state import State
from .native import NativeEngine, available_threads


def synthetic_engine(
    config: ModelConfig, format: str, *, threads: int | None = None, seed: int = 0
) -> NativeEngine:
    """An engine with random weights of any size, for measuring speed without a checkpoint.

    Each matrix repeats one random panel: as many bytes as a real one, made in no time.
    """
    check_format(format)
    rng = np.random.default_rng(seed)
    kinds = default_formats(config, format)
    matrices: dict[str, PackedMatrix] = {}
    vectors: dict[str, np.ndarray] = {}
    for name, shape in expected_tensors(config).items():
        if is_matrix(shape):
            rows, cols = shape
            lanes, kind = lanes_of(name), kinds.get(name, format)
            panel = rng.standard_normal((16 * lanes, cols), np.float32) / np.float32(cols**0.5)
            packed = _native.pack(panel, kind, lanes, None, 1)
            data = _native.aligned_bytes(packed_bytes(name, (rows, cols), kind))
            data.reshape(-1, len(packed))[:] = packed
            matrices[name] = PackedMatrix(data, kind, rows, cols, lanes)
        else:
            vector = rng.uniform(0.2, 0.8, int(np.prod(shape))).astype(np.float32)
            vectors[name] = vector
            if name.endswith("att.time_decay"):
                vectors[name.replace("time_decay", "decay")] = -np.exp(vector)
    return NativeEngine(config, matrices, vectors, threads=threads)


def bytes_per_token(engine: NativeEngine) -> int:
    """Bytes of weights that one decoded token reads: all but the embedding's other rows."""
    config = engine.config
    if config.tie_word_embeddings:
        return engine.nbytes
    embedding = packed_bytes(
        "emb.weight", (config.vocab_size, config.hidden_size), engine.embedding_format
    )
    return engine.nbytes - embedding


def operations_per_token(config: ModelConfig, *, head: bool) -> int:
    """Multiplications and additions of the matrix products of one token."""
    d, a, f, n = (
        config.hidden_size,
        config.attention_size,
        config.ffn_size,
        config.num_hidden_layers,
    )
    return 2 * (n * (4 * d * a + 2 * d * f + d * d) + (config.vocab_size * d if head else 0))


def bandwidth(engine: NativeEngine, repeats: int = 3) -> float:
    """Bytes a second of plainly reading as much memory as a token reads, on as many threads."""
    size = min(max(bytes_per_token(engine), 64 << 20), 2 << 30)
    return float(_native.read_bandwidth(size, engine.threads, repeats, engine.instruction_set))


def product_peak(engine: NativeEngine) -> float:
    """Operations a second of the format's product instruction, on as many threads."""
    return float(_native.product_peak(engine.format, engine.threads, engine.instruction_set))


def decode(engine: NativeEngine, tokens: int = 64, rounds: int = 4) -> dict[str, Any]:
    """One token of one sequence at a time."""
    _, state = engine.forward([[1]])
    times: list[float] = []
    readings: list[float] = []
    for _ in range(rounds):
        readings.append(bandwidth(engine))
        for i in range(tokens // rounds):
            start = time.perf_counter()
            _, state = engine.forward([[i % engine.config.vocab_size]], state)
            times.append(time.perf_counter() - start)
    median, size = statistics.median(times), bytes_per_token(engine)
    return {
        "ms_per_token": 1e3 * median,
        "tokens_per_second": 1 / median,
        "bytes_per_token": size,
        "bandwidth_measured": statistics.median(readings),
        "share_of_bandwidth": size / median / statistics.median(readings),
    }


def prefill(engine: NativeEngine, length: int, rounds: int = 3) -> dict[str, Any]:
    """A prompt of ``length`` tokens, logits of the last."""
    prompt = [[i % engine.config.vocab_size for i in range(length)]]
    times, peaks = [], []
    for _ in range(rounds):
        peaks.append(product_peak(engine))
        start = time.perf_counter()
        engine.forward(prompt)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    config = engine.config
    work = length * operations_per_token(config, head=False)
    work += 2 * config.vocab_size * config.hidden_size
    return {
        "length": length,
        "tokens_per_second": length / median,
        "operations_per_second": work / median,
        "peak_measured": max(peaks),
        "share_of_peak": work / median / max(peaks),
    }


def batch(engine: NativeEngine, size: int, steps: int = 12) -> dict[str, Any]:
    """``size`` sequences decoding together."""
    state: State | None = None
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        _, state = engine.forward([[1]] * size, state)
        times.append(time.perf_counter() - start)
    median = statistics.median(times[1:])
    return {"sequences": size, "ms_per_step": 1e3 * median, "tokens_per_second": size / median}


def at_positions(
    engine: NativeEngine, positions: Sequence[int], steps: int = 24
) -> list[dict[str, Any]]:
    """The time of a token after this many others: what a recurrent model keeps flat.

    Positions take turns, so that a neighbour's burst of work falls on all of them alike.
    """
    states: list[State] = []
    state: State | None = None
    at = 0
    for position in sorted(positions):
        _, state = engine.forward([[1] * (position - at)], state, logits="none")
        states.append(state)
        at = position
    times: list[list[float]] = [[] for _ in states]
    for _ in range(steps):
        for i, before in enumerate(states):
            start = time.perf_counter()
            engine.forward([[1]], before)
            times[i].append(time.perf_counter() - start)
    return [
        {"position": p, "ms_per_token": 1e3 * statistics.median(t)}
        for p, t in zip(sorted(positions), times)
    ]


def memory() -> dict[str, int]:
    """Resident bytes of this process: now, now without what files map, and at its peak."""
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"peak": peak if sys.platform == "darwin" else peak * 1024}
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        found["resident"] = int(fields["VmRSS"].split()[0]) * 1024
        found["anonymous"] = int(fields["RssAnon"].split()[0]) * 1024
    return found


def thread_counts(most: int | None = None) -> list[int]:
    """1, 2, 4 … and all."""
    most = most or available_threads()
    return sorted({*(1 << i for i in range(most.bit_length())), most} & {*range(1, most + 1)})


def plot_positions(found: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """A picture of tokens a second against position."""
    speeds = [1e3 / f["ms_per_token"] for f in found]
    with picture(path, 7, 4) as figure:
        axes = figure.subplots()
        axes.plot([f["position"] for f in found], speeds, "o-")
        axes.set(xscale="log", xlabel="position", ylabel="tokens a second", title=title)
        axes.set_ylim(0, 1.2 * max(speeds))
        axes.grid(alpha=0.3)
