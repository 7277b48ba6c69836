"""What calibrations are made from."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from wkv.engine import samples
from wkv.engine.native import load_format
from wkv.errors import ShapeError


def test_own_samples_repeat_and_follow_the_models_distribution(tiny_folder, monkeypatch):
    monkeypatch.setattr(samples, "LENGTH", 12)
    engine = load_format(tiny_folder, format="f32", threads=1)
    ids = samples.own_samples(engine, seed=1)
    assert ids.shape == (64, 12)
    assert np.array_equal(ids, samples.own_samples(engine, seed=1))
    assert not np.array_equal(ids, samples.own_samples(engine, seed=2))
    # Its own text is likelier to a model than chance: the mean log-probability is −entropy.
    logits, _ = engine.forward(ids.tolist(), logits="all")
    logits = logits.reshape(64, 12, -1)[:, :-1].astype(np.float64)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(logits, ids[:, 1:, None], 2).mean()
    entropy = (np.exp(logits) * logits).sum(-1).mean()
    assert abs(chosen - entropy) < 0.2 < chosen - logits.mean()


def test_every_token_is_drawn_as_often_as_its_probability_says(monkeypatch):
    class Fixed:
        config = SimpleNamespace(bos_token_id=0)

        def forward(self, tokens, state):
            return np.log(np.tile([0.1, 0.2, 0.3, 0.4], (len(tokens), 1))), None

    monkeypatch.setattr(samples, "LENGTH", 100)
    drawn = samples.own_samples(Fixed())[:, 1:]
    shares = np.bincount(drawn.ravel(), minlength=4) / drawn.size
    assert np.abs(shares - [0.1, 0.2, 0.3, 0.4]).max() < 0.02  # 6,336 draws: σ is 0.006


def test_a_text_gives_whole_sequences_from_all_of_it():
    ids = samples.text_samples(range(256 * 300 + 5))
    assert ids.shape == (128, 256)
    assert ids[0, 0] == 0
    assert ids[-1, -1] == 256 * 300 - 1
    assert (np.diff(ids, axis=1) == 1).all()
    assert samples.text_samples(range(2048)).shape == (8, 256)


def test_a_text_that_is_too_short_is_refused():
    with pytest.raises(ShapeError, match="too few"):
        samples.text_samples(range(2047))
