"""``wkv convert``: weights from one format into another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import ConfigError, UnavailableError


def convert(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SRC",
            help="A .pth, safetensors or rwkv.cpp .bin file, a model folder, or a name on the "
            "Hugging Face Hub.",
        ),
    ] = None,
    destination: Annotated[
        Path | None,
        typer.Argument(
            metavar="DST",
            help="NAME.pth, NAME.bin (rwkv.cpp) or a folder (Hugging Face): the ending decides.",
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="hf, pth or rwkv.cpp, whatever DST's ending.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="float32, float16, bfloat16; for rwkv.cpp also q4_0, q4_1, q5_0, q5_1, q8_0. "
            "By default as stored.",
        ),
    ] = None,
    lora: Annotated[
        Path | None, typer.Option("--lora", help="A LoRA .pth to merge on the way.")
    ] = None,
    lora_alpha: Annotated[
        float | None, typer.Option("--lora-alpha", help="The lora_alpha that it was trained with.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer_file",
            "--tokenizer",
            help="tokenizer.json or World vocabulary for a Hugging Face folder. By default the one "
            "beside SRC; with --repo_id, GPT-NeoX's is downloaded for Pile models.",
        ),
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option("--max-shard-size", help="Largest file of a Hugging Face folder.")
    ] = "5GB",
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Replace what is at the destination.")
    ] = False,
    repo_id: Annotated[
        str | None, typer.Option("--repo_id", help="The Hub's repository to take the model from.")
    ] = None,
    checkpoint_file: Annotated[
        str | None,
        typer.Option("--checkpoint_file", help="The file in the repository; without one, SRC."),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option("--output_dir", help="DST as a Hugging Face folder.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option("--size", help="169M, 430M, 1B5, 3B, 7B or 14B: checked, as it is detected."),
    ] = None,
    push_to_hub: Annotated[
        bool, typer.Option("--push_to_hub", help="Upload the folder; needs --model_name.")
    ] = False,
    model_name: Annotated[
        str | None, typer.Option("--model_name", help="Repository to upload to.")
    ] = None,
) -> None:
    """Convert weights: original .pth, Hugging Face folder and rwkv.cpp .bin, in any direction.

    Streams tensor by tensor, checks everything it reads, and replaces DST only when all is written.

    wkv convert RWKV-4-Pile-169M.pth rwkv-4-169m

    wkv convert rwkv-4-169m rwkv-4-169m-Q5_1.bin --dtype q5_1
    """
    from .. import hub
    from ..checkpoint import convert as run
    from ..checkpoint import open_checkpoint
    from ..checkpoint.convert import format_of, require_size

    name = _name(source, repo_id, checkpoint_file)
    if output_dir is not None:
        if destination is not None:
            raise ConfigError("both DST and --output_dir are given: give one")
        if format not in (None, "hf"):
            raise ConfigError(f"--output_dir is a Hugging Face folder, not {format}: give DST")
        destination, format = output_dir, "hf"
    if push_to_hub and not model_name:
        raise ConfigError("--push_to_hub needs --model_name, the repository to upload to")
    if destination is None:
        raise ConfigError("no destination: give DST, or --output_dir for a Hugging Face folder")
    folder = (format or format_of(destination)) == "hf"
    if push_to_hub and not folder:
        raise ConfigError("--push_to_hub uploads Hugging Face folders: name a folder as DST")
    published = repo_id or (hub.is_repository_name(name) and not Path(name).exists())
    path = hub.download(name) if published else Path(name)
    with open_checkpoint(path) as checkpoint:
        if size:
            require_size(checkpoint, size)
        if published and folder and tokenizer is None:
            tokenizer = _published_tokenizer(path, checkpoint.config.vocab_size)
    with _progress() as progress:
        done = run(
            path,
            destination,
            format=format,
            dtype=dtype,
            lora=lora,
            lora_alpha=lora_alpha,
            tokenizer=tokenizer,
            max_shard_size=max_shard_size,
            overwrite=force,
            progress=progress,
        )
    for note in done.notes:
        typer.echo(note, err=True)
    if push_to_hub:
        _upload(done.path, str(model_name))
    typer.echo(f"{done.path}: {done.format}, {done.dtype}, {done.nbytes:,} bytes of weights")


def _name(source: str | None, repo_id: str | None, checkpoint_file: str | None) -> str:
    if source is not None and (repo_id or checkpoint_file):
        raise ConfigError("both SRC and --repo_id or --checkpoint_file are given: give one")
    name = "/".join(part for part in (source, repo_id, checkpoint_file) if part)
    if not name:
        raise ConfigError("no source: give SRC, or --repo_id and --checkpoint_file")
    return name


def _published_tokenizer(path: Path, vocab_size: int) -> str | None:
    """GPT-NeoX's tokenizer for a Pile model that was downloaded without one, if it can be had."""
    from ..config import PILE_VOCAB_SIZE
    from ..errors import TokenizerError
    from ..tokenizer import NEOX_REPOSITORIES, find_tokenizer

    if vocab_size != PILE_VOCAB_SIZE:
        return None
    try:
        find_tokenizer(path if path.is_dir() else path.parent, vocab_size)
    except TokenizerError:
        from huggingface_hub import hf_hub_download

        try:
            return hf_hub_download(NEOX_REPOSITORIES[0], "tokenizer.json")
        except Exception as error:  # the library's errors, the network's, the cache's
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            typer.echo(f"no tokenizer from {NEOX_REPOSITORIES[0]}: {reason}", err=True)
    return None


def _upload(folder: Path, repo_id: str) -> None:
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    except Exception as error:  # the library's errors, the network's
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UnavailableError(
            f"{folder} is written, but could not be uploaded to {repo_id}: {reason}"
        ) from error


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], Any] | None]:
    """A bar on the terminal; nothing where stderr is not one."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, name: bar.update(
            task, completed=done, total=total, description=name
        )
