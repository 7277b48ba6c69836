from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from tests.engine.conftest import write_checkpoint
from wkv.cli.bench import bench
from wkv.config import ModelConfig
from wkv.engine import measure
from wkv.errors import ConfigError

app = typer.Typer()
app.command()(bench)
SMALL = ("--prompt", "40", "--sequences", "4", "--positions", "200")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    config = ModelConfig(vocab_size=256, hidden_size=64, num_hidden_layers=2)
    return write_checkpoint(tmp_path_factory.mktemp("source"), config)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_it_prints_every_part(source):
    done = run(source, *SMALL, "--format", "q4", "--threads", "1")
    assert done.exit_code == 0, done.output
    for part in ("decode", "prompt of 40", "4 sequences", "1 threads", "position 200", "memory"):
        assert part in done.output


def test_json_and_a_picture(source, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "flat.png"
    done = run(source, *SMALL, "--json", "--plot", picture)
    found = json.loads(done.output)
    assert found["format"] == "f32"
    assert [b["sequences"] for b in found["batch"]] == [1, 2, 4]
    assert [p["position"] for p in found["positions"]] == [10, 100, 200]
    assert found["decode"]["share_of_bandwidth"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("options", [("--size", "169m"), ("--prompt", "0"), ("--format", "q9")])
def test_bad_options_are_refused(source, options):
    assert isinstance(run(source, *options).exception, ConfigError)


def test_a_token_reads_everything_but_the_embedding():
    config = ModelConfig(vocab_size=512, hidden_size=64, num_hidden_layers=1)
    engine = measure.synthetic_engine(config, "f32", threads=1)
    assert engine.nbytes - measure.bytes_per_token(engine) == 512 * 64 * 4
    assert measure.operations_per_token(config, head=True) == 2 * (13 * 64 * 64 + 512 * 64)


def test_a_synthetic_engine_runs_in_every_format():
    config = ModelConfig(vocab_size=100, hidden_size=48, num_hidden_layers=2)
    for format in ("f32", "bf16", "q8", "q4"):
        logits, _ = measure.synthetic_engine(config, format, threads=2).forward([[1, 2, 3]])
        assert logits.shape == (1, 100)


def test_thread_counts_end_with_all():
    assert measure.thread_counts(6) == [1, 2, 4, 6]
    assert measure.thread_counts(1) == [1]


def test_measured_peaks_are_plausible():
    from wkv import _native

    for isa in _native.engine_instruction_sets():
        for format in ("f32", "q8"):
            assert 1e8 < _native.product_peak(format, 1, isa) < 1e14
        assert 1e8 < _native.read_bandwidth(1 << 22, 1, 2, isa) < 1e13
