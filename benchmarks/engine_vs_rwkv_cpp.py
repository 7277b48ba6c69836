"""The native engine beside rwkv.cpp, the ``rwkv`` package and transformers, on the same weights.

    python benchmarks/engine_vs_rwkv_cpp.py MODEL --library librwkv.so [--peers rwkv,transformers]

MODEL is a checkpoint, or a published size (``169m`` … ``14b``) for random weights. Runs are
interleaved: every round times each engine once, and reads memory once; medians are given. Needs a
build of rwkv.cpp (see rwkv_cpp.py), whose files are written into --work and used again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, table
from rwkv_cpp import RwkvCpp, converted

from wkv import _native
from wkv.checkpoint import convert, open_checkpoint
from wkv.checkpoint.names import expected_tensors, to_hf
from wkv.config import PRESETS, ModelConfig
from wkv.engine.measure import bandwidth, bytes_per_token, operations_per_token
from wkv.engine.native import NativeEngine, load_format

PAIRS = {"q4": "q4_0", "q8": "q8_0", "bf16": "float16", "f32": "float32"}


def random_checkpoint(config: ModelConfig, folder: Path) -> Path:
    """A folder of random float16 weights: rows repeat, since only their number matters here."""
    from safetensors.numpy import save_file

    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in expected_tensors(config).items():
        if len(shape) == 2:
            some = rng.standard_normal((min(64, shape[0]), shape[1])) / np.sqrt(shape[1])
            tensors[to_hf(name)] = np.resize(some.astype(np.float16), shape)
        else:
            tensors[to_hf(name)] = rng.uniform(0.2, 0.8, shape).astype(np.float16)
    save_file(tensors, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv", **config.to_dict()}))
    return folder


@dataclass
class Package:
    """A PyTorch package, float32: one step of decoding, and where it can, a whole prompt."""

    step: Callable[[], Any]
    prompt: Callable[[list[int]], Any] | None


def torch_peers(names: list[str], source: Path, threads: int) -> dict[str, Package]:
    """The ``rwkv`` package and transformers' RWKV, as asked for."""
    import os

    found: dict[str, Package] = {}
    if not names:
        return found
    os.environ.update(RWKV_V7_ON="0", RWKV_JIT_ON="0", RWKV_CUDA_ON="0")
    import torch

    torch.set_num_threads(threads)
    if "rwkv" in names:
        from rwkv.model import RWKV

        with tempfile.TemporaryDirectory() as folder:
            convert(source, Path(folder) / "model.pth", dtype="bfloat16")
            model = RWKV(model=f"{folder}/model", strategy="cpu fp32", verbose=False)
        held: list[Any] = [None]

        def step() -> None:
            _, held[0] = model.forward([1], held[0])

        found["rwkv package fp32"] = Package(step, lambda ids: model.forward(ids, None))
    if "transformers" in names:
        from transformers.models.rwkv.modeling_rwkv import RwkvForCausalLM

        from wkv.checkpoint import load_state_dict

        with open_checkpoint(source) as checkpoint:
            config = checkpoint.config
        from transformers.models.rwkv.configuration_rwkv import RwkvConfig

        with torch.device("meta"):
            other = RwkvForCausalLM(RwkvConfig(**{**config.to_dict(), "rescale_every": 0}))
        other.load_state_dict(load_state_dict(source, "float32"), assign=True)
        other.eval()
        kept: list[Any] = [None]

        @torch.no_grad()
        def hf_step() -> None:
            kept[0] = other(torch.tensor([[1]]), state=kept[0], use_cache=True).state

        found["transformers fp32"] = Package(hf_step, None)  # its prompts are a loop of steps
    return found


def timed(run: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def steps(run: Callable[[], Any], count: int = 8) -> float:
    """Median seconds of some calls."""
    return statistics.median(timed(run) for _ in range(count))


@dataclass
class Contest:
    """The engines by our format's name, rwkv.cpp's under that of its rival, and the packages."""

    ours: dict[str, NativeEngine]
    theirs: dict[str, RwkvCpp]
    packages: dict[str, Package]

    def decode(self, rounds: int) -> tuple[dict[str, list[float]], list[list[str]], float]:
        """Seconds a token by name; ratio and share of bandwidth by format; the bandwidth, B/s."""
        times: dict[str, list[float]] = {}
        pairs: dict[str, list[float]] = {format: [] for format in self.ours}
        shares: dict[str, list[float]] = {format: [] for format in self.ours}
        readings: list[float] = []
        states = {format: engine.forward([[1]])[1] for format, engine in self.ours.items()}
        for turn in range(rounds + 1):  # the first warms up
            for format, engine in self.ours.items():
                reading = bandwidth(engine, 2)

                def run(format: str = format, engine: NativeEngine = engine) -> None:
                    _, states[format] = engine.forward([[1]], states[format])

                mine = steps(run)
                if turn:
                    readings.append(reading)
                    times.setdefault(f"wkv {format}", []).append(mine)
                    shares[format].append(bytes_per_token(engine) / mine / reading)
                if rival := self.theirs.get(format):
                    other = steps(lambda rival=rival: rival.step(1))
                    if turn:
                        times.setdefault(f"rwkv.cpp {PAIRS[format]}", []).append(other)
                        pairs[format].append(other / mine)
            for name, package in self.packages.items():
                took = timed(package.step)
                if turn:
                    times.setdefault(name, []).append(took)
        ratios = [
            [
                format,
                f"{statistics.median(pairs[format]):.2f}" if pairs[format] else "",
                f"{100 * statistics.median(shares[format]):.0f} %",
            ]
            for format in self.ours
        ]
        return times, ratios, statistics.median(readings)

    def prompts(self, prompt: list[int], threads: int) -> list[list[str]]:
        """Name, tokens/s (medians of three) and share of the best product peak seen."""
        times: dict[str, list[float]] = {}
        peaks: dict[str, list[float]] = {}
        for _ in range(3):
            for format, engine in self.ours.items():
                peaks.setdefault(f"wkv {format}", []).append(_native.product_peak(format, threads))
                took = timed(lambda engine=engine: engine.forward([prompt]))
                times.setdefault(f"wkv {format}", []).append(took)
                if rival := self.theirs.get(format):
                    # Its rate is that of its small chunks, however many there are.
                    rival.reset()
                    few = prompt[: 16 * rival.chunk]
                    took = timed(lambda rival=rival, few=few: rival.prompt(few))
                    took *= len(prompt) / len(few)
                    times.setdefault(f"rwkv.cpp {PAIRS[format]}", []).append(took)
            for name, package in self.packages.items():
                if read := package.prompt:
                    times.setdefault(name, []).append(timed(lambda read=read: read(prompt)))
        some = next(iter(self.ours.values()))
        operations = len(prompt) * operations_per_token(some.config, head=False)
        rows = []
        for name, seconds in times.items():
            took = statistics.median(seconds)
            peak = peaks.get(name)
            share = f"{100 * operations / took / max(peak):.0f} %" if peak else ""
            rows.append([name, f"{len(prompt) / took:.0f}", share])
        return rows

    def together(self, sequences: int = 16) -> list[list[str]]:
        """Tokens/s of many sequences that decode together, and times that of one."""
        rows = []
        for format, engine in self.ours.items():
            state, alone = engine.forward([[1]] * sequences)[1], engine.forward([[1]])[1]
            many, one = [], []
            for _ in range(6):
                many.append(timed(lambda: engine.forward([[2]] * sequences, state)))  # noqa: B023
                one.append(timed(lambda: engine.forward([[2]], alone)))  # noqa: B023
            gain = sequences * statistics.median(one) / statistics.median(many)
            rate = sequences / statistics.median(many)
            rows.append([f"wkv {format}", f"{rate:.0f}", f"{gain:.1f}"])
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--library", help="librwkv.so; left out, only this package is measured")
    parser.add_argument("--peers", default="", help="rwkv,transformers")
    parser.add_argument("--formats", default="q4,q8,bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wkv-bench")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    if options.model in PRESETS:
        source = random_checkpoint(PRESETS[options.model], options.work / options.model)
    else:
        source = Path(options.model)
    formats = options.formats.split(",")
    contest = Contest({}, {}, {})
    for format in formats:
        contest.ours[format] = load_format(source, format=format, threads=options.threads)
        if options.library:
            file = converted(source, PAIRS[format], options.work)
            contest.theirs[format] = RwkvCpp(options.library, file, options.threads)
    peers = [name for name in options.peers.split(",") if name]
    contest.packages = torch_peers(peers, source, options.threads)

    times, ratios, read = contest.decode(options.rounds)
    decode = [
        [name, f"{1e3 * statistics.median(t):.2f}", f"{1 / statistics.median(t):.1f}"]
        for name, t in times.items()
    ]
    prompts = contest.prompts([i % 1000 for i in range(options.prompt)], options.threads)
    together = contest.together()
    if options.json:
        result = {"decode": decode, "ratios": ratios, "prompt": prompts, "batch of 16": together}
        print(json.dumps({"machine": machine(), "bandwidth": read, **result}))
        return
    print(f"## {options.model} on {machine()}, {options.threads} threads\n")
    print(f"Memory read at {read / 1e9:.1f} GB/s (median beside the runs)\n")
    print(table(["decode", "ms a token", "tokens/s"], decode), "\n")
    print(table(["format", "times rwkv.cpp", "share of bandwidth"], ratios), "\n")
    print(table([f"prompt of {options.prompt}", "tokens/s", "share of peak"], prompts), "\n")
    print(table(["16 sequences", "tokens/s", "times one"], together))


if __name__ == "__main__":
    main()
