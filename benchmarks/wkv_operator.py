"""Time and memory of the wkv operator's implementations beside a PyTorch loop over tokens.

    python benchmarks/wkv_operator.py --rounds 5

All take turns, one call each a round; medians. Memory is what one call adds at its peak, outputs
and gradients included, in a process of its own (Linux). The share of the memory bandwidth counts
every key, value, output and gradient once, against an addition of two such arrays in the same
rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import torch
from harness import interleave, machine, median, ratio, report

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.oracles.wkv_loop import wkv_loop

from wkv.ops import wkv

NAMES = ("loop", "scan", "cpu")
ARRAYS = {"forward": 3, "forward + backward": 3 + 5}  # k, v → y; k, v, grad y → grad k, grad v


def calls(name: str, shape: list[int], dtype: torch.dtype):
    """The two passes, each a function without arguments."""
    torch.manual_seed(0)
    k, v, grad = torch.randn(3, *shape).to(dtype)
    decay = -torch.exp(torch.linspace(-5, 3, shape[2]))  # the published initialisation's range
    leaves = [x.requires_grad_() for x in (k, v, decay, torch.randn(shape[2]))]

    def run():
        if name == "loop":
            return wkv_loop(*leaves)
        return wkv(*leaves, implementation=name)

    def backward():
        torch.autograd.grad(run()[0], leaves, grad)

    return {"forward": torch.no_grad()(run), "forward + backward": backward}


def own_peak(name: str, which: str, shape: list[int], dtype: torch.dtype) -> float:
    """MiB that one call adds to this process at its peak."""

    def status(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    calls(name, [1, 2, shape[2]], dtype)[which]()  # code and threads are loaded
    run = calls(name, shape, dtype)[which]
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def peak(name: str, which: str) -> str:
    """The same in a process of its own, where the system can tell."""
    if not Path("/proc/self/clear_refs").exists():
        return "–"
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name, which]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--shape", nargs=3, type=int, default=[8, 1024, 768], metavar=("B", "T", "A")
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    if args.peak_of:
        print(f"{own_peak(*args.peak_of, args.shape, dtype):.0f}")
        return

    runs = {
        (name, which): run
        for name in NAMES
        for which, run in calls(name, args.shape, dtype).items()
    }
    a, b, out = torch.randn(3, *args.shape).to(dtype)
    runs["add"] = lambda: torch.add(a, b, out=out)
    times = interleave(runs, args.rounds)
    rows = [
        (
            name,
            which,
            f"{median(times[name, which]) * 1e3:.1f}",
            f"{ratio(times['loop', which], times[name, which]):.1f}×",
            f"{ratio(times['add'], times[name, which]) * arrays / 3:.0%}",
            peak(name, which),
        )
        for which, arrays in ARRAYS.items()
        for name in NAMES
    ]
    header = ("implementation", "pass", "ms", "speed", "of bandwidth", "peak MiB")
    title = (
        f"wkv operator, {args.shape} {args.dtype}, {torch.get_num_threads()} threads, {machine()}"
    )
    report(title, header, rows, args.json)


if __name__ == "__main__":
    main()
