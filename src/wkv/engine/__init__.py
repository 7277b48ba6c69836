"""Engines: a ragged batch of tokens and a state to logits and a state.

:func:`wkv.load` takes ``load_native(path, *, dtype, quant, threads) -> Engine`` from
``wkv.engine.native`` where that module is there, else ``load_torch``.
"""

from __future__ import annotations

from .protocol import Engine, check_batch

__all__ = ["Engine", "check_batch"]
