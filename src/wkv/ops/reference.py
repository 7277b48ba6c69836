"""The wkv operator, as it is defined: a float64 loop over tokens. Slow on purpose.

With w the log decay (negative) and u the bonus of the current token, per channel (RWKV paper,
equations 16 to 18 in the stabilised form of its appendix):

    q = max(p, u + k)      y = (e^(p-q)·a + e^(u+k-q)·v) / (e^(p-q)·b + e^(u+k-q))
    q = max(p + w, k)      a ← e^(p+w-q)·a + e^(k-q)·v;  b ← e^(p+w-q)·b + e^(k-q);  p ← q
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..state import EMPTY_MAX

WkvArrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def wkv_reference(
    k: np.ndarray,
    v: np.ndarray,
    decay: np.ndarray,
    first: np.ndarray,
    state: WkvArrays | None = None,
    starts: Sequence[int] | None = None,
) -> tuple[np.ndarray, WkvArrays]:
    """Run the recurrence in float64.

    Args:
        k: keys [B, T, A].
        v: values [B, T, A].
        decay: w = −exp(time_decay) [A].
        first: u = time_first [A].
        state: (num, den, max), each [B, A] ([N, A] when packed); None is the empty state.
        starts: cumulative offsets [N+1] of N sequences packed along T; B must then be 1.

    Returns:
        y [B, T, A] and the final (num, den, max), all float64.
    """
    k, v, w, u = (np.asarray(x, dtype=np.float64) for x in (k, v, decay, first))
    if starts is not None:
        parts: list[Any] = []
        for n in range(len(starts) - 1):
            row = (
                None if state is None else (state[0][n, None], state[1][n, None], state[2][n, None])
            )
            span = slice(int(starts[n]), int(starts[n + 1]))
            parts.append(wkv_reference(k[:, span], v[:, span], w, u, row))
        final = tuple(np.concatenate([p[1][i] for p in parts]) for i in range(3))
        return np.concatenate([p[0] for p in parts], axis=1), final  # type: ignore[return-value]

    batch, length, channels = k.shape
    if state is None:
        a = np.zeros((batch, channels))
        b, p = a, np.full_like(a, EMPTY_MAX)
    else:
        a, b, p = (np.asarray(x, dtype=np.float64) for x in state)
    y = np.empty_like(k)
    for t in range(length):
        kt, vt = k[:, t], v[:, t]
        q = np.maximum(p, u + kt)
        old, new = np.exp(p - q), np.exp(u + kt - q)
        y[:, t] = (old * a + new * vt) / (old * b + new)
        q = np.maximum(p + w, kt)
        old, new = np.exp(p + w - q), np.exp(kt - q)
        a, b, p = old * a + new * vt, old * b + new, q
    return y, (a, b, p)
