"""Peak memory and time of converting a checkpoint, in every direction, beside the usual way.

Makes a float16 ``.pth`` of random weights in a published size (3B: 6 GB; it is streamed to disk and
deleted afterwards), converts it in fresh processes and prints for each

- ``peak``: the most memory that the process held at once (ru_maxrss: its own and mapped files),
- ``own``: the most that was its own (RssAnon), sampled every 10 ms,

and both as shares of the checkpoint. Python and NumPy, some 80 MB, are included.
The peer is what one writes by hand: ``torch.load`` and ``safetensors.torch.save_file``.

    python benchmarks/convert_memory.py --size 3b
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import report

STEPS = (
    # label, source, destination, dtype
    (".pth → Hugging Face", "model.pth", "hf", None),
    ("Hugging Face → .pth", "hf", "again.pth", None),
    (".pth → Hugging Face, bfloat16", "model.pth", "hf-bf16", "bfloat16"),
    (".pth → rwkv.cpp F16", "model.pth", "f16.bin", None),
    ("rwkv.cpp F16 → Hugging Face", "f16.bin", "hf-from-bin", None),
    (".pth → rwkv.cpp Q4_0", "model.pth", "q4_0.bin", "q4_0"),
    (".pth → rwkv.cpp Q5_1", "model.pth", "q5_1.bin", "q5_1"),
    ("rwkv.cpp Q5_1 → .pth, float16", "q5_1.bin", "from-q5_1.pth", "float16"),
)
KEEP = {"hf", "f16.bin", "q5_1.bin"}  # sources of later steps
PEER = "peer: torch.load, safetensors save_file"

CHILD = """
import json, resource, sys, threading, time

peak = 0
def own():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) * 1024
def watch():
    global peak
    while True:
        peak = max(peak, own())
        time.sleep(0.01)
threading.Thread(target=watch, daemon=True).start()
source, destination, dtype, peer = json.loads(sys.argv[1])
if peer:
    import torch
    from safetensors.torch import save_file
    start = time.perf_counter()
    save_file(torch.load(source, weights_only=True), destination)
else:
    from wkv.checkpoint import convert
    start = time.perf_counter()
    convert(source, destination, dtype=dtype)
seconds = time.perf_counter() - start
peak = max(peak, own())
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": most, "own": peak}))
"""


def make_checkpoint(path: Path, size: str) -> int:
    """Stream random float16 weights of a published size into a .pth; its bytes."""
    import numpy as np

    from wkv.checkpoint import expected_tensors
    from wkv.checkpoint.pth import write_pth
    from wkv.checkpoint.tensors import Planned
    from wkv.config import preset

    rng = np.random.default_rng(0)
    # One block of noise, rotated: drawing billions of numbers would take longer than converting.
    noise = (rng.standard_normal(1 << 22) / 50).astype(np.float16)

    def chunks(planned: Planned):
        left = planned.nbytes // 2
        while left:
            part = np.roll(noise, int(rng.integers(1 << 22)))[:left]
            left -= len(part)
            yield part

    plan = [Planned(n, "float16", s) for n, s in expected_tensors(preset(size)).items()]
    with path.open("wb") as out:
        write_pth(out, plan, chunks)
    return path.stat().st_size


def measure(source: Path, destination: Path, dtype: str | None, peer: bool = False) -> dict:
    """Run one conversion in a process of its own."""
    arguments = json.dumps([str(source), str(destination), dtype, peer])
    run = subprocess.run(
        [sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"{source} → {destination} failed:\n{run.stderr}")
    return json.loads(run.stdout)


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="3b", help="169m, 430m, 1b5, 3b, 7b or 14b")
    parser.add_argument("--folder", type=Path, help="where to work; needs 4 times the checkpoint")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        total = make_checkpoint(folder / "model.pth", arguments.size)

        def step(label: str, source: str, destination: str, dtype: str | None, peer: bool) -> None:
            found = measure(folder / source, folder / destination, dtype, peer)
            megabytes = [round(found[key] / 1e6) for key in ("peak", "own")]
            shares = [f"{found[key] / total:.1%}" for key in ("peak", "own")]
            speed = round(total / 1e6 / found["seconds"])
            rows.append([label, round(found["seconds"], 1), speed, *megabytes, *shares])
            print(rows[-1], file=sys.stderr, flush=True)

        for label, source, destination, dtype in STEPS:
            step(label, source, destination, dtype, False)
            if destination not in KEEP:
                remove(folder / destination)
            if destination == "again.pth":
                remove(folder / "hf")
        step(PEER, "model.pth", "peer.safetensors", None, True)
    header = ["step", "seconds", "MB/s", "peak MB", "own MB", "peak share", "own share"]
    title = f"Converting {arguments.size.upper()} in float16, {total / 1e9:.2f} GB"
    report(title, header, rows, arguments.json)


if __name__ == "__main__":
    main()
