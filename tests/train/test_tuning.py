"""LoRA and initial-state tuning, over a small model that a checkpoint brings."""

import shutil

import numpy as np
import pytest
import torch

import wkv
from tests.oracles.models import random_weights, torch_model
from tests.train.runs import losses, recipe_of
from wkv.checkpoint import load_state_dict, open_checkpoint, open_lora
from wkv.checkpoint.names import from_hf
from wkv.config import ModelConfig
from wkv.engine.torch_engine import load_torch
from wkv.errors import CheckpointError, ConfigError
from wkv.hf import RwkvConfig, RwkvForCausalLM
from wkv.state import State
from wkv.train.build import build_model
from wkv.train.run import build_trainer, train

CONFIG = ModelConfig(vocab_size=17, hidden_size=16, num_hidden_layers=2)
IDS = torch.randint(0, 17, (2, 12), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def start(tmp_path):
    """A model with nothing at its initial value, as a folder."""
    model = RwkvForCausalLM(RwkvConfig.of(CONFIG))
    model.load_state_dict(torch_model(CONFIG, random_weights(CONFIG)).state_dict())
    model.save_pretrained(tmp_path / "start")
    return str(tmp_path / "start")


def tuned_recipe(tmp_path, start, method, **sections):
    tune = {"method": method, "rank": 2, "alpha": 4.0, **sections.pop("tune", {})}
    return recipe_of(tmp_path, model=None, start=start, tune=tune, **sections)


def logits(model, **kwargs):
    with torch.no_grad():
        return model.eval()(input_ids=IDS, **kwargs).logits


def test_lora_learns_its_adapters_alone_and_the_merged_model_is_the_same(tmp_path, start):
    recipe = tuned_recipe(tmp_path, start, "lora", run={"steps": 20})
    train(recipe)
    found = losses(tmp_path / "out")
    assert found[20] < found[1]
    # train() has merged the adapters already; the saved ones are put on a fresh base again.
    from peft import PeftModel

    base = RwkvForCausalLM.from_pretrained(start)
    before = logits(base)
    adapted = PeftModel.from_pretrained(base, tmp_path / "out")
    after = logits(adapted)
    assert (after - before).abs().max() > 1e-3
    merged = RwkvForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits(merged), after, rtol=1e-5, atol=1e-5)
    with open_checkpoint(start) as old, open_checkpoint(tmp_path / "out" / "merged") as new:
        changed = {n for n in old.names() if (old.tensor(n) != new.tensor(n)).any()}
    assert changed == {
        f"blocks.{i}.{part}.weight"
        for i in range(2)
        for part in (
            *("att.key", "att.value", "att.receptance", "att.output"),
            *("ffn.key", "ffn.value", "ffn.receptance"),
        )
    }


def test_an_interrupted_lora_run_goes_on_bit_for_bit(tmp_path, start):
    train(tuned_recipe(tmp_path, start, "lora", run={"steps": 8, "keep": 5}))
    whole = losses(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-8")
    train(tuned_recipe(tmp_path, start, "lora", run={"steps": 8, "keep": 5}))
    assert losses(tmp_path / "out") == whole


@pytest.mark.parametrize("tensor", [None, "rank", "module"])
def test_published_lora_files_are_gone_on_from(tmp_path, start, tensor):
    g = torch.Generator().manual_seed(3)
    r = 3 if tensor == "rank" else 2
    file = {"blocks.1.ln1.weight": torch.randn(16, generator=g)}
    for i in range(2):
        for part, size in (("att.key", 16), ("ffn.value", 64)):
            file[f"blocks.{i}.{part}.lora_A"] = torch.randn(r, size, generator=g)
            file[f"blocks.{i}.{part}.lora_B"] = torch.randn(16, r, generator=g)
    torch.save(file, tmp_path / "lora.pth")
    modules = ["receptance"] if tensor == "module" else ["key", "value", "receptance"]
    tune = {"lora": str(tmp_path / "lora.pth"), "modules": modules}
    recipe = tuned_recipe(tmp_path, start, "lora", tune=tune)
    if tensor is not None:
        problem = "set tune.rank to the file's" if tensor == "rank" else "has no adapter"
        with pytest.raises(CheckpointError, match=problem):
            build_model(recipe)
        return
    # The package's own merging of such files is the independent way to the same model.
    with open_checkpoint(start) as base:
        merged = base.merged(open_lora(tmp_path / "lora.pth"), 4.0)
        expected = RwkvForCausalLM(RwkvConfig.of(CONFIG))
        expected.load_state_dict(load_state_dict(merged, "float32"))
    torch.testing.assert_close(logits(build_model(recipe)), logits(expected), rtol=1e-4, atol=1e-4)


def test_only_the_initial_state_is_learnt_and_any_engine_loads_it(tmp_path, start):
    recipe = tuned_recipe(
        tmp_path,
        start,
        "state",
        data={"boundaries": "pack"},
        schedule={"initial": 0.1, "final": 0.01},
        run={"steps": 20},
    )
    trainer, _ = train(recipe)
    found = losses(tmp_path / "out")
    assert found[20] < found[1] - 0.01
    # The model itself is as it was.
    with open_checkpoint(start) as old:
        for name, tensor in trainer.model.model.state_dict().items():
            assert (tensor.numpy() == old.tensor(from_hf(name))).all()
    state = State.load(tmp_path / "out" / "state.safetensors")
    with torch.no_grad():
        want = trainer.model.eval()(input_ids=IDS[:1]).logits[0]
    with open_checkpoint(start, writable=True) as checkpoint:
        engine = load_torch(checkpoint)
    got, _ = engine.forward(IDS[:1].tolist(), state, logits="all")
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4, atol=1e-4)
    plain, _ = engine.forward(IDS[:1].tolist(), logits="all")
    assert np.abs(plain - got).max() > 1e-2
    assert (tmp_path / "out" / "state.safetensors").stat().st_size < 8 * 5 * 2 * 16 * 4


def test_the_learnt_state_loads_into_the_native_engine_too(tmp_path, start):
    native = pytest.importorskip("wkv.engine.native")
    train(tuned_recipe(tmp_path, start, "state", run={"steps": 4}))
    state = wkv.State.load(tmp_path / "out" / "state.safetensors")
    got, _ = native.load_native(start).forward(IDS[:1].tolist(), state, logits="all")
    with open_checkpoint(start, writable=True) as checkpoint:
        want, _ = load_torch(checkpoint).forward(IDS[:1].tolist(), state, logits="all")
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_an_interrupted_state_run_goes_on_bit_for_bit_from_a_small_checkpoint(tmp_path, start):
    train(tuned_recipe(tmp_path, start, "state", run={"steps": 8, "keep": 5}))
    whole = losses(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-8")
    left = tmp_path / "out" / "checkpoint-4" / "model.safetensors"
    assert left.stat().st_size < 4 * 2 * 16 * 4 + 1000
    train(tuned_recipe(tmp_path, start, "state", run={"steps": 8, "keep": 5}))
    assert losses(tmp_path / "out") == whole


def test_gradients_reach_the_initial_state_through_chunks_and_packed_documents(tmp_path, start):
    grads = []
    for chunk in (0, 5):
        recipe = tuned_recipe(
            tmp_path,
            start,
            "state",
            data={"boundaries": "reset"},
            bptt={"chunk": chunk},
            run={"batch": 16},
        )
        trainer = build_trainer(recipe)
        batch = next(iter(trainer.get_train_dataloader()))
        assert batch["resets"].sum() > 2
        trainer.create_optimizer()
        trainer.training_step(trainer.model, batch, (batch["labels"] != -100).sum())
        grads.append([p.grad for p in trainer.model.parameters() if p.requires_grad])
    assert len(grads[0]) == 4
    for a, b in zip(*grads, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_mistakes_about_tuning_are_named(tmp_path, start):
    with pytest.raises(ConfigError, match="no matrix is named 'kye': choose from"):
        build_model(tuned_recipe(tmp_path, start, "lora", tune={"modules": ["kye"]}))
    other = {"vocab_size": 17, "hidden_size": 24, "num_hidden_layers": 2}
    recipe = recipe_of(tmp_path, model=other, start=start)
    with pytest.raises(ConfigError, match=r"model\.hidden_size is 24, but .* has 16"):
        build_model(recipe)


def test_full_tuning_begins_where_the_checkpoint_ends(tmp_path, start):
    model = build_model(recipe_of(tmp_path, model=None, start=start))
    expected = RwkvForCausalLM.from_pretrained(start)
    assert torch.equal(logits(model), logits(expected))
    assert all(p.requires_grad for p in model.parameters())
    train(recipe_of(tmp_path, model=None, start=start))
    found = losses(tmp_path / "out")
    assert found[8] < found[1]
    # The file that the run began from was only read.
    assert torch.equal(logits(RwkvForCausalLM.from_pretrained(start)), logits(expected))
