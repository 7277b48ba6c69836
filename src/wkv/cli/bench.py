"""``wkv bench``: how fast the native engine is here, and how fast it could be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError


def bench(
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[MODEL]", help="A file or folder; by default the bundled model."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="Random weights of a published size instead: 169m … 14b."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option("--format", help="f32, bf16, q8 or q4; by default as the model is stored."),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", envvar="WKV_NUM_THREADS", help="By default every CPU."),
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt", help="Tokens of the prompts measured.")] = 512,
    sequences: Annotated[
        int, typer.Option("--sequences", help="The largest batch that decodes together.")
    ] = 16,
    positions: Annotated[
        int, typer.Option("--positions", help="The last position of the flatness measurement.")
    ] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="PNG", help="Tokens/s against position.")
    ] = None,
) -> None:
    """Measure decoding, prompts, batches, threads and memory.

    Speeds are given with their share of the memory bandwidth or arithmetic peak, measured in the
    same run. Close other programs first.

    wkv bench rwkv-4-169m --format q4

    wkv bench --size 1b5 --format q8 --json
    """
    if model is not None and size is not None:
        raise ConfigError("both MODEL and --size are given: give one")
    for name, value in (("prompt", prompt), ("sequences", sequences), ("positions", positions)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}: give at least 1")
    if plot is not None:
        from ..picture import need_matplotlib

        need_matplotlib("--plot")
    found = _measure(model, size, format, threads, prompt, sequences, positions)
    if plot is not None:
        from ..engine.measure import plot_positions

        name = f"{Path(found['model']).name}, {found['format']}, {found['threads']} threads"
        plot_positions(found["positions"], plot, name)
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    for line in _lines(found):
        typer.echo(line)
    if plot is not None:
        typer.echo(f"picture: {plot}")


def _measure(
    model: Path | None,
    size: str | None,
    format: str | None,
    threads: int | None,
    prompt: int,
    sequences: int,
    positions: int,
) -> dict[str, Any]:
    import time

    from ..config import preset
    from ..engine import measure
    from ..engine.native import NativeEngine, load_format

    def load(count: int | None) -> NativeEngine:
        if size is not None:
            return measure.synthetic_engine(preset(size), format or "f32", threads=count)
        return load_format(path, format=format, threads=count)

    if size is None:
        from ..api import BUNDLED

        path = model if model is not None else BUNDLED
    start = time.perf_counter()
    engine = load(threads)
    engine.forward([[1]])
    found: dict[str, Any] = {
        "model": size or str(path),
        "parameters": engine.config.parameters,
        "format": engine.format,
        "instruction_set": engine.instruction_set,
        "threads": engine.threads,
        "weights_bytes": engine.nbytes,
        "load_to_first_token_s": time.perf_counter() - start,
        "decode": measure.decode(engine),
        "prefill": [
            measure.prefill(engine, n) for n in sorted({min(prompt, 32), min(prompt, 128), prompt})
        ],
        "batch": [measure.batch(engine, 1 << i) for i in range(sequences.bit_length())],
        "positions": measure.at_positions(engine, _decades(positions)),
        "memory": measure.memory(),
    }
    found["threads_decode"] = []
    for count in measure.thread_counts(engine.threads):
        one = load(count) if count != engine.threads else engine
        found["threads_decode"].append({"threads": count, **measure.decode(one, 32)})
    return found


def _decades(last: int) -> list[int]:
    return sorted({n for n in (10, 100, 1000, 10_000, 100_000, 1_000_000) if n < last} | {last})


def _lines(found: dict[str, Any]) -> list[str]:
    decode, memory = found["decode"], found["memory"]
    first = found["positions"][0]["ms_per_token"]
    lines = [
        f"{found['model']}: {found['parameters'] / 1e6:,.1f}M parameters, {found['format']}, "
        f"{found['weights_bytes'] / 1e6:,.1f} MB, {found['instruction_set']}, "
        f"{found['threads']} threads",
        f"load to first token   {found['load_to_first_token_s']:.2f} s",
        f"decode                {decode['tokens_per_second']:,.1f} tokens/s "
        f"({decode['ms_per_token']:.2f} ms; {decode['bytes_per_token'] / 1e6:,.1f} MB a token: "
        f"{100 * decode['share_of_bandwidth']:.0f} % of {decode['bandwidth_measured'] / 1e9:.1f} "
        "GB/s)",
    ]
    lines += [
        f"prompt of {p['length']:<6}      {p['tokens_per_second']:,.1f} tokens/s "
        f"({p['operations_per_second'] / 1e9:,.0f} of {p['peak_measured'] / 1e9:,.0f} Gop/s: "
        f"{100 * p['share_of_peak']:.0f} %)"
        for p in found["prefill"]
    ]
    lines += [
        f"{b['sequences']:>4} sequences        {b['tokens_per_second']:,.1f} tokens/s "
        f"({b['ms_per_step']:.2f} ms a step)"
        for b in found["batch"]
    ]
    lines += [
        f"{t['threads']:>4} threads          {t['tokens_per_second']:,.1f} tokens/s"
        for t in found["threads_decode"]
    ]
    lines += [
        f"at position {p['position']:<9,} {p['ms_per_token']:.3f} ms "
        f"({p['ms_per_token'] / first:.2f} × the first)"
        for p in found["positions"]
    ]
    beyond = ""
    if "anonymous" in memory:
        beyond = f", {memory['anonymous'] / 1e6:,.1f} MB of it this process's own"
    lines.append(f"memory                {memory['peak'] / 1e6:,.1f} MB at the peak{beyond}")
    return lines
