"""A sentence vector from the state after the sentence.

The original author's advice (README of RWKV-LM): begin with the token-shift vectors and with the
wkv average, numerator divided by denominator; leave out the running maximum; do not average over
the state's vectors, whose meanings and ranges differ, but normalise them apart, with means and
standard deviations of each channel taken from various texts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import ShapeError, StateError
from .state import State

FIELDS = ("att_x", "num / den", "ffn_x")
EPSILON = 1e-5


@dataclass(frozen=True)
class EmbeddingStatistics:
    """Mean and standard deviation of every channel of the vectors, each [E] float32."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, states: State) -> EmbeddingStatistics:
        """From the states after at least two texts; take a few hundred, as various as possible."""
        if states.batch_size < 2:
            raise ShapeError(
                f"statistics of {states.batch_size} text: give at least 2, better hundreds"
            )
        flat = np.concatenate([v.reshape(len(v), -1) for v in vectors(states)], 1)
        return cls(flat.mean(0), flat.std(0))


def vectors(states: State) -> list[np.ndarray]:
    """The parts of the state that make the sentence vector, in the order of ``FIELDS``.

    Returns:
        Last post-LayerNorm attention input [B, L, D], wkv average [B, L, A], last post-LayerNorm
        feed-forward input [B, L, D]; float32.
    """
    states = states.to("numpy")
    if not states.den.all():
        raise StateError("an empty state has no sentence vector: run at least one token")
    return [states.att_x, states.num / states.den, states.ffn_x]


def embed(states: State, statistics: EmbeddingStatistics | None = None) -> np.ndarray:
    """Sentence vectors of unit length: their dot product is the cosine similarity.

    Args:
        states: after each of B sentences.
        statistics: of each channel over various texts, as the author advises; None normalises
            each vector of the state (each field of each layer) over its own channels, which needs
            no texts.

    Returns:
        [B, E] float32, E = L·(2·D + A): all layers of a field, fields in the order of ``FIELDS``.
    """
    parts = vectors(states)
    if statistics is None:
        parts = [
            (v - v.mean(-1, keepdims=True)) / (v.std(-1, keepdims=True) + EPSILON) for v in parts
        ]
    flat = np.concatenate([v.reshape(len(v), -1) for v in parts], 1)
    if statistics is not None:
        if statistics.mean.shape != flat.shape[1:]:
            raise ShapeError(
                f"statistics of {len(statistics.mean)} channels for vectors of {flat.shape[1]}: "
                "collect them with this model"
            )
        flat = (flat - statistics.mean) / (statistics.std + EPSILON)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return (flat / np.maximum(length, EPSILON)).astype(np.float32)
