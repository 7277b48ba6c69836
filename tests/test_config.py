"""The architecture's numbers: bounds, unknown keys, presets."""

from __future__ import annotations

import dataclasses
import math

import pytest

from wkv.config import PRESETS, ModelConfig, preset
from wkv.errors import ConfigError

# The hub's RWKV/rwkv-4-169m-pile, whose keys and values these are.
HUB_169M = {
    "vocab_size": 50277,
    "context_length": 1024,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "attention_hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "rescale_every": 6,
    "tie_word_embeddings": False,
}


def test_the_defaults_are_the_smallest_published_model():
    assert ModelConfig() == ModelConfig.from_dict(HUB_169M) == PRESETS["169m"]


@pytest.mark.parametrize("size", PRESETS)
def test_a_configuration_survives_its_dictionary(size):
    config = PRESETS[size]
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert set(config.to_dict()) == set(HUB_169M)


def test_attention_and_feed_forward_sizes_follow_the_hidden_size_unless_given():
    config = ModelConfig(hidden_size=24)
    assert (config.attention_size, config.ffn_size) == (24, 96)
    config = ModelConfig(hidden_size=24, attention_hidden_size=40, intermediate_size=50)
    assert (config.attention_size, config.ffn_size) == (40, 50)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("hidden_sise", "hidden_size"),
        ("n_hidden_layers", "num_hidden_layers"),
        ("intermediate", "intermediate_size"),
        ("ctx_length", "context_length"),
        ("layer_norm_eps", "layer_norm_epsilon"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_its_nearest_neighbour(key, meant):
    with pytest.raises(ConfigError, match=f"'{key}'; did you mean '{meant}'"):
        ModelConfig.from_dict({"vocab_size": 100, key: 3})


def test_an_unknown_key_without_a_neighbour_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"'quux'; known: \['attention_hidden_size', 'bos_"):
        ModelConfig.from_dict({"quux": 1})


@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "attention_hidden_size",
        "intermediate_size",
        "context_length",
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.5, 768.0, "768", True])
def test_sizes_are_whole_numbers_of_at_least_one(name, value):
    with pytest.raises(ConfigError, match=rf"{name} is {value!r}: give a whole number"):
        ModelConfig(**{name: value})
    assert getattr(ModelConfig(**{name: 1}), name) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rescale_every", -1),
        ("rescale_every", 0.5),
        ("rescale_every", True),
        ("layer_norm_epsilon", 0.0),
        ("layer_norm_epsilon", -1e-5),
        ("layer_norm_epsilon", 1.0),
        ("layer_norm_epsilon", math.nan),
        ("layer_norm_epsilon", "1e-5"),
        ("layer_norm_epsilon", None),
        ("bos_token_id", -1),
        ("eos_token_id", 0.0),
        ("eos_token_id", [0, 1]),
        ("tie_word_embeddings", "false"),
    ],
)
def test_other_numbers_out_of_bounds_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"^{name} is "):
        ModelConfig(**{name: value})


def test_no_rescaling_and_no_special_tokens_are_allowed():
    config = ModelConfig(rescale_every=0, bos_token_id=None, eos_token_id=None)
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().hidden_size = 1


@pytest.mark.parametrize(
    ("size", "layers", "hidden"),
    [
        ("169m", 12, 768),
        ("430m", 24, 1024),
        ("1b5", 24, 2048),
        ("3b", 32, 2560),
        ("7b", 32, 4096),
        ("14B", 40, 5120),
    ],
)
def test_presets_have_the_published_shapes(size, layers, hidden):
    config = preset(size)
    assert (config.num_hidden_layers, config.hidden_size) == (layers, hidden)
    assert (config.attention_size, config.ffn_size) == (hidden, 4 * hidden)


def test_derived_sizes_follow_a_changed_preset():
    config = preset("169m", hidden_size=64, vocab_size=256)
    assert (config.attention_size, config.ffn_size, config.vocab_size) == (64, 256, 256)
    assert config.num_hidden_layers == 12
    assert preset("169m", hidden_size=64, intermediate_size=100).ffn_size == 100


def test_unknown_presets_and_changes_are_errors():
    with pytest.raises(ConfigError, match=r"unknown size '1\.5b': choose from 169m, 430m, 1b5, 3b"):
        preset("1.5b")
    with pytest.raises(ConfigError, match="did you mean 'hidden_size'"):
        preset("169m", hiden_size=3)


def test_tied_embeddings_are_counted_once():
    free, tied = (ModelConfig(tie_word_embeddings=tie) for tie in (False, True))
    assert free.parameters - tied.parameters == 50277 * 768
