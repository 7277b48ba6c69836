"""The native engine beside rwkv.cpp, the ``rwkv`` package and transformers, on the same weights.

    python benchmarks/engine_vs_rwkv_cpp.py MODEL --library librwkv.so [--peers rwkv,transformers]

MODEL is a checkpoint, or a published size (``169m`` … ``14b``) for random weights. Build rwkv.cpp
for this very CPU (``-DCMAKE_C_FLAGS=-march=native -DRWKV_AVX512=ON``). Runs are interleaved: every
round times each engine once, and reads memory once; medians are given. rwkv.cpp's files are written
by ``wkv.checkpoint.convert`` into --work and used again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, table

from wkv import _native
from wkv.checkpoint import convert, open_checkpoint
from wkv.checkpoint.names import expected_tensors, to_hf
from wkv.config import PRESETS, ModelConfig
from wkv.engine.measure import bandwidth, bytes_per_token
from wkv.engine.native import NativeEngine, load_format

PAIRS = (("q4", "q4_0"), ("q8", "q8_0"), ("bf16", "float16"), ("f32", "float32"))
# rwkv.cpp unrolls its graph over tokens and layers, and aborts where it has too many nodes.
MOST_NODES = 4096
NODES = 44  # a token and layer


class RwkvCpp:
    """rwkv.cpp through its C interface: one sequence, state in and out."""

    def __init__(self, library: str, file: Path, threads: int) -> None:
        self.lib = ctypes.CDLL(library)
        self.lib.rwkv_init_from_file.restype = ctypes.c_void_p
        self.lib.rwkv_init_from_file.argtypes = [ctypes.c_char_p, ctypes.c_uint32]
        floats, ids = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_uint32)
        self.lib.rwkv_eval.argtypes = [ctypes.c_void_p, ctypes.c_uint32, floats, floats, floats]
        self.lib.rwkv_eval_sequence.argtypes = [
            ctypes.c_void_p, ids, ctypes.c_size_t, floats, floats, floats,
        ]  # fmt: skip
        for name in ("rwkv_get_state_len", "rwkv_get_logits_len"):
            getattr(self.lib, name).restype = ctypes.c_size_t
            getattr(self.lib, name).argtypes = [ctypes.c_void_p]
        self.context = self.lib.rwkv_init_from_file(str(file).encode(), threads)
        if not self.context:
            raise SystemExit(f"rwkv.cpp cannot load {file}")
        self.state = np.zeros(self.lib.rwkv_get_state_len(self.context), np.float32)
        self.lib.rwkv_get_n_layer.restype = ctypes.c_size_t
        self.lib.rwkv_get_n_layer.argtypes = [ctypes.c_void_p]
        self.chunk = MOST_NODES // NODES // self.lib.rwkv_get_n_layer(self.context)
        self.logits = np.zeros(self.lib.rwkv_get_logits_len(self.context), np.float32)
        self.started = False

    def _pointers(self) -> tuple[Any, Any, Any]:
        floats = ctypes.POINTER(ctypes.c_float)
        state = self.state.ctypes.data_as(floats)
        return (state if self.started else None), state, self.logits.ctypes.data_as(floats)

    def reset(self) -> None:
        self.started = False

    def step(self, token: int) -> np.ndarray:
        assert self.lib.rwkv_eval(self.context, token, *self._pointers())
        self.started = True
        return self.logits

    def prompt(self, tokens: list[int]) -> None:
        for at in range(0, len(tokens), self.chunk):
            part = np.array(tokens[at : at + self.chunk], np.uint32)
            ids = part.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
            assert self.lib.rwkv_eval_sequence(self.context, ids, len(part), *self._pointers())
            self.started = True

    def perplexity(self, ids: list[int]) -> float:
        self.reset()
        total = 0.0
        for token, target in pairwise(ids):
            logits = self.step(token).astype(np.float64)
            top = logits.max()
            total += np.log(np.exp(logits - top).sum()) + top - logits[target]
        return float(np.exp(total / (len(ids) - 1)))


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


def torch_peers(names: list[str], source: Path, threads: int) -> dict[str, Callable[[], None]]:
    """One step of decoding of the PyTorch packages, float32."""
    import os

    steps: dict[str, Callable[[], None]] = {}
    if not names:
        return steps
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

        steps["rwkv package fp32"] = step
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

        steps["transformers fp32"] = hf_step
    return steps


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--library", help="librwkv.so; left out, only this package is measured")
    parser.add_argument("--peers", default="", help="rwkv,transformers")
    parser.add_argument("--formats", default="q4,q8,bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "wkv-bench")
    parser.add_argument("--eval", type=Path, help="a text: perplexity of each format too")
    parser.add_argument("--eval-tokens", type=int, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    if options.model in PRESETS:
        source = random_checkpoint(PRESETS[options.model], options.work / options.model)
    else:
        source = Path(options.model)
    formats = options.formats.split(",")
    ours: dict[str, NativeEngine] = {}
    theirs: dict[str, RwkvCpp] = {}
    for format, kind in PAIRS:
        if format not in formats:
            continue
        ours[format] = load_format(source, format=format, threads=options.threads)
        if options.library:
            file = options.work / f"{source.name}-{kind}.bin"
            if not file.exists():
                convert(source, file, dtype=kind)
            theirs[format] = RwkvCpp(options.library, file, options.threads)
    packages = torch_peers([p for p in options.peers.split(",") if p], source, options.threads)

    decode: dict[str, list[float]] = {}
    readings: list[float] = []
    states = {f: e.forward([[1]])[1] for f, e in ours.items()}
    pairs: dict[str, list[float]] = {f: [] for f in ours}
    shares: dict[str, list[float]] = {f: [] for f in ours}
    steps = 8
    for turn in range(options.rounds + 1):
        for format, engine in ours.items():
            reading = bandwidth(engine, 2)
            readings.append(reading)

            def run(format: str = format, engine: NativeEngine = engine) -> None:
                _, states[format] = engine.forward([[1]], states[format])

            mine = statistics.median(timed(run) for _ in range(steps))
            if turn:
                decode.setdefault(f"wkv {format}", []).append(mine)
                shares[format].append(bytes_per_token(engine) / mine / reading)
            if format in theirs:
                other = statistics.median(
                    timed(lambda: theirs[format].step(1))  # noqa: B023
                    for _ in range(steps)
                )
                if turn:
                    decode.setdefault(f"rwkv.cpp {dict(PAIRS)[format]}", []).append(other)
                    pairs[format].append(other / mine)
        for name, step in packages.items():
            took = timed(step)
            if turn:
                decode.setdefault(name, []).append(took)

    rows = [
        [name, f"{1e3 * statistics.median(t):.2f}", f"{1 / statistics.median(t):.1f}"]
        for name, t in decode.items()
    ]
    ratios = [
        [
            f,
            f"{statistics.median(p):.2f}" if p else "",
            f"{100 * statistics.median(shares[f]):.0f} %",
        ]
        for f, p in pairs.items()
    ]
    prompt = [i % 1000 for i in range(options.prompt)]
    speeds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for _ in range(3):
        for format, engine in ours.items():
            peak = _native.product_peak(format, options.threads)
            peaks[format] = max(peaks.get(format, 0), peak)
            speeds.setdefault(f"wkv {format}", []).append(timed(lambda: engine.forward([prompt])))  # noqa: B023
            if format in theirs:
                theirs[format].reset()
                speeds.setdefault(f"rwkv.cpp {dict(PAIRS)[format]}", []).append(
                    timed(lambda: theirs[format].prompt(prompt))  # noqa: B023
                )
    prompts = [[n, f"{len(prompt) / statistics.median(t):.0f}"] for n, t in speeds.items()]
    together = []
    for format, engine in ours.items():
        state = engine.forward([[1]] * 16)[1]
        many, one = [], []
        for _ in range(6):
            many.append(timed(lambda: engine.forward([[2]] * 16, state)))  # noqa: B023
            one.append(timed(lambda: engine.forward([[2]], states[format])))  # noqa: B023
        gain = 16 * statistics.median(one) / statistics.median(many)
        together.append([f"wkv {format}", f"{16 / statistics.median(many):.0f}", f"{gain:.1f}"])

    result = {"decode": rows, "ratios": ratios, "prompt": prompts, "batch of 16": together}
    if options.eval:
        result["perplexity"] = qualities(options, source, ours, theirs)
    if options.json:
        print(json.dumps({"machine": machine(), **result}))
        return
    print(f"## {options.model} on {machine()}, {options.threads} threads\n")
    print(f"Memory read at {statistics.median(readings) / 1e9:.1f} GB/s (median beside the runs)\n")
    print(table(["decode", "ms a token", "tokens/s"], rows), "\n")
    print(table(["format", "times rwkv.cpp", "share of bandwidth"], ratios), "\n")
    print(table([f"prompt of {len(prompt)}", "tokens/s"], prompts), "\n")
    print(table(["16 sequences", "tokens/s", "times one"], together), "\n")
    if options.eval:
        print(table(["perplexity", "", "against float32"], result["perplexity"]))


def qualities(
    options: argparse.Namespace,
    source: Path,
    ours: dict[str, NativeEngine],
    theirs: dict[str, RwkvCpp],
) -> list[list[str]]:
    from wkv.engine.perplexity import perplexity
    from wkv.tokenizer import find_tokenizer

    ids = find_tokenizer(source, next(iter(ours.values())).config.vocab_size).encode(
        options.eval.read_text(encoding="utf-8")
    )[: options.eval_tokens]
    exact = perplexity(load_format(source, format="f32", threads=options.threads), ids)
    found = {"wkv f32": exact}
    for format, engine in ours.items():
        found[f"wkv {format}"] = perplexity(engine, ids)
    for kind in ("q4_0", "q4_1", "q8_0", "float16"):
        if options.library:
            file = options.work / f"{source.name}-{kind}.bin"
            if not file.exists():
                convert(source, file, dtype=kind)
            found[f"rwkv.cpp {kind}"] = RwkvCpp(options.library, file, options.threads).perplexity(
                ids
            )
    return [[n, f"{p:.4f}", f"{100 * (p / exact - 1):+.3f} %"] for n, p in found.items()]


if __name__ == "__main__":
    sys.exit(main())
