"""Logits beside the ``rwkv`` package's, on the same perturbed weights."""

from __future__ import annotations

import pytest
import torch

from tests.hf.test_modeling import TOKENS, close
from tests.oracles import rwkv_float64
from tests.oracles.models import random_weights
from tests.oracles.rwkv_package import rwkv_package_model


@pytest.fixture(scope="module")
def theirs(square_config, tmp_path_factory):
    pytest.importorskip("rwkv")
    folder = tmp_path_factory.mktemp("pth")
    return rwkv_package_model(square_config, random_weights(square_config), folder)


@torch.no_grad()
def test_prefill_and_cached_decode_equal_the_rwkv_package(model, theirs, square_config):
    exact, _ = rwkv_float64.forward(random_weights(square_config), TOKENS)
    ours = model(torch.tensor([TOKENS])).logits[0]
    other = theirs.forward(TOKENS, None, full_output=True)[0]
    close(ours, other, 1e-4)
    close(other, exact, 1e-4)
    close(ours, exact, 1e-4)
    state, their_state = None, None
    for i, token in enumerate(TOKENS):
        output = model(torch.tensor([[token]]), state=state)
        state = output.state
        row, their_state = theirs.forward([token], their_state)
        close(output.logits[0, 0], row, 1e-4)
        close(row, exact[i], 1e-4)
