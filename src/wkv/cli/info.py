"""``wkv info``: what a file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A weight file or folder, a LoRA, or a state.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print what a file holds: format, version, sizes, precision. Reads headers only."""
    from ..checkpoint import describe

    found = describe(path)
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2))
        return
    rows = list({"model": _model, "lora": _lora, "state": _state}[found["kind"]](found))
    width = max(len(label) for label, _ in rows) + 2
    for label, value in rows:
        typer.echo(f"{label:<{width}}{value}")


def _model(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    config = found["config"]
    version = found["metadata"].get("file_version")
    yield "file", found["path"]
    yield "format", _FORMATS[found["format"]] + (f", version {version}" if version else "")
    yield "model", f"{found['architecture']}{' ' + found['size'] if found['size'] else ''}"
    yield "parameters", f"{found['parameters']:,}"
    yield "layers", str(config["num_hidden_layers"])
    yield (
        "sizes",
        f"hidden {config['hidden_size']}, attention {config['attention_hidden_size']}, "
        f"feed-forward {config['intermediate_size']}",
    )
    known = found["vocabulary"]
    yield "vocabulary", f"{config['vocab_size']}{f', {known}' if known else ''}"
    yield "context", f"trained on {config['context_length']} tokens"
    # The rest of the message is advice for whoever wants text.
    yield "tokenizer", found["tokenizer"] or found["tokenizer_problem"].partition("; ")[0]
    for dtype, part in found["dtypes"].items():
        yield dtype, f"{part['parameters']:,} parameters, {_bytes(part['bytes'])}"
    yield "bytes", f"{found['bytes']:,} ({_bytes(found['bytes'])})"
    if len(found["files"]) > 1:
        for file in found["files"]:
            yield "  shard", f"{file['name']}, {_bytes(file['bytes'])}"


def _lora(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", found["path"]
    yield "format", f"{_FORMATS[found['format']]}, LoRA weights"
    yield "rank", ", ".join(map(str, found["ranks"]))
    yield "matrices", f"{len(found['matrices'])}, as {found['matrices'][0]}"
    yield "whole tensors", str(len(found["whole_tensors"]))
    yield "parameters", f"{found['parameters']:,}"
    yield "precision", ", ".join(found["dtypes"])
    yield "bytes", f"{found['bytes']:,} ({_bytes(found['bytes'])})"


def _state(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "file", found["path"]
    yield "format", f"state of {found['architecture']}, version {found['version']}"
    yield "sequences", str(found["sequences"])
    yield "layers", str(found["layers"])
    yield "sizes", f"hidden {found['hidden_size']}, attention {found['attention_hidden_size']}"
    model = found["model"]
    yield (
        "made by",
        f"a model of {model[0]} layers, hidden {model[1]}, vocabulary {model[4]}"
        if model
        else "an unknown model (no fingerprint)",
    )
    yield "bytes", f"{found['bytes']:,} ({_bytes(found['bytes'])})"


_FORMATS = {
    "pth": "PyTorch .pth",
    "safetensors": "safetensors",
    "hf": "Hugging Face folder",
    "rwkv.cpp": "rwkv.cpp .bin",
}


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
