from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_pth
from tests.oracles.models import random_weights
from wkv.checkpoint import convert, open_checkpoint, to_hf
from wkv.config import ModelConfig
from wkv.errors import ArchitectureError, CheckpointError, ConfigError

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A folder of several shards, converted from a .pth."""
    save_pth(tmp_path / "m.pth", WEIGHTS)
    convert(tmp_path / "m.pth", tmp_path / "hf", max_shard_size="40KB")
    return tmp_path / "hf"


def edit(path, **values):
    data = json.loads(path.read_text())
    data.update(values)
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def transformers_model(folder, **how):
    from transformers.models.rwkv.modeling_rwkv import RwkvForCausalLM

    return RwkvForCausalLM.from_pretrained(folder, **how)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_transformers_own_class_reads_the_folder(tmp_path, dtype, shard):
    save_pth(tmp_path / "m.pth", WEIGHTS, dtype)
    convert(tmp_path / "m.pth", tmp_path / "hf", max_shard_size=shard)
    model = transformers_model(tmp_path / "hf", dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    for name, want in WEIGHTS.items():
        got = model.state_dict()[to_hf(name)]  # float32 where transformers wants it so
        assert torch.equal(got, torch.from_numpy(want).to(model.dtype).to(got.dtype))


@pytest.mark.parametrize("shard", ["5GB", "40KB"])
def test_a_folder_that_transformers_wrote_is_read(tmp_path, square_config, shard):
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvForCausalLM

    model = RwkvForCausalLM(RwkvConfig(**{**square_config.to_dict(), "context_length": 4096}))
    for p in model.parameters():
        torch.nn.init.normal_(p)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "hf"
        assert checkpoint.config.context_length == 4096
        for name in checkpoint.names():
            want = model.state_dict()[to_hf(name)].numpy()
            np.testing.assert_array_equal(checkpoint.tensor(name), want)


def test_pickled_folders_are_read_whole_and_sharded(tmp_path, folder):
    tensors = {to_hf(n): torch.from_numpy(w) for n, w in WEIGHTS.items()}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text((folder / "config.json").read_text())
    torch.save(tensors, tmp_path / "one" / "pytorch_model.bin")
    halves = {"a.bin": list(tensors)[:9], "b.bin": list(tensors)[9:]}
    for file, names in halves.items():
        torch.save({n: tensors[n] for n in names}, tmp_path / "two" / file)
    (tmp_path / "two" / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": {n: f for f, names in halves.items() for n in names}})
    )
    for path in (tmp_path / "one", tmp_path / "two", tmp_path / "one" / "pytorch_model.bin"):
        with open_checkpoint(path) as checkpoint:
            for name, want in WEIGHTS.items():
                np.testing.assert_array_equal(checkpoint.tensor(name), want)


def test_shards_keep_to_the_limit_and_the_index_lists_them(folder):
    index = json.loads((folder / INDEX).read_text())
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert shards == sorted(set(index["weight_map"].values()))
    assert index["metadata"]["total_size"] == sum(w.nbytes for w in WEIGHTS.values())
    assert set(index["weight_map"]) == {to_hf(n) for n in WEIGHTS}
    assert max((folder / s).stat().st_size for s in shards) < 42_000


def test_config_json_is_the_hubs(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "rwkv"
    assert config["architectures"] == ["RwkvForCausalLM"]
    assert config["torch_dtype"] == "float32"
    kept = {k: v for k, v in config.items() if k in CONFIG.to_dict()}
    assert ModelConfig.from_dict(kept) == CONFIG


def test_tied_embeddings_are_stored_once_and_read_twice(tmp_path):
    config = ModelConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, tie_word_embeddings=True
    )
    weights = random_weights(config)
    weights["head.weight"] = weights["emb.weight"]
    convert(save_pth(tmp_path / "m.pth", weights), tmp_path / "hf")
    edit(tmp_path / "hf" / "config.json", tie_word_embeddings=True)
    convert(tmp_path / "hf", tmp_path / "tied")
    with open_checkpoint(tmp_path / "tied") as checkpoint:
        assert checkpoint.config == config
        np.testing.assert_array_equal(checkpoint.tensor("head.weight"), weights["emb.weight"])
    text = (tmp_path / "tied" / "model.safetensors").read_bytes()
    assert b"head.weight" not in text
    convert(tmp_path / "tied", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert torch.equal(back["head.weight"], back["emb.weight"])


# --- what is wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 64}, "hidden_size is said to be 64"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"context_length": -1}, "context_length"),
        ({"layer_norm_epsilon": "small"}, "layer_norm_epsilon"),
        ({"rescale_every": "often"}, "rescale_every"),
        ({"bos_token_id": [1]}, "bos_token_id"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"attention_hidden_size": 31}, "attention_hidden_size is said to be 31"),
    ],
)
def test_a_config_that_contradicts_or_makes_no_sense_is_refused(folder, values, message):
    edit(folder / "config.json", **values)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize("depth", [10, 300, 600, 800, 900, 950, 990, 100_000])
@pytest.mark.parametrize("key", ["hidden_size", "eos_token_id", "model_type"])
def test_a_config_nested_to_any_depth_is_refused(folder, key, depth):
    text = (folder / "config.json").read_text()
    nested = f'"{key}": ' + "[" * depth + "]" * depth
    (folder / "config.json").write_text(re.sub(rf'"{key}": [^,\n]+', nested, text))
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


@pytest.mark.parametrize("kind", ["rwkv5", "rwkv6", "rwkv7", "llama", ...])
def test_another_model_type_is_named(folder, kind):
    edit(folder / "config.json", model_type=kind)
    with pytest.raises(ArchitectureError, match="None" if kind is ... else kind):
        open_checkpoint(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"a": \x00}'])
def test_damaged_json_is_named(folder, text):
    for name in ("config.json", INDEX):
        whole = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(CheckpointError, match=name):
            open_checkpoint(folder)
        (folder / name).write_text(whole)
    open_checkpoint(folder)


def test_a_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


def test_a_missing_shard_is_named(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: is missing"):
        open_checkpoint(folder)


@pytest.mark.parametrize("shard", ["../m.pth", "/etc/passwd", "..", "", 7, None, "sub/x", "a\\b"])
def test_an_index_cannot_point_out_of_its_folder(folder, shard):
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    edit(folder / INDEX, weight_map={**table, "head.weight": shard})
    with pytest.raises(CheckpointError, match="head"):
        open_checkpoint(folder)


def test_an_index_that_contradicts_the_shards_is_refused(folder):
    table = json.loads((folder / INDEX).read_text())["weight_map"]
    first = table["rwkv.embeddings.weight"]
    edit(folder / INDEX, weight_map={**table, "head.weight": first})
    with pytest.raises(CheckpointError, match=r"head\.weight.*the index says"):
        open_checkpoint(folder)


def test_a_tensor_in_two_shards_is_refused(folder):
    shards = sorted(folder.glob("*.safetensors"))
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(CheckpointError, match="another shard"):
        open_checkpoint(folder)


def test_a_folder_without_weights_says_what_was_looked_for(tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_a_folder_with_one_original_file_is_that_file(tmp_path):
    save_pth(tmp_path / "a.pth", WEIGHTS)
    assert open_checkpoint(tmp_path).path == tmp_path / "a.pth"
    save_pth(tmp_path / "b.pth", WEIGHTS)
    with pytest.raises(CheckpointError, match=r"a\.pth, b\.pth"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("size", ["", "much", "-5GB", "5", 0])
def test_a_shard_size_that_is_none_is_refused(tmp_path, size):
    save_pth(tmp_path / "m.pth", WEIGHTS)
    with pytest.raises(ConfigError, match="max_shard_size"):
        convert(tmp_path / "m.pth", tmp_path / "hf", max_shard_size=size)
    assert not (tmp_path / "hf").exists()
