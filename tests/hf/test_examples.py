"""The examples run as they are, with a folder as argument and with the bundled model."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import wkv.api

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def run(name: str, arguments: list[str], monkeypatch, capsys) -> str:
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("bundled", [False, True], ids=["a folder", "the bundled model"])
@pytest.mark.parametrize(
    ("name", "begins"),
    [
        ("hf_pipeline", "It was a dark night"),
        ("hf_generate", "\nIt was a dark night"),
        ("hf_raven", "### Instruction: Tell me about ravens\n### Response:"),
        ("hf_state", "True\n"),
    ],
)
def test_example(name, begins, bundled, folder, monkeypatch, capsys):
    if bundled and not (wkv.api.BUNDLED / "model.safetensors").is_file():
        pytest.skip("this checkout has no bundled model yet")
    said = run(name, [] if bundled else [str(folder)], monkeypatch, capsys)
    assert said.startswith(begins)
    assert len(said) > len(begins) + 10
