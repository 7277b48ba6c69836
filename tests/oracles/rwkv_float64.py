"""RWKV-4 as a float64 NumPy loop over tokens: the definition that every engine is tested against.

Written from the formulas alone; it shares no code with the package.
"""

from __future__ import annotations

import numpy as np


def empty_state(layers: int, d: int, a: int) -> dict[str, np.ndarray]:
    return {
        "att_x": np.zeros((layers, d)),
        "ffn_x": np.zeros((layers, d)),
        "num": np.zeros((layers, a)),
        "den": np.zeros((layers, a)),
        "max": np.full((layers, a), -1e38),
    }


def forward(
    weights: dict[str, np.ndarray],
    tokens: list[int],
    state: dict[str, np.ndarray] | None = None,
    eps: float = 1e-5,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """``weights`` by original names; returns logits [T, V] and the state (fields [L, D or A])."""
    w = {name: np.asarray(x, dtype=np.float64) for name, x in weights.items()}
    layers = 1 + max(int(n.split(".")[1]) for n in w if n.startswith("blocks."))
    d, a = w["emb.weight"].shape[1], w["blocks.0.att.time_decay"].shape[0]
    state = empty_state(layers, d, a) if state is None else {n: x.copy() for n, x in state.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean()) / np.sqrt(x.var() + eps)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    rows = []
    for token in tokens:
        x = norm(w["emb.weight"][token], "blocks.0.ln0")
        for i in range(layers):
            b = f"blocks.{i}"

            def mixed(x: np.ndarray, last: np.ndarray, name: str, b: str = b) -> np.ndarray:
                mu = w[f"{b}.{name}"].reshape(-1)
                return x * mu + last * (1 - mu)

            h, last = norm(x, f"{b}.ln1"), state["att_x"][i]
            k = w[f"{b}.att.key.weight"] @ mixed(h, last, "att.time_mix_k")
            v = w[f"{b}.att.value.weight"] @ mixed(h, last, "att.time_mix_v")
            r = sigmoid(w[f"{b}.att.receptance.weight"] @ mixed(h, last, "att.time_mix_r"))
            n, m, p = state["num"][i], state["den"][i], state["max"][i]
            u, decay = w[f"{b}.att.time_first"], -np.exp(w[f"{b}.att.time_decay"])
            q = np.maximum(p, u + k)
            y = (np.exp(p - q) * n + np.exp(u + k - q) * v) / (
                np.exp(p - q) * m + np.exp(u + k - q)
            )
            q = np.maximum(p + decay, k)
            state["num"][i] = np.exp(p + decay - q) * n + np.exp(k - q) * v
            state["den"][i] = np.exp(p + decay - q) * m + np.exp(k - q)
            state["max"][i] = q
            state["att_x"][i] = h
            x = x + w[f"{b}.att.output.weight"] @ (r * y)

            h, last = norm(x, f"{b}.ln2"), state["ffn_x"][i]
            k = w[f"{b}.ffn.key.weight"] @ mixed(h, last, "ffn.time_mix_k")
            r = sigmoid(w[f"{b}.ffn.receptance.weight"] @ mixed(h, last, "ffn.time_mix_r"))
            state["ffn_x"][i] = h
            x = x + r * (w[f"{b}.ffn.value.weight"] @ np.square(np.maximum(k, 0)))
        rows.append(w["head.weight"] @ norm(x, "ln_out"))
    vocab = w["head.weight"].shape[0]
    return (np.stack(rows) if rows else np.zeros((0, vocab))), state
