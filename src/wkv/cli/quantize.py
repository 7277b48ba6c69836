"""``wkv quantize``: weights in the form that the native engine maps and runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError

if TYPE_CHECKING:
    import numpy as np


def quantize(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SRC", help="A .pth, safetensors or rwkv.cpp .bin file, or a model folder."
        ),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write.")],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            help="q4 (4.5 bits a weight; embedding, and head of a small vocabulary, as in q8), q8 "
            "(8.25), bf16 or f32; bf16 is exact for bfloat16 weights, f32 for all.",
        ),
    ] = "q4",
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="TENSOR=FORMAT",
            help="Another format for one tensor, e.g. head.weight=q8. Repeatable.",
        ),
    ] = None,
    calibrate: Annotated[
        str,
        typer.Option(
            "--calibrate",
            metavar="TEXT",
            help="A text file whose products q4 keeps right; 'own' writes one with the model, "
            "'none' takes seconds and is less exact.",
        ),
    ] = "own",
    evaluate: Annotated[
        Path | None,
        typer.Option(
            "--eval", metavar="TEXT", help="A text file: prints its perplexity before and after."
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", envvar="WKV_NUM_THREADS", help="By default every CPU."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace what is at the destination.")
    ] = False,
) -> None:
    """Pack a model for the native engine: smaller, faster, and opened in no time.

    Streams tensor by tensor and replaces DST only when all is written. By default, q4 first lets
    the model write some text and rounds for that: minutes at 169M, half an hour at 1.5B on two
    cores, with the packed model and one layer's inputs in memory.

    wkv quantize rwkv-4-169m rwkv-4-169m-q4

    wkv quantize rwkv-4-169m rwkv-4-169m-q8 --format q8 --eval book.txt
    """
    from ..checkpoint.quantized import quantize as run
    from ..engine.native import available_threads

    text = _read("--eval", evaluate) if evaluate else None
    if calibrate not in ("own", "none"):
        if format != "q4":
            raise ConfigError(f"--calibrate {calibrate}: only q4 is calibrated, not {format}")
        _read("--calibrate", Path(calibrate))
    formats = dict(_exception(item) for item in keep or [])
    count = available_threads() if threads is None else threads
    if count < 1:
        raise ConfigError(f"--threads is {count}: give at least 1")
    calibration = _calibration(source, calibrate, count) if format == "q4" else None
    with _bar("packing") as advance:
        done = run(
            source,
            destination,
            format=format,
            formats=formats,
            calibration=calibration,
            threads=count,
            overwrite=force,
            progress=lambda at, total, name: advance(at, total),
        )
    for note in done.notes:
        typer.echo(note, err=True)
    typer.echo(
        f"{done.path}: {done.format}, {done.nbytes:,} bytes, "
        f"{done.bits_per_weight:.2f} bits a weight"
    )
    if text is not None:
        before, after, tokens = _perplexities(source, destination, text, count)
        typer.echo(
            f"perplexity of {evaluate} ({tokens:,} tokens): {before:.4f} before, {after:.4f} "
            f"after ({100 * (after / before - 1):+.2f} %)"
        )


def _read(option: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path}: cannot be read as UTF-8 text: {error}") from error


def _encode(source: Path, vocab_size: int, text: str) -> list[int]:
    from ..tokenizer import find_tokenizer

    return find_tokenizer(source if source.is_dir() else source.parent, vocab_size).encode(text)


def _calibration(source: Path, calibrate: str, threads: int) -> np.ndarray | None:
    """Token ids [sequences, tokens] of a text file, or of the model's own writing ('own')."""
    from ..checkpoint import open_checkpoint
    from ..engine.native import load_format
    from ..engine.samples import own_samples, text_samples

    if calibrate == "none":
        return None
    with open_checkpoint(source) as checkpoint:
        if calibrate != "own":
            text = _read("--calibrate", Path(calibrate))
            return text_samples(_encode(source, checkpoint.config.vocab_size, text))
        with _bar("calibrating") as advance:
            engine = load_format(checkpoint, format="q4", threads=threads)
            return own_samples(engine, progress=advance)


def _exception(item: str) -> tuple[str, str]:
    name, equals, format = item.partition("=")
    if not equals:
        raise ConfigError(f"--keep {item!r}: give TENSOR=FORMAT, e.g. head.weight=q8")
    return name, format


def _perplexities(source: Path, packed: Path, text: str, threads: int) -> tuple[float, float, int]:
    """Of the weights as they were (float32 arithmetic) and as they are packed now."""
    from ..checkpoint import open_checkpoint
    from ..engine.native import load_format
    from ..engine.perplexity import perplexity

    with open_checkpoint(source) as checkpoint:
        ids = _encode(source, checkpoint.config.vocab_size, text)
        found = []
        for model, format in ((checkpoint, "f32"), (packed, None)):
            engine = load_format(model, format=format, threads=threads)
            with _bar("evaluating") as advance:
                found.append(perplexity(engine, ids, progress=advance))
            del engine
    return found[0], found[1], len(ids)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], Any]]:
    """A bar on the terminal; nothing where stderr is not one."""
    if not sys.stderr.isatty():
        yield lambda at, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda at, total: bar.update(task, completed=at, total=total)
