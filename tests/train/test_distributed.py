"""Two processes over gloo, launched by the commands of docs/training.md."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.train.runs import losses, recipe_values
from wkv.hf import RwkvForCausalLM
from wkv.train.recipe import Recipe
from wkv.train.run import train

ROOT = Path(__file__).parents[2]
SECTIONS = {
    # Everything that could go wrong at once: boundaries with ignored labels, chunks, accumulation.
    "data": {"boundaries": "reset"},
    "bptt": {"chunk": 6},
    "run": {"steps": 4, "save_every": 2, "batch": 2, "accumulate": 2},
}


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe_values(tmp_path, **SECTIONS)))
    return path


def launch(*command):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(port)}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def one_process(recipe, output, batch):
    changes = [f"run.output={output}", f"run.batch={batch}"]
    train(Recipe.load(recipe, changes))
    return losses(output)


def test_two_processes_under_ddp_have_the_losses_of_one(recipe, tmp_path):
    launch("torch.distributed.run", "--nproc-per-node", 2, "-m", "wkv", "train", recipe)
    expected = one_process(recipe, tmp_path / "one", batch=4)
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-4)


def test_two_processes_under_fsdp2_have_the_losses_of_one_and_leave_one_model(recipe, tmp_path):
    # On the command line, --cpu would make the launcher forget the other processes.
    settings = yaml.safe_load((ROOT / "recipes" / "launch" / "fsdp2.yaml").read_text())
    config = tmp_path / "fsdp2.yaml"
    config.write_text(yaml.safe_dump({**settings, "use_cpu": True, "num_processes": 2}))
    command = ["accelerate.commands.launch", "--config_file", config]
    launch(*command, "-m", "wkv", "train", recipe)
    expected = one_process(recipe, tmp_path / "one", batch=4)
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-4)
    # Proof that it was FSDP: checkpoints are in pieces, one a process.
    pieces = tmp_path / "out" / "checkpoint-4" / "pytorch_model_fsdp_0"
    assert len(list(pieces.glob("*.distcp"))) == 2
    whole = RwkvForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in RwkvForCausalLM.from_pretrained(tmp_path / "one").state_dict().items():
        assert (whole[name] - tensor).abs().max() < 1e-4, name
