from __future__ import annotations

import json

import numpy as np
from typer.testing import CliRunner

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_pth
from wkv import cli
from wkv.checkpoint import convert
from wkv.state import State


def info(*arguments):
    return CliRunner().invoke(cli.app, ["info", *map(str, arguments)], prog_name="wkv")


def lines(text: str) -> dict[str, str]:
    return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in text.splitlines()}


def test_a_model_is_told_in_lines(tmp_path):
    save_pth(tmp_path / "RWKV-4-ctx4096.pth", WEIGHTS, "bfloat16")
    shown = lines(info(tmp_path / "RWKV-4-ctx4096.pth").stdout)
    assert shown["format"] == "PyTorch .pth"
    assert shown["parameters"] == f"{CONFIG.parameters:,}"
    assert shown["layers"] == "2"
    assert shown["sizes"] == "hidden 32, attention 32, feed-forward 128"
    assert shown["vocabulary"] == "50"
    assert shown["context"] == "trained on 4096 tokens"
    assert shown["tokenizer"] == "no tokenizer for a vocabulary of 50"
    assert shown["bfloat16"].startswith(f"{CONFIG.parameters:,} parameters")


def test_a_damaged_tokenizer_is_told_from_a_missing_one(tmp_path):
    save_pth(tmp_path / "m.pth", WEIGHTS)
    (tmp_path / "tokenizer.json").write_text("{")
    shown = lines(info(tmp_path / "m.pth").stdout)
    assert shown["tokenizer"].startswith(f"{tmp_path / 'tokenizer.json'}: ")


def test_every_precision_and_shard_is_told(tmp_path):
    save_pth(tmp_path / "m.pth", WEIGHTS)
    convert(tmp_path / "m.pth", tmp_path / "q.bin", dtype="q5_0")
    convert(tmp_path / "m.pth", tmp_path / "hf", max_shard_size="40KB")
    shown = lines(info(tmp_path / "q.bin").stdout)
    assert shown["format"] == "rwkv.cpp .bin, version 101"
    assert {"q5_0", "float16", "float32"} <= set(shown)
    assert info(tmp_path / "hf").stdout.count("model-0000") > 2


def test_json_is_what_describe_gives(tmp_path):
    from wkv.checkpoint import describe

    save_pth(tmp_path / "m.pth", WEIGHTS)
    done = info(tmp_path / "m.pth", "--json")
    assert json.loads(done.stdout) == describe(tmp_path / "m.pth")


def test_a_lora_and_a_state_are_told(tmp_path):
    lora = {
        "blocks.0.att.key.lora_A": np.ones((8, 32), np.float32),
        "blocks.0.att.key.lora_B": np.ones((32, 8), np.float32),
    }
    shown = lines(info(save_pth(tmp_path / "l.pth", lora)).stdout)
    assert shown["format"] == "PyTorch .pth, LoRA weights"
    assert shown["rank"] == "8"
    State.zeros(CONFIG, 2).save(tmp_path / "s.state")
    shown = lines(info(tmp_path / "s.state").stdout)
    assert shown["sequences"] == "2"
    assert shown["format"] == "state of RWKV-4, version 1"
    assert "no fingerprint" in shown["made by"]


def test_what_is_no_model_is_one_line(tmp_path):
    (tmp_path / "x").write_bytes(b"hello, world")
    for name in ("x", "missing"):
        done = info(tmp_path / name)
        assert done.exit_code == 1
        assert done.stderr.startswith(f"wkv: {tmp_path / name}: ")
        assert done.stderr.count("\n") == 1
