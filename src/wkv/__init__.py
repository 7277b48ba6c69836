"""RWKV language models: trained like a transformer, run like an RNN."""

from __future__ import annotations

__version__ = "0.1.0"
