"""Weight files: original ``.pth``, Hugging Face folders, rwkv.cpp; read, converted, described."""

from __future__ import annotations

from .checkpoint import Checkpoint, RawTensor, open_checkpoint, open_lora
from .convert import Conversion, convert
from .describe import describe
from .load import load_state_dict
from .names import expected_tensors, from_hf, to_hf

__all__ = [
    "Checkpoint",
    "Conversion",
    "RawTensor",
    "convert",
    "describe",
    "expected_tensors",
    "from_hf",
    "load_state_dict",
    "open_checkpoint",
    "open_lora",
    "to_hf",
]
