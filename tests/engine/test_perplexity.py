from __future__ import annotations

import numpy as np
import pytest

from tests.oracles import rwkv_float64
from wkv.engine.native import load_format
from wkv.engine.perplexity import perplexity
from wkv.errors import ShapeError


def test_perplexity_equals_the_float64_loop(tiny_folder, tiny_weights):
    ids = np.random.default_rng(0).integers(0, 97, 60).tolist()
    logits, _ = rwkv_float64.forward(tiny_weights, ids[:-1])
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    expected = np.exp(-np.mean(logs[np.arange(59), ids[1:]]))
    engine = load_format(tiny_folder, format="f32")
    seen = []
    got = perplexity(engine, ids, chunk=7, progress=lambda *step: seen.append(step))
    assert got == pytest.approx(expected, rel=1e-4)
    assert seen[-1] == (59, 59)


def test_one_token_is_not_a_text(tiny_folder):
    with pytest.raises(ShapeError, match="at least two"):
        perplexity(load_format(tiny_folder), [1])
