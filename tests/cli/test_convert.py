from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.checkpoint.weights import WEIGHTS, save_pth
from wkv import cli
from wkv.checkpoint import open_checkpoint
from wkv.config import ModelConfig


def run(*arguments):
    return CliRunner().invoke(cli.app, ["convert", *map(str, arguments)], prog_name="wkv")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a model in it."""
    monkeypatch.chdir(tmp_path)
    save_pth(tmp_path / "m.pth", WEIGHTS, "float16")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "destination", "format", "dtype"),
    [
        (("m.pth", "hf"), "hf", "hf", "float16"),
        (("m.pth", "x.pth", "--dtype", "BF16"), "x.pth", "pth", "bfloat16"),
        (("m.pth", "x.bin"), "x.bin", "rwkv.cpp", "float16"),
        (("m.pth", "x.bin", "--dtype", "Q5_1"), "x.bin", "rwkv.cpp", "q5_1"),
        (("m.pth", "x", "--format", "pth"), "x", "pth", "float16"),
        (("--checkpoint_file", "m.pth", "--output_dir", "o.ut"), "o.ut", "hf", "float16"),
        (("m.pth", "--output_dir", "out", "--max-shard-size", "20KB"), "out", "hf", "float16"),
    ],
)
def test_the_ending_or_the_options_decide(here, arguments, destination, format, dtype):
    done = run(*arguments)
    assert done.exit_code == 0, done.stderr
    assert destination in done.stdout
    with open_checkpoint(here / destination) as checkpoint:
        assert (checkpoint.format, checkpoint.dtype) == (format, dtype)


WRONG = {
    "no source": ((), "no source"),
    "no destination": (("m.pth",), "no destination"),
    "two sources": (("m.pth", "x.pth", "--repo_id", "a/b"), "give one"),
    "two destinations": (("m.pth", "x.pth", "--output_dir", "o"), "give one"),
    "a folder in another format": (("m.pth", "--output_dir", "o", "--format", "pth"), "give DST"),
    "a push without a name": (("m.pth", "o", "--push_to_hub"), "--model_name"),
    "a push of a file": (
        ("m.pth", "o.pth", "--push_to_hub", "--model_name", "a/b"),
        "Hugging Face folders",
    ),
    "a missing file": (("no.pth", "x.pth"), "no such file"),
    "a wrong size": (("m.pth", "x.pth", "--size", "169M"), "num_hidden_layers is 2, not 12"),
    "an unknown size": (("m.pth", "x.pth", "--size", "huge"), "unknown size 'huge'"),
    "an unknown dtype": (("m.pth", "x.pth", "--dtype", "int3"), "unknown dtype 'int3'"),
    "an existing destination": (("m.pth", "m.pth"), "--force"),
    "a lora without alpha": (("m.pth", "x.pth", "--lora", "m.pth"), "not a LoRA file"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_line_and_an_exit_code(here, case):
    arguments, message = WRONG[case]
    done = run(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert re.fullmatch(rf"wkv: .*{re.escape(message)}.*\n", done.stderr)
    assert {p.name for p in here.iterdir()} == {"m.pth"}


def test_a_damaged_file_is_one_line_and_no_traceback(here):
    blob = (here / "m.pth").read_bytes()
    (here / "m.pth").write_bytes(blob[: len(blob) // 2])
    done = subprocess.run(
        [sys.executable, "-m", "wkv", "convert", "m.pth", "x.bin"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert re.fullmatch(r"wkv: m\.pth: damaged.*\n", done.stderr)
    assert {p.name for p in here.iterdir()} == {"m.pth"}


def test_a_lora_is_merged(here):
    lora = {
        "blocks.0.att.key.lora_A": np.ones((2, 32), np.float32),
        "blocks.0.att.key.lora_B": np.ones((32, 2), np.float32),
    }
    save_pth(here / "lora.pth", lora)
    done = run("m.pth", "x.pth", "--lora", "lora.pth", "--lora-alpha", "3", "--dtype", "float32")
    assert done.exit_code == 0, done.stderr
    name = "blocks.0.att.key.weight"
    want = open_checkpoint(here / "m.pth").tensor(name) + 3
    got = open_checkpoint(here / "x.pth").tensor(name)
    np.testing.assert_allclose(got, want, atol=2e-3)  # the sum is rounded to the model's float16


def test_force_replaces(here):
    assert run("m.pth", "m.pth", "--force", "--dtype", "float32").exit_code == 0
    assert open_checkpoint(here / "m.pth").dtype == "float32"


def test_a_bar_is_drawn_on_a_terminal_only(here):
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "wkv", "convert", "m.pth", "x.bin"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.Popen(command, stderr=slave, stdout=subprocess.PIPE, env=environment)
    os.close(slave)
    drawn = b""
    while True:
        try:
            part = os.read(master, 4096)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        drawn += part
    assert done.wait() == 0
    assert b"63.0/63.0 kB" in drawn
    plain = subprocess.run([*command, "--force"], capture_output=True, check=True)
    assert plain.stderr == b""


# --- the Hub ----------------------------------------------------------------------------------


def test_the_original_scripts_flags_download_convert_and_upload(here, fake_hub):
    fake_hub.add("BlinkDL/rwkv-4-test", {"RWKV-4-ctx2048.pth": (here / "m.pth").read_bytes()})
    done = run(
        *("--repo_id", "BlinkDL/rwkv-4-test", "--checkpoint_file", "RWKV-4-ctx2048.pth"),
        *("--output_dir", "out", "--push_to_hub", "--model_name", "tester/converted"),
    )
    assert done.exit_code == 0, done.stderr
    uploaded = fake_hub.files("tester/converted")
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        assert uploaded[name] == (here / "out" / name).read_bytes()
    assert open_checkpoint(here / "out").config.context_length == 2048


def test_a_repository_may_be_the_source(here, fake_hub):
    assert run("m.pth", "hf").exit_code == 0
    fake_hub.add("RWKV/test", {p.name: p.read_bytes() for p in (here / "hf").iterdir()})
    for arguments in (("RWKV/test", "a.bin"), ("--repo_id", "RWKV/test", "--output_dir", "b")):
        done = run(*arguments)
        assert done.exit_code == 0, done.stderr
    assert open_checkpoint(here / "a.bin").config == open_checkpoint(here / "b").config


def test_a_repository_that_is_not_there_is_one_line(here, fake_hub):
    done = run("--repo_id", "nobody/nothing", "--checkpoint_file", "m.pth", "--output_dir", "out")
    assert done.exit_code == 1
    assert done.stderr.startswith("wkv: nobody/nothing")
    assert done.stderr.count("\n") == 1


def test_an_upload_that_fails_says_what_is_written(here, fake_hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    done = run("m.pth", "out", "--push_to_hub", "--model_name", "tester/x")
    assert done.exit_code == 1
    assert "out is written, but could not be uploaded to tester/x" in done.stderr
    assert (here / "out" / "config.json").is_file()


@pytest.fixture
def pile_model(here):
    """A model of the Pile vocabulary, which needs GPT-NeoX's tokenizer."""
    from tests.oracles.models import random_weights

    config = ModelConfig(hidden_size=32, num_hidden_layers=1)
    return save_pth(here / "pile.pth", random_weights(config), "float16")


def test_a_pile_model_from_the_hub_gets_the_published_tokenizer(here, fake_hub, pile_model):
    tokenizer = b'{"not": "read before it is used"}'
    fake_hub.add("BlinkDL/pile", {"pile.pth": pile_model.read_bytes()})
    done = run("--repo_id", "BlinkDL/pile", "--checkpoint_file", "pile.pth", "--output_dir", "a")
    assert done.exit_code == 0, done.stderr
    assert "no tokenizer from EleutherAI/gpt-neox-20b" in done.stderr
    assert "written without a tokenizer" in done.stderr
    fake_hub.add("EleutherAI/gpt-neox-20b", {"tokenizer.json": tokenizer})
    done = run("--repo_id", "BlinkDL/pile", "--checkpoint_file", "pile.pth", "--output_dir", "b")
    assert done.exit_code == 1
    assert "damaged tokenizer" in done.stderr
    assert not (here / "b").exists()


def test_the_published_tokenizer_is_written(here, fake_hub, pile_model, shared_dir):
    tokenizer = (shared_dir / "20B_tokenizer.json").read_bytes()
    fake_hub.add("BlinkDL/pile", {"pile.pth": pile_model.read_bytes()})
    fake_hub.add("EleutherAI/gpt-neox-20b", {"tokenizer.json": tokenizer})
    done = run("--repo_id", "BlinkDL/pile", "--checkpoint_file", "pile.pth", "--output_dir", "a")
    assert done.exit_code == 0, done.stderr
    assert "without a tokenizer" not in done.stderr
    assert (here / "a" / "tokenizer.json").read_bytes() == tokenizer


def test_no_network_is_used_for_a_local_model(here, fake_hub, pile_model):
    done = run("pile.pth", "a")
    assert done.exit_code == 0, done.stderr
    assert fake_hub.requests == []
    assert "written without a tokenizer" in done.stderr
