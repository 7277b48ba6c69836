"""Floating-point storage without torch: float64, float32, float16 and bfloat16 as NumPy arrays.

NumPy has no bfloat16: such values are held as their uint16 bit patterns.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STORAGE: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),  # bit patterns
}
_ALIASES = {
    "f64": "float64",
    "fp64": "float64",
    "double": "float64",
    "f32": "float32",
    "fp32": "float32",
    "float": "float32",
    "f16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}


def canonical(name: str) -> str:
    """A dtype's one name: ``"FP16"`` -> ``"float16"``, ``"Q4_0"`` -> ``"q4_0"``."""
    name = name.lower().removeprefix("torch.")
    return _ALIASES.get(name, name)


def to_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored values as float32; exact except for float64, whose overflow becomes infinite."""
    if dtype == "bfloat16":
        wide = stored.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    with np.errstate(over="ignore"):
        return stored.astype(np.float32)


def from_float32(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 values in storage form, rounded to nearest even; overflow becomes infinite."""
    if dtype == "bfloat16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        # Adding 0x7FFF, or 0x8000 where the kept part is odd, carries into it exactly when the
        # dropped part is above, or at, the half.
        rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
        nan = np.isnan(values)
        if nan.any():  # the carry could make a NaN infinite: cut it short and keep it quiet
            rounded[nan] = ((bits[nan] >> 16) | 0x40).astype(np.uint16)
        return rounded
    with np.errstate(over="ignore"):
        return values.astype(STORAGE[dtype])


def all_finite(stored: np.ndarray, dtype: str) -> bool:
    """Whether no stored value is infinite or NaN."""
    if dtype in ("float16", "bfloat16"):
        exponent = np.uint16(0x7C00 if dtype == "float16" else 0x7F80)
        bits = stored.view(np.uint16) & exponent
        return not bits.size or int(bits.max()) != exponent
    return bool(np.isfinite(stored).all())
