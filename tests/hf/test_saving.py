"""Files: what is saved is what was loaded, bit for bit; shards; the Hub."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tests.oracles import fake_hub as hub_module
from wkv.hf import RwkvConfig, RwkvForCausalLM, RwkvForSequenceClassification, RwkvModel

IDS = torch.tensor([[5, 17, 3, 88, 5, 41]])


def tensors(folder) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as f:
            found |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
    return found


def assert_same_files(one, other):
    got, want = tensors(one), tensors(other)
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].dtype == want[name].dtype, name
        assert torch.equal(got[name], want[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("decay", ["in the same type", "in float32"])
@torch.no_grad()
def test_saving_after_an_eval_forward_gives_the_same_file_bit_for_bit(
    own_model, tmp_path, dtype, decay
):
    own_model.to(dtype)
    if decay == "in float32":
        for block in own_model.rwkv.blocks:
            block.attention.time_decay.data = block.attention.time_decay.data.float() + 1e-4
    own_model.save_pretrained(tmp_path / "first")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    assert loaded.dtype == dtype
    want = own_model(IDS).logits
    assert torch.equal(loaded(IDS).logits, want)
    loaded.generate(IDS, max_new_tokens=3, do_sample=False)
    loaded.save_pretrained(tmp_path / "second")
    first, second = (tmp_path / n / "model.safetensors" for n in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decay_and_bonus_keep_the_files_precision_when_loading_in_sixteen_bits(
    own_model, tmp_path, dtype
):
    own_model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for name, value in loaded.named_parameters():
        exact = name.endswith(("time_decay", "time_first"))
        assert value.dtype == (torch.float32 if exact else dtype), name
        if exact:
            assert torch.equal(value, own_model.get_parameter(name))


@torch.no_grad()
def test_sharded_saves_load_and_save_again(own_model, tmp_path):
    own_model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 3
    assert index["weight_map"].keys() == own_model.state_dict().keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    assert torch.equal(loaded(IDS).logits, own_model(IDS).logits)
    loaded.save_pretrained(tmp_path / "one")
    assert_same_files(tmp_path / "one", tmp_path / "shards")


def test_the_saved_names_are_the_hubs(own_model, tmp_path, square_config):
    from tests.oracles.models import original_name, random_weights

    own_model.save_pretrained(tmp_path)
    saved = tensors(tmp_path)
    weights = random_weights(square_config)
    assert {original_name(name) for name in saved} == weights.keys()
    assert "rwkv.blocks.0.pre_ln.weight" in saved
    assert "head.weight" in saved
    for name, value in saved.items():
        assert value.shape == weights[original_name(name)].shape


@torch.no_grad()
def test_a_checkpoint_of_transformers_own_class_loads_here_and_back(square_config, tmp_path):
    from tests.oracles.models import random_weights, transformers_model

    theirs = transformers_model(square_config, random_weights(square_config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
    assert type(ours) is RwkvForCausalLM
    assert (ours(IDS).logits - theirs(IDS).logits).abs().max() < 1e-4
    ours.save_pretrained(tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    assert (again(IDS).logits - ours(IDS).logits).abs().max() < 1e-4


@torch.no_grad()
def test_pickled_hub_weights_load_without_running_code(own_model, tmp_path):
    own_model.config.save_pretrained(tmp_path)
    torch.save(own_model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(IDS).logits, own_model(IDS).logits)


@torch.no_grad()
def test_the_backbone_and_a_classifier_load_from_a_language_model(own_model, tmp_path):
    own_model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert type(base) is RwkvModel
    want = own_model.rwkv(IDS).last_hidden_state
    assert torch.equal(base(IDS).last_hidden_state, want)
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3)
    assert type(classifier) is RwkvForSequenceClassification
    assert torch.equal(classifier.rwkv(IDS).last_hidden_state, want)
    assert 0 < classifier.score.weight.abs().max() < 0.2
    classifier.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(again(IDS).logits, classifier(IDS).logits)


def test_what_a_checkpoint_lacks_gets_the_published_initialisation(own_model, tmp_path):
    from safetensors.torch import save_file

    own_model.config.save_pretrained(tmp_path)
    lacking = (
        "rwkv.blocks.1.attention.value.weight",
        "rwkv.blocks.2.attention.time_first",
        "head.weight",
    )
    rest = {n: v for n, v in own_model.state_dict().items() if n not in lacking}
    save_file(rest, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, value in rest.items():
        assert torch.equal(loaded.get_parameter(name), value), name
    value = loaded.rwkv.blocks[1].attention.value.weight
    assert torch.allclose(value @ value.T, torch.eye(32), atol=1e-5)
    fresh = RwkvForCausalLM(own_model.config)
    assert torch.equal(loaded.get_parameter(lacking[1]), fresh.get_parameter(lacking[1]))
    assert 0 < loaded.head.weight.abs().max() < 1


@torch.no_grad()
def test_tied_embeddings_stay_tied_through_a_file(square_config, tmp_path):
    import dataclasses

    config = RwkvConfig.of(dataclasses.replace(square_config, tie_word_embeddings=True))
    model = RwkvForCausalLM(config).eval()
    assert model.head.weight is model.rwkv.embeddings.weight
    torch.nn.init.normal_(model.head.weight)
    model.save_pretrained(tmp_path)
    assert "head.weight" not in tensors(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.head.weight is loaded.rwkv.embeddings.weight
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    assert sum(p.numel() for p in loaded.parameters()) == config.architecture().parameters


@torch.no_grad()
def test_the_vocabulary_can_grow(own_model):
    want = own_model(IDS).logits
    own_model.resize_token_embeddings(101, mean_resizing=False)
    assert own_model.config.vocab_size == 101
    got = own_model(IDS).logits
    assert got.shape[-1] == 101
    assert torch.equal(got[..., :97], want)


# --- the Hub ----------------------------------------------------------------------------------


@torch.no_grad()
def test_push_to_hub_and_loading_by_name(own_model, tokenizer, fake_hub, prompts):
    own_model.half().push_to_hub("tester/rwkv-tiny", max_shard_size="20KB")
    tokenizer.push_to_hub("tester/rwkv-tiny")
    files = fake_hub.files("tester/rwkv-tiny")
    assert {"config.json", "model.safetensors.index.json", "tokenizer.json"} <= files.keys()
    assert sum(name.endswith(".safetensors") for name in files) > 3
    loaded = AutoModelForCausalLM.from_pretrained("tester/rwkv-tiny")
    assert type(loaded) is RwkvForCausalLM
    assert loaded.dtype == torch.float16
    for name, value in own_model.state_dict().items():
        assert torch.equal(loaded.get_parameter(name), value), name
    again = AutoTokenizer.from_pretrained("tester/rwkv-tiny")
    assert again("To be or not").input_ids == tokenizer("To be or not").input_ids
    assert again.padding_side == "left"


@torch.no_grad()
def test_a_second_push_makes_a_second_revision(own_model, fake_hub):
    first = own_model.push_to_hub("tester/rwkv-tiny").oid
    own_model.head.weight.data += 1
    own_model.push_to_hub("tester/rwkv-tiny", commit_message="more")
    old = AutoModelForCausalLM.from_pretrained("tester/rwkv-tiny", revision=first)
    new = AutoModelForCausalLM.from_pretrained("tester/rwkv-tiny")
    assert torch.equal(new.head.weight, own_model.head.weight)
    assert torch.equal(old.head.weight + 1, own_model.head.weight)


def test_a_private_repository_needs_the_token(own_model, fake_hub, monkeypatch, tmp_path):
    own_model.push_to_hub("tester/secret", private=True)
    AutoModelForCausalLM.from_pretrained("tester/secret", cache_dir=tmp_path / "a")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="tester/secret"):
        AutoModelForCausalLM.from_pretrained("tester/secret", cache_dir=tmp_path / "b")
    with pytest.raises(OSError, match="401"):
        own_model.push_to_hub("tester/other")


def test_a_missing_repository_is_named(fake_hub):
    with pytest.raises(OSError, match="tester/nothing"):
        AutoModelForCausalLM.from_pretrained("tester/nothing")


def test_a_fresh_process_loads_by_name_with_nothing_but_an_import(own_model, fake_hub, tmp_path):
    import os

    own_model.push_to_hub("tester/rwkv-tiny")
    script = (
        "import torch, wkv;"
        "from transformers import AutoModelForCausalLM;"
        "m = AutoModelForCausalLM.from_pretrained('tester/rwkv-tiny');"
        "print(m.generate(torch.tensor([[5, 17, 3]]), max_new_tokens=4, do_sample=False).tolist())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **hub_module.environment(fake_hub, tmp_path / "other")},
        capture_output=True,
        text=True,
        check=True,
    )
    want = own_model.generate(torch.tensor([[5, 17, 3]]), max_new_tokens=4, do_sample=False)
    assert json.loads(result.stdout) == want.tolist()
