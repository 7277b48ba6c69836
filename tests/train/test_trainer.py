import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from wkv.config import ModelConfig
from wkv.data import Binidx, BinidxWriter, Blocks
from wkv.hf import RwkvConfig, RwkvForCausalLM
from wkv.train.recipe import Recipe
from wkv.train.trainer import RecipeTrainer

MODEL = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.fixture
def corpus(tmp_path):
    rng = np.random.default_rng(0)
    with BinidxWriter(tmp_path / "c") as writer:
        for _ in range(8):
            # Counting up from somewhere: easy to learn, so a few steps show it.
            start = int(rng.integers(1, 17))
            writer.append([(start + i) % 16 + 1 for i in range(40)] + [0])
    return Binidx(tmp_path / "c")


def recipe_of(tmp_path, **run):
    return Recipe.from_dict(
        {
            "model": MODEL,
            "data": {"train": str(tmp_path / "c"), "context": 16},
            "schedule": {"initial": 1e-2, "final": 1e-3, "warmup": 2},
            "run": {
                "output": str(tmp_path / "out"),
                "steps": 8,
                "batch": 4,
                "device": "cpu",
                "log_every": 1,
                "quiet": True,
                **run,
            },
        }
    )


def fresh_model():
    torch.manual_seed(0)
    return RwkvForCausalLM(RwkvConfig.of(ModelConfig.from_dict(MODEL)))


def trainer_of(recipe, corpus, model=None):
    items = recipe.run.steps * recipe.run.batch * recipe.run.accumulate
    blocks = Blocks(corpus, recipe.data.context, items)
    return RecipeTrainer(model or fresh_model(), recipe, blocks, Blocks(corpus, 16, seed=None))


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_training_lowers_the_loss_and_follows_the_schedule(tmp_path, corpus):
    trainer = trainer_of(recipe_of(tmp_path, steps=30), corpus)
    trainer.train()
    found = losses(trainer)
    assert found[0] == pytest.approx(np.log(17), rel=0.2)
    assert found[-1] < 0.6 * found[0]
    rates = [e["learning_rate"] for e in trainer.state.log_history if "learning_rate" in e]
    assert rates[0] == pytest.approx(0.2 * 1e-2, rel=0.01) or rates[0] < 1e-2
    assert rates[-1] == pytest.approx(1e-3, rel=0.1)
    assert trainer.evaluate()["eval_loss"] < 0.6 * found[0]


def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one_bit_for_bit(tmp_path, corpus):
    whole = trainer_of(recipe_of(tmp_path, save_every=3), corpus)
    whole.train()
    again = trainer_of(recipe_of(tmp_path, save_every=3, keep=5), corpus)
    again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-6"))
    assert losses(again) == losses(whole)
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)


def test_blocks_reach_the_model_in_their_own_order(tmp_path, corpus):
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(17, 17))

        def forward(self, input_ids, use_cache):
            seen.append(input_ids.clone())
            return SimpleNamespace(logits=self.weight[input_ids])

    recipe = recipe_of(tmp_path)
    trainer = trainer_of(recipe, corpus, Spy())
    trainer.train()
    blocks = Blocks(corpus, 16, 32)
    expected = [blocks[i]["input_ids"].tolist() for i in range(32)]
    assert torch.cat(seen).tolist() == expected


def test_accumulated_gradients_equal_one_larger_batch(tmp_path, corpus):
    large = trainer_of(recipe_of(tmp_path, batch=4), corpus)
    large.train()
    small = trainer_of(recipe_of(tmp_path, batch=2, accumulate=2), corpus)
    small.train()
    # A padded block at the corpus's ends weighs differently in its half, hence the tolerance.
    assert losses(small) == pytest.approx(losses(large), rel=0.02)


def test_the_loss_ignores_padding(tmp_path, corpus):
    trainer = trainer_of(recipe_of(tmp_path), corpus)
    model = trainer.model.eval()
    ids = torch.tensor([[3, 4, 5, 6, 0, 0]])
    labels = torch.tensor([[4, 5, 6, 7, -100, -100]])
    with torch.no_grad():
        padded = trainer.compute_loss(model, {"input_ids": ids, "labels": labels})
        cut = trainer.compute_loss(model, {"input_ids": ids[:, :4], "labels": labels[:, :4]})
    assert padded.item() == pytest.approx(cut.item(), rel=1e-6)


def test_checkpoints_hold_weights_under_the_hub_s_names(tmp_path, corpus):
    from safetensors import safe_open

    trainer_of(recipe_of(tmp_path, save_every=4, keep=1), corpus).train()
    (folder,) = (tmp_path / "out").glob("checkpoint-*")
    assert folder.name == "checkpoint-8"
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "rwkv.blocks.1.attention.time_mix_key" in file.keys()  # noqa: SIM118
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 8
    again = RwkvForCausalLM.from_pretrained(folder)
    assert again.config.num_hidden_layers == 2
