from __future__ import annotations

from math import prod

import pytest

from tests.oracles.models import original_name, random_weights
from wkv.checkpoint import expected_tensors, from_hf, to_hf
from wkv.checkpoint.names import unwrap


def test_the_table_agrees_with_transformers_own_model(square_config):
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvForCausalLM

    theirs = RwkvForCausalLM(RwkvConfig(**square_config.to_dict())).state_dict()
    ours = {to_hf(name): shape for name, shape in expected_tensors(square_config).items()}
    assert ours == {name: tuple(tensor.shape) for name, tensor in theirs.items()}


def test_the_table_agrees_with_our_model_of_unusual_sizes(tiny_config):
    from wkv.model.rwkv4 import Rwkv4

    ours = {to_hf(name): shape for name, shape in expected_tensors(tiny_config).items()}
    assert ours == {n: tuple(t.shape) for n, t in Rwkv4(tiny_config).state_dict().items()}


def test_the_table_agrees_with_the_tests_own_list(tiny_config):
    weights = random_weights(tiny_config)
    assert expected_tensors(tiny_config) == {name: w.shape for name, w in weights.items()}
    assert all(original_name(to_hf(name)) == name for name in weights)


def test_shapes_count_every_parameter(tiny_config):
    assert sum(map(prod, expected_tensors(tiny_config).values())) == tiny_config.parameters


def test_names_go_both_ways(tiny_config):
    for name in expected_tensors(tiny_config):
        assert from_hf(to_hf(name)) == name
        if name != "head.weight":
            assert from_hf(to_hf(name).removeprefix("rwkv.")) == name


@pytest.mark.parametrize(
    "name", ["rwkv.blocks.0.attention.gate.weight", "rwkv.blocks.x.ln1.bias", "lm_head.weight", ""]
)
def test_unknown_names_have_no_original(name):
    assert from_hf(name) is None


@pytest.mark.parametrize("prefix", ["", "_forward_module.", "model.", "module._orig_mod."])
def test_wrappers_are_told_from_names(prefix):
    assert unwrap([prefix + "emb.weight", prefix + "model.x"]) == prefix
