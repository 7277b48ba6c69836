"""One pass of a model over calibration tokens, layer by layer, that shows each matrix its inputs.

Only the matrix at hand is in memory, so models of any size are calibrated in that of one layer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import _native
from .checkpoint import Checkpoint

# (original name of a matrix, its inputs [N, cols]) -> its outputs [N, rows]
Product = Callable[[str, np.ndarray], np.ndarray]


def walk(checkpoint: Checkpoint, ids: np.ndarray, product: Product) -> None:
    """Run ``ids`` [sequences, tokens] through a model whose products are all done by ``product``.

    Products are asked for in the order of :func:`wkv.checkpoint.quantized.execution_order`, so
    what is done to a matrix reaches the inputs of those after it.
    """
    config = checkpoint.config
    sequences, length = ids.shape

    def vector(name: str) -> np.ndarray:
        return checkpoint.tensor(name).astype(np.float32).reshape(-1)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        weight, bias = vector(f"{name}.weight"), vector(f"{name}.bias")
        return np.asarray(_native.layer_norm(x, weight, bias, config.layer_norm_epsilon, ""))

    def shifted(x: np.ndarray) -> np.ndarray:
        x = x.reshape(sequences, length, -1)
        before = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
        return before.reshape(sequences * length, -1)

    embedding = checkpoint.tensor("emb.weight")
    x = norm(embedding[ids.reshape(-1)].astype(np.float32), "blocks.0.ln0")
    del embedding
    for layer in range(config.num_hidden_layers):
        block = f"blocks.{layer}"

        def mixed(now: np.ndarray, before: np.ndarray, name: str, block: str = block) -> np.ndarray:
            share = vector(f"{block}.{name}")
            return now * share + before * (1 - share)

        now = norm(x, f"{block}.ln1")
        before = shifted(now)
        k, v, r = (
            product(f"{block}.att.{name}.weight", mixed(now, before, f"att.time_mix_{name[0]}"))
            for name in ("key", "value", "receptance")
        )
        decay, first = -np.exp(vector(f"{block}.att.time_decay")), vector(f"{block}.att.time_first")
        for at in range(0, sequences * length, length):
            state = np.zeros((3, config.attention_size), np.float32)
            state[2] = -1e38
            here = slice(at, at + length)
            _native.recurrence(k[here], v[here], r[here], decay, first, state, "")
        x = x + product(f"{block}.att.output.weight", r)

        now = norm(x, f"{block}.ln2")
        before = shifted(now)
        hidden = product(f"{block}.ffn.key.weight", mixed(now, before, "ffn.time_mix_k"))
        gate = product(f"{block}.ffn.receptance.weight", mixed(now, before, "ffn.time_mix_r"))
        hidden = np.square(np.maximum(hidden, 0))
        sigmoid = 0.5 * (1 + np.tanh(0.5 * gate))
        x = x + sigmoid * product(f"{block}.ffn.value.weight", hidden)
    product("head.weight", norm(x, "ln_out"))
