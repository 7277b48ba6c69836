from __future__ import annotations

import json

import numpy as np
import pytest

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_pth
from wkv.checkpoint import convert, describe
from wkv.checkpoint.describe import size_name
from wkv.config import preset
from wkv.errors import CheckpointError, StateError
from wkv.state import Fingerprint, State


@pytest.mark.parametrize("name", ["m.pth", "folder", "m.bin"])
def test_a_model_is_described_from_its_headers(tmp_path, name):
    save_pth(tmp_path / "a.pth", WEIGHTS, "float16")
    convert(tmp_path / "a.pth", tmp_path / name)
    found = describe(tmp_path / name)
    assert json.loads(json.dumps(found)) == found
    assert found["kind"] == "model"
    assert found["architecture"] == "RWKV-4"
    assert found["parameters"] == CONFIG.parameters
    assert sum(part["parameters"] for part in found["dtypes"].values()) == CONFIG.parameters
    assert found["config"] == CONFIG.to_dict()
    assert found["bytes"] == sum(f["bytes"] for f in found["files"])
    assert next(iter(found["dtypes"])) == "float16"


def test_published_sizes_have_names():
    assert size_name(preset("1b5", vocab_size=65536)) == "1B5"
    assert size_name(preset("169m", intermediate_size=1024)) is None
    assert size_name(CONFIG) is None


def test_quantized_bytes_are_counted(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    convert(tmp_path / "a.pth", tmp_path / "q.bin", dtype="q5_1")
    part = describe(tmp_path / "q.bin")["dtypes"]["q5_1"]
    assert part["bytes"] == part["parameters"] // 32 * 24


def test_a_lora_is_described(tmp_path):
    tensors = {
        "blocks.0.att.key.lora_A": np.ones((8, 32), np.float32),
        "blocks.0.att.key.lora_B": np.ones((32, 8), np.float32),
        "blocks.0.ln1.weight": np.ones(32, np.float32),
    }
    found = describe(save_pth(tmp_path / "l.pth", tensors))
    assert (found["kind"], found["ranks"]) == ("lora", [8])
    assert found["matrices"] == ["blocks.0.att.key.weight"]
    assert found["whole_tensors"] == ["blocks.0.ln1.weight"]


def test_a_state_is_described(tmp_path):
    state = State.zeros(CONFIG, 3)
    state.save(tmp_path / "s.safetensors")
    found = describe(tmp_path / "s.safetensors")
    assert (found["kind"], found["sequences"], found["layers"]) == ("state", 3, 2)
    assert found["model"] is None
    marked = Fingerprint.of(CONFIG, lambda name: WEIGHTS[name].reshape(-1))
    state.with_fingerprint(marked).save(tmp_path / "s.safetensors")
    assert tuple(describe(tmp_path / "s.safetensors")["model"]) == (2, 32, 32, 128, 50)


def test_what_is_damaged_is_not_described(tmp_path):
    State.zeros(CONFIG).save(tmp_path / "s.safetensors")
    blob = (tmp_path / "s.safetensors").read_bytes()
    (tmp_path / "s.safetensors").write_bytes(blob[:-5])
    with pytest.raises((CheckpointError, StateError), match=r"s\.safetensors"):
        describe(tmp_path / "s.safetensors")
    with pytest.raises(CheckpointError, match="nothing"):
        describe(tmp_path / "nothing")
