from __future__ import annotations

import re

import pytest
import typer
from typer.testing import CliRunner

from tests.engine.conftest import write_checkpoint
from wkv.cli.quantize import quantize
from wkv.config import ModelConfig
from wkv.engine.native import load_format
from wkv.errors import ConfigError

app = typer.Typer()
app.command()(quantize)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = ModelConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2)  # reads bytes
    return write_checkpoint(tmp_path_factory.mktemp("source"), config)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_it_writes_a_folder_that_runs(source, tmp_path):
    done = run(source, tmp_path / "q", "--format", "q8")
    assert done.exit_code == 0, done.output
    assert "q8" in done.output
    assert load_format(tmp_path / "q").format == "q8"


def test_eval_prints_perplexity_before_and_after(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 3)
    done = run(source, tmp_path / "q", "--eval", text)
    assert done.exit_code == 0, done.output
    before, after = map(float, re.findall(r"([\d.]+) (?:before|after)", done.output))
    assert 1 < before < 1e6
    assert before != after


def test_keep_gives_a_tensor_its_own_format(source, tmp_path):
    done = run(source, tmp_path / "q", "--keep", "head.weight=f32")
    assert done.exit_code == 0, done.output
    assert load_format(tmp_path / "q").format == "q4"


def test_four_bits_are_calibrated_with_a_text_or_the_models_own(source, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 60)
    files = {}
    for how in ("own", "none", str(text)):
        done = run(source, tmp_path / "q", "--calibrate", how, "--force")
        assert done.exit_code == 0, done.output
        files[how] = (tmp_path / "q" / "model.safetensors").read_bytes()
    assert len(set(files.values())) == 3
    run(source, tmp_path / "q", "--force")
    assert (tmp_path / "q" / "model.safetensors").read_bytes() == files["own"]


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "q2"),
        ("--keep", "head.weight"),
        ("--threads", "0"),
        ("--eval", "no-such-file"),
        ("--calibrate", "no-such-file"),
        ("--calibrate", __file__, "--format", "q8"),
    ],
)
def test_bad_options_write_nothing(source, tmp_path, options):
    done = run(source, tmp_path / "q", *options)
    assert isinstance(done.exception, ConfigError)
    assert list(tmp_path.iterdir()) == []
