"""Two processes over gloo, launched by the commands of docs/training.md."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tests.train.runs import losses, recipe_values
from wkv.hf import RwkvForCausalLM
from wkv.train.checkpoints import checkpoints
from wkv.train.recipe import Recipe
from wkv.train.run import train

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", 2]
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


def start(*command):
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())},
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-4000:]


def accelerate(name, folder):
    """The launcher, with the repository's settings for two processes without GPUs."""
    settings = yaml.safe_load((ROOT / "recipes" / "launch" / f"{name}.yaml").read_text())
    config = folder / f"{name}.yaml"
    # On the command line, --cpu would make the launcher forget the other processes.
    config.write_text(yaml.safe_dump({**settings, "use_cpu": True, "num_processes": 2}))
    return "accelerate.commands.launch", "--config_file", config


def one_process(recipe, output, batch):
    changes = [f"run.output={output}", f"run.batch={batch}"]
    train(Recipe.load(recipe, changes))
    return losses(output)


def test_two_processes_under_ddp_have_the_losses_of_one(recipe, tmp_path):
    finish(start(*TORCHRUN, "-m", "wkv", "train", recipe))
    expected = one_process(recipe, tmp_path / "one", batch=4)
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-4)


def test_two_processes_under_fsdp2_have_the_losses_of_one_and_leave_one_model(recipe, tmp_path):
    command = [*accelerate("fsdp2", tmp_path), "-m", "wkv", "train", recipe]
    finish(start(*command))
    expected = one_process(recipe, tmp_path / "one", batch=4)
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-4)
    # Proof that it was FSDP: checkpoints are in pieces, one a process.
    pieces = tmp_path / "out" / "checkpoint-4" / "pytorch_model_fsdp_0"
    assert len(list(pieces.glob("*.distcp"))) == 2
    whole = RwkvForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in RwkvForCausalLM.from_pretrained(tmp_path / "one").state_dict().items():
        assert (whole[name] - tensor).abs().max() < 1e-4, name
    # As if it had been killed after step 2: the pieces are put together and it goes on.
    shutil.rmtree(pieces.parent)
    finish(start(*command))
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-4)


def test_two_processes_under_deepspeed_have_the_losses_of_one(recipe, tmp_path, monkeypatch):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    command = accelerate("deepspeed", tmp_path)
    finish(start(*command, "-m", "wkv", "train", recipe, "bptt.chunk=0"))
    expected = one_process(recipe, tmp_path / "one", batch=4)
    assert losses(tmp_path / "out") == pytest.approx(expected, rel=1e-4)
    assert (tmp_path / "out" / "checkpoint-4" / "global_step4").is_dir()  # DeepSpeed's own


def test_a_lost_worker_ends_the_run_and_the_same_command_goes_on(recipe, tmp_path):
    command = [*TORCHRUN, "-m", "wkv", "train", recipe]
    command += ["run.steps=200", "run.save_every=20", "bptt.chunk=0"]
    process = start(*command)
    limit = time.monotonic() + 120
    while not checkpoints(tmp_path / "out"):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit
        time.sleep(0.05)
    workers = [p for p in psutil.Process(process.pid).children() if "wkv" in p.cmdline()]
    assert len(workers) == 2
    workers[1].kill()
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE
    left = checkpoints(tmp_path / "out")[-1]
    finish(start(*command))
    assert left.name != "checkpoint-200"
    found = losses(tmp_path / "out")
    assert found.keys() == set(range(1, 201))  # no step is missing, none was logged twice
    assert found[200] < 0.5 * found[20]
