"""Small transformers-style models with perturbed weights, and prompts for them."""

from __future__ import annotations

import pytest

from tests.oracles.models import original_name, random_weights
from wkv.config import ModelConfig


def causal_lm(config: ModelConfig, seed: int = 0, **kwargs):
    """Our RwkvForCausalLM with the random weights of ``seed``."""
    import torch

    from wkv.hf import RwkvConfig, RwkvForCausalLM

    model = RwkvForCausalLM(RwkvConfig.of(config, **kwargs))
    weights = random_weights(config, seed)
    model.load_state_dict(
        {n: torch.from_numpy(weights[original_name(n)].copy()) for n in model.state_dict()}
    )
    return model.eval()


@pytest.fixture(scope="session", autouse=True)
def registered():
    """The Auto classes know ours in every test here."""
    from wkv.hf import register

    register()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices this small only wait for a second thread."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(square_config):
    """For tests that do not change it."""
    return causal_lm(square_config)


@pytest.fixture
def own_model(square_config):
    """For tests that do."""
    return causal_lm(square_config)


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Ragged prompts."""
    return [[5, 17, 3, 88, 5, 41, 7], [23, 23, 7], [60, 1, 9, 44, 12], [96]]


def padded(prompts: list[list[int]], side: str = "left", pad: int = 0):
    """Token ids and mask [B, T]."""
    import torch

    width = max(map(len, prompts))
    ids, mask = [], []
    for prompt in prompts:
        fill = width - len(prompt)
        left = fill if side == "left" else fill // 2 if side == "both" else 0
        ids.append([pad] * left + prompt + [pad] * (fill - left))
        mask.append([0] * left + [1] * len(prompt) + [0] * (fill - left))
    return torch.tensor(ids), torch.tensor(mask)


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer of 97 characters: 0 ends and pads (on the left), 1 is a newline, then ASCII."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<|end|>", "\u010a", "\u0120", *map(chr, range(33, 127))]
    bpe = Tokenizer(models.BPE({c: i for i, c in enumerate(characters)}, []))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>", padding_side="left"
    )
