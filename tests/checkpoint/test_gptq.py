"""Rounding for the products: against NumPy, against plain rounding, and its bytes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.engine.conftest import write_checkpoint
from tests.oracles.models import random_weights
from wkv import _native
from wkv.checkpoint import gptq, open_checkpoint
from wkv.checkpoint.calibration import walk
from wkv.checkpoint.packed import q4_headers, q4_panels
from wkv.config import ModelConfig
from wkv.engine.native import load_format


def unpacked(values, lanes):
    rows, cols = values.values.shape
    data = _native.aligned_bytes(_native.packed_bytes("q4", rows, cols, lanes))
    data[:] = q4_panels(values, lanes)
    return np.asarray(_native.unpack((data, "q4", rows, cols, lanes)))


def correlated(tokens, cols, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((cols // 4, cols)) + 0.2
    noise = rng.standard_normal((tokens, cols)) * 0.3
    return (rng.standard_normal((tokens, cols // 4)) @ mixing + noise).astype(np.float32)


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (17, 65), (70, 200)])
def test_panels_hold_exactly_the_values(rows, cols, lanes):
    weights = np.random.default_rng(0).standard_normal((rows, cols)).astype(np.float32)
    found = gptq.fit(weights, gptq.moments(correlated(64, max(cols, 4))[:, :cols]), threads=1)
    assert np.array_equal(unpacked(found, lanes), found.weights())


def test_headers_are_those_of_the_packed_matrix():
    weights = np.random.default_rng(1).standard_normal((20, 130)).astype(np.float32)
    packed = _native.pack(weights, "q4", 1, None, 1)
    scale, offset = q4_headers(packed, 20, 130)
    plain = np.asarray(_native.unpack((packed, "q4", 20, 130, 1)))
    steps = (plain - np.repeat(offset, 64, 1)[:, :130]) / np.repeat(scale, 64, 1)[:, :130]
    assert np.abs(steps - np.rint(steps)).max() < 1e-3
    assert steps.min() > -0.01
    assert steps.max() < 15.01


def test_products_are_closer_than_with_plain_rounding():
    weights = np.random.default_rng(2).standard_normal((48, 256)).astype(np.float32)
    inputs, other = correlated(4096, 256), correlated(512, 256)
    found = gptq.fit(weights, gptq.moments(inputs), threads=1).weights()
    packed = _native.pack(weights, "q4", 1, None, 1)
    plain = np.asarray(_native.unpack((packed, "q4", 48, 256, 1)))

    def error(w):
        return np.square(other @ (w - weights).T).mean()

    assert error(found) < 0.5 * error(plain)


def test_independent_equal_inputs_leave_nothing_to_compensate():
    weights = np.random.default_rng(3).standard_normal((32, 128)).astype(np.float32)
    found = gptq.fit(weights, [np.eye(128)], threads=1).weights()
    packed = _native.pack(weights, "q4", 1, None, 1)
    plain = np.asarray(_native.unpack((packed, "q4", 32, 128, 1)))
    assert np.square(found - weights).sum() <= 1.001 * np.square(plain - weights).sum()


def test_wide_matrices_are_fitted_span_by_span(monkeypatch):
    monkeypatch.setattr(gptq, "SPAN", 128)
    weights = np.random.default_rng(4).standard_normal((16, 300)).astype(np.float32)
    moments = gptq.moments(correlated(2048, 300))
    assert [m.shape for m in moments] == [(128, 128), (128, 128), (44, 44)]
    found = gptq.fit(weights, moments, threads=1)
    assert found.values.shape == (16, 300)
    assert found.scale.shape == (16, 5)
    assert np.abs(unpacked(found, 1) - weights).max() < 1


def test_inputs_that_are_always_zero_are_rounded_plainly():
    weights = np.random.default_rng(5).standard_normal((16, 64)).astype(np.float32)
    found = gptq.fit(weights, gptq.moments(np.zeros((100, 64), np.float32)), threads=1)
    assert np.abs(found.weights() - weights).max() < 0.5


def test_constant_weights_survive():
    weights = np.full((16, 64), 0.5, np.float32)
    found = gptq.fit(weights, gptq.moments(correlated(256, 64)), threads=1)
    assert np.array_equal(found.weights(), weights)


@pytest.mark.parametrize("tied", [False, True])
def test_the_walk_is_the_models_own_forward(tmp_path, tied):
    config = ModelConfig(
        vocab_size=90,
        hidden_size=32,
        attention_hidden_size=48,
        num_hidden_layers=2,
        tie_word_embeddings=tied,
    )
    weights = random_weights(config)
    if tied:
        weights["head.weight"] = weights["emb.weight"]
    source = write_checkpoint(tmp_path, config, weights)
    ids = np.random.default_rng(0).integers(0, 90, (3, 7))
    logits = {}

    with open_checkpoint(source) as checkpoint:

        def product(name, inputs):
            out = inputs @ checkpoint.tensor(name).astype(np.float32).T
            logits[name] = out
            return out

        walk(checkpoint, ids, product)
    expected, _ = load_format(source, format="f32").forward(ids.tolist(), logits="all")
    assert np.abs(logits["head.weight"] - expected).max() < 1e-4 * np.abs(expected).max()
