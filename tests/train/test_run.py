"""Whole runs, each a second or two."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from transformers import TrainerCallback

from tests.train.runs import losses, recipe_of, recipe_values, write_corpus
from wkv.checkpoint import open_checkpoint
from wkv.errors import CheckpointError, ConfigError, CorpusError, NonFiniteError, OutOfMemoryError
from wkv.hf import RwkvForCausalLM
from wkv.train.checkpoints import checkpoints
from wkv.train.run import build_trainer, train


def weights(folder):
    with open_checkpoint(folder) as checkpoint:
        return {n: checkpoint.tensor(n).copy() for n in checkpoint.names()}


def test_a_run_leaves_a_model_that_transformers_and_the_package_load(tmp_path):
    write_corpus(tmp_path / "v", seed=9)
    recipe = recipe_of(
        tmp_path,
        data={"validation": str(tmp_path / "v")},
        run={"steps": 20, "evaluate_every": 10, "plot": True, "report_to": ["tensorboard"]},
    )
    trainer, metrics = train(recipe)
    out = tmp_path / "out"
    found = losses(out)
    assert found[20] < 0.7 * found[1]
    assert metrics["eval_perplexity"] == pytest.approx(np.exp(metrics["eval_loss"]))
    model = RwkvForCausalLM.from_pretrained(out)
    for a, b in zip(model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert weights(out).keys() == weights(out / "checkpoint-20").keys()
    assert (out / "training.png").read_bytes()[:4] == b"\x89PNG"
    assert list(out.rglob("events.out.tfevents.*"))
    by_position = json.loads((out / "metrics.json").read_text())["loss_by_position"]
    assert [p for p, _ in by_position] == list(range(1, 17))


def test_on_a_terminal_a_bar_tells_progress_speed_and_loss(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("wkv.train.run.os.isatty", lambda descriptor: descriptor == 2)
    train(recipe_of(tmp_path, run={"quiet": False}))
    states = [s for s in re.split(r"[\r\n]", capsys.readouterr().err) if "/8 [" in s]
    last = states[-1]
    assert re.search(r"100%.* 8/8 ", last)
    assert re.search(r"loss \d\.\d+  [\d,]+ tokens/s  \d+% of peak", last)


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile wants a C++ compiler")
def test_a_compiled_model_learns_the_same(tmp_path):
    plain = recipe_of(tmp_path, run={"steps": 3})
    train(plain)
    expected = losses(tmp_path / "out")
    train(recipe_of(tmp_path, run={"steps": 3, "compile": True, "output": str(tmp_path / "c")}))
    assert losses(tmp_path / "c") == pytest.approx(expected, rel=1e-4)
    assert weights(tmp_path / "c").keys() == weights(tmp_path / "out").keys()


COMMAND = """
import sys, time
import wkv.train.trainer as t
from wkv.train.recipe import Recipe
from wkv.train.run import train
inner = t.RecipeTrainer.training_step
def slow(self, *args, **kwargs):
    time.sleep({pause})
    return inner(self, *args, **kwargs)
t.RecipeTrainer.training_step = slow
train(Recipe.load(sys.argv[1]))
"""


def start(path, pause):
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.format(pause=pause), str(path)],
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_a_killed_run_goes_on_to_the_losses_of_an_uninterrupted_one_bit_for_bit(tmp_path):
    sections = {"run": {"steps": 24, "save_every": 3, "log_every": 2, "keep": 2}}
    train(recipe_of(tmp_path, **sections))
    whole, final = losses(tmp_path / "out"), weights(tmp_path / "out")
    values = recipe_values(tmp_path, **sections)
    values["run"]["output"] = str(tmp_path / "killed")
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(values))
    process = start(path, pause=0.1)
    try:
        limit = time.monotonic() + 120
        while not checkpoints(tmp_path / "killed"):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < limit
            time.sleep(0.02)
        time.sleep(0.35)  # somewhere between two checkpoints
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = checkpoints(tmp_path / "killed")
    assert before
    assert int(before[-1].name.rpartition("-")[2]) < 24
    recipe = recipe_of(tmp_path, run={**sections["run"], "output": str(tmp_path / "killed")})
    train(recipe)
    assert losses(tmp_path / "killed") == whole
    for name, tensor in weights(tmp_path / "killed").items():
        assert (tensor == final[name]).all(), name
    assert len(checkpoints(tmp_path / "killed")) == 2


def test_a_half_written_checkpoint_is_not_gone_on_from_and_is_cleared_away(tmp_path):
    train(recipe_of(tmp_path))
    out = tmp_path / "out"
    (out / ".checkpoint-being-written" / "checkpoint-99").mkdir(parents=True)
    assert [p.name for p in checkpoints(out)] == ["checkpoint-4", "checkpoint-8"]
    train(recipe_of(tmp_path, run={"steps": 12}))
    assert [p.name for p in checkpoints(out)] == ["checkpoint-8", "checkpoint-12"]
    assert not (out / ".checkpoint-being-written").exists()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": {"vocab_size": 17, "hidden_size": 24}}, r"model\.hidden_size is 24, but .* 16"),
        ({"data": {"context": 8}}, r"data\.context is 8, but .* 16"),
        ({"run": {"batch": 2}}, r"run\.batch is 2, but .* 4"),
    ],
)
def test_checkpoints_of_another_run_are_not_gone_on_from(tmp_path, change, problem):
    train(recipe_of(tmp_path))
    with pytest.raises(ConfigError, match=problem):
        train(recipe_of(tmp_path, **change))
    fresh = {**change, "run": {**change.get("run", {}), "resume": False, "steps": 3}}
    train(recipe_of(tmp_path, **fresh))
    assert losses(tmp_path / "out").keys() == {1, 2, 3}
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["checkpoint-3"]
    aside = checkpoints(tmp_path / "out" / "earlier-1")
    assert [p.name for p in aside] == ["checkpoint-4", "checkpoint-8"]


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_what_to_do(tmp_path):
    recipe = recipe_of(tmp_path)
    trainer = build_trainer(recipe)

    class Fill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:  # files may not grow beyond this from here on
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    trainer.add_callback(Fill())
    try:
        with pytest.raises(
            CheckpointError, match=r"checkpoint-8: could not be written.*free space"
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["checkpoint-4"]
    train(recipe)
    assert losses(tmp_path / "out").keys() == set(range(1, 9))


def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path):
    write_corpus(tmp_path / "v", seed=9)
    recipe = recipe_of(
        tmp_path,
        data={"validation": str(tmp_path / "v")},
        # A rate that grows until it does harm: the best validation comes before the end.
        schedule={"initial": 2e-2, "final": 3.0, "warmup": 0},
        run={"steps": 12, "save_every": 12, "keep": 1, "evaluate_every": 2, "nonfinite": "skip"},
    )
    trainer, _ = train(recipe)
    found = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
    best = min(found, key=found.get)
    assert best < 12
    assert {p.name for p in checkpoints(tmp_path / "out")} == {
        f"checkpoint-{best}",
        "checkpoint-12",
    }
    assert trainer.state.best_model_checkpoint == str(tmp_path / "out" / f"checkpoint-{best}")


def poison(trainer, step):
    """NaN enters at one step, as a bad batch would bring it."""
    inner = trainer.compute_loss

    def compute(*args, **kwargs):
        loss = inner(*args, **kwargs)
        return loss * float("nan") if trainer.state.global_step == step else loss

    trainer.compute_loss = compute


def test_a_loss_that_is_not_finite_stops_the_run_and_its_batch_is_saved(tmp_path):
    trainer = build_trainer(recipe_of(tmp_path))
    poison(trainer, 5)
    with pytest.raises(NonFiniteError, match=r"step 5: loss \[nan\].*nonfinite-step-5"):
        trainer.train()
    saved = torch.load(tmp_path / "out" / "nonfinite-step-5-process-0.pt", weights_only=True)
    assert saved["batches"][0]["input_ids"].tolist() == [
        trainer.train_dataset[i]["input_ids"].tolist() for i in range(20, 24)
    ]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert [p.name for p in checkpoints(tmp_path / "out")] == ["checkpoint-4"]


def test_a_step_that_is_not_finite_is_skipped_if_asked(tmp_path):
    trainer = build_trainer(recipe_of(tmp_path, run={"nonfinite": "skip"}))
    poison(trainer, 5)
    trainer.train()
    assert trainer.guard.skipped == 1
    assert trainer.state.global_step == 8
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_memory_that_runs_out_names_the_settings_to_lower(tmp_path):
    trainer = build_trainer(recipe_of(tmp_path, data={"context": 256}))

    def fail(*args, **kwargs):
        torch.empty(1 << 60)  # no machine has this

    trainer.compute_loss = fail
    with pytest.raises(OutOfMemoryError, match=r"run\.batch=2 and run\.accumulate=2") as caught:
        trainer.train()
    for setting in ("run.gradient_checkpointing=true", "bptt.chunk=128"):
        assert setting in str(caught.value)


def test_chunks_through_time_train_like_whole_blocks(tmp_path):
    train(recipe_of(tmp_path))
    for boundaries in ("stream", "reset"):
        whole = recipe_of(
            tmp_path,
            data={"boundaries": boundaries},
            run={"output": str(tmp_path / f"{boundaries}-whole")},
        )
        chunked = recipe_of(
            tmp_path,
            data={"boundaries": boundaries},
            bptt={"chunk": 5},
            run={"output": str(tmp_path / f"{boundaries}-chunked"), "accumulate": 2, "batch": 2},
        )
        train(whole)
        train(chunked)
        a, b = (losses(tmp_path / f"{boundaries}-{n}") for n in ("whole", "chunked"))
        assert a == pytest.approx(b, rel=1e-4)
    assert losses(tmp_path / "reset-whole") != losses(tmp_path / "out")


def test_gradient_checkpointing_and_bf16_train(tmp_path):
    train(recipe_of(tmp_path))
    plain = losses(tmp_path / "out")
    train(recipe_of(tmp_path, run={"output": str(tmp_path / "g"), "gradient_checkpointing": True}))
    assert losses(tmp_path / "g") == pytest.approx(plain, rel=1e-5)
    train(recipe_of(tmp_path, run={"output": str(tmp_path / "b"), "precision": "bf16"}))
    assert losses(tmp_path / "b") == pytest.approx(plain, rel=0.05)


def test_text_is_tokenised_and_samples_are_written_without_changing_the_run(tmp_path):
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(60)))
    sections = {
        "model": {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 2},
        "data": {"train": str(source), "tokenizer": "bytes", "holdout": 0.2, "workers": 1},
    }
    _, metrics = train(recipe_of(tmp_path, **sections))
    # Every byte of a document is a label, and so is its end, which is no byte.
    assert metrics["eval_bits_per_byte"] > metrics["eval_loss"] / np.log(2)
    again = recipe_of(
        tmp_path,
        **sections,
        run={
            "output": str(tmp_path / "s"),
            "sample_every": 3,
            "sample_prompts": ["doc"],
            "sample_tokens": 4,
        },
    )
    train(again)
    assert losses(tmp_path / "s") == losses(tmp_path / "out")
    samples = (tmp_path / "s" / "samples.txt").read_text()
    assert samples.count("--- step") == 2
    assert samples.count("\ndoc") == 2


def test_a_running_run_draws_its_picture_when_asked(tmp_path):
    trainer = build_trainer(recipe_of(tmp_path, run={"plot": True}))
    before = signal.getsignal(signal.SIGUSR1)
    drawn = {}

    class Ask(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            drawn[state.global_step] = (tmp_path / "out" / "training.png").exists()

    trainer.add_callback(Ask())
    trainer.train()
    assert not drawn[3]
    assert drawn[4]
    assert signal.getsignal(signal.SIGUSR1) == before


def test_a_picture_that_cannot_be_written_does_not_end_a_run(tmp_path, capsys):
    trainer = build_trainer(recipe_of(tmp_path, run={"plot": True}))
    (tmp_path / "out" / "training.png").mkdir(parents=True)
    trainer.train()
    assert trainer.state.global_step == trainer.state.max_steps
    assert "no picture: " in capsys.readouterr().err


def test_one_document_of_two_tokens_trains(tmp_path):
    source = tmp_path / "x.jsonl"
    source.write_text('{"text": "a"}\n')
    for boundaries in ("stream", "reset", "pack"):
        trainer, _ = train(
            recipe_of(
                tmp_path,
                model={"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 1},
                data={
                    "train": str(source),
                    "tokenizer": "bytes",
                    "boundaries": boundaries,
                    "holdout": 0.5,
                },
                run={"output": str(tmp_path / boundaries), "steps": 3},
            )
        )
        found = losses(tmp_path / boundaries)
        assert found[3] < found[1]
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_mistakes_about_the_corpus_are_named(tmp_path):
    with pytest.raises(CorpusError, match="holds token 16, but the model's vocabulary ends at 9"):
        train(recipe_of(tmp_path, model={"vocab_size": 10, "hidden_size": 8}))
    with pytest.raises(ConfigError, match=r"data\.tokenizer: name one"):
        train(recipe_of(tmp_path, data={"train": str(tmp_path / "x.jsonl")}))
