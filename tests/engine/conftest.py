"""Small checkpoints on disk, with random weights that are nowhere trivial."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.oracles.models import random_weights


def write_checkpoint(folder, config, weights=None, seed=0):
    """A Hugging Face folder: config.json and model.safetensors."""
    from wkv.checkpoint import to_hf

    weights = weights if weights is not None else random_weights(config, seed)
    tensors = {to_hf(n): np.ascontiguousarray(w) for n, w in weights.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": "rwkv", **config.to_dict()}))
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tiny_config):
    return random_weights(tiny_config)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_config, tiny_weights):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config, tiny_weights)
