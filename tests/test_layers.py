"""Imports run downhill: a module imports only from those above it in the listing of the layout."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "wkv"

# Lowest first: each may import those before it and itself.
LAYERS = (
    "errors",
    "atomic",
    "picture",
    "config",
    "state",
    "tokenizer",
    "checkpoint",
    "ops",
    "model",
    "hf",
    "engine",
    "sampling",
    "generate",
    "embedding",
    "hub",
    "api",
    "data",
    "train",
    "evaluate",
    "chat",
    "serve",
    "cli",
)
# The front door and what runs before any layer: they may name every layer, lazily.
DOORS = ("__init__", "__main__", "_autoregister")


def layer_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    package = ("wkv", *path.relative_to(SOURCE).with_suffix("").parts)[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module.split(".") if node.module else ())))
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "wkv" and len(parts) > 1 and parts[1] in LAYERS:
                found.add(parts[1])
    return found


MODULES = sorted(p for p in SOURCE.rglob("*.py") if layer_of(p) not in DOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_module_imports_only_from_the_layers_below_it(path):
    own = layer_of(path)
    assert own in LAYERS, f"{own} is not in the layout: place it in LAYERS and docs"
    above = {n for n in imported_layers(path) if LAYERS.index(n) > LAYERS.index(own)}
    assert not above, f"{own} imports {sorted(above)}, which lie above it"


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_the_package_leaves_torch_and_transformers_unimported():
    out = run("import sys, wkv; print([m for m in ('torch', 'transformers') if m in sys.modules])")
    assert out.strip() == "[]"


def test_no_file_is_over_five_hundred_lines():
    root = SOURCE.parents[1]
    long = {
        str(p.relative_to(root)): n
        for folder in ("src", "native", "tests", "benchmarks", "scripts", "examples")
        for p in (root / folder).rglob("*")
        if p.suffix in (".py", ".cpp", ".hpp", ".h", ".inc")
        and (n := len(p.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert not long
