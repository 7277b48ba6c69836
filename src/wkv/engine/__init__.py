"""Engines: a ragged batch of tokens and a state to logits and a state."""

from __future__ import annotations

from .protocol import Engine, check_batch

__all__ = ["Engine", "check_batch"]
