"""What the benchmarks share: interleaved medians, the machine's peaks, and Markdown tables."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def interleave(
    runs: Mapping[str, Callable[[], Any]], rounds: int = 5, warmup: int = 1
) -> dict[str, list[float]]:
    """Time every run in turn, ``rounds`` times: A B C A B C …, so that a slow minute hits all.

    Returns seconds per run, in order.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(warmup + rounds):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            elapsed = time.perf_counter() - begin
            if i >= warmup:
                times[name].append(elapsed)
    return times


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median of the pairwise ratios slow ÷ fast, which cancels what both rounds suffered."""
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def matmul_run(dtype: Any, size: int = 1536) -> tuple[Callable[[], None], float]:
    """A square matrix product to time, and its floating-point operations: the arithmetic peak."""
    import torch

    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)

    def run() -> None:
        torch.mm(a, b)

    return run, 2.0 * size**3


def machine() -> str:
    """The processor's name and the number of threads in use."""
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return name


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def report(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool) -> None:
    """Print a table, or the same as one JSON object."""
    if as_json:
        print(json.dumps({"title": title, "rows": [dict(zip(header, r)) for r in rows]}))
    else:
        print(f"## {title}\n\n{table(header, rows)}\n")
