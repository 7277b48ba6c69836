"""The 32-value block formats of rwkv.cpp (ggml): Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

A block of values x is stored as small integers q with a float16 scale d (and minimum m):

========  =====  ==============================================  ==============
format    bytes  layout                                          value
========  =====  ==============================================  ==============
``q4_0``  18     d; 16 bytes of nibbles                          (q − 8)·d
``q4_1``  20     d, m; 16 bytes of nibbles                       q·d + m
``q5_0``  22     d; 32 high bits; 16 bytes of nibbles            (q − 16)·d
``q5_1``  24     d, m; 32 high bits; 16 bytes of nibbles         q·d + m
``q8_0``  34     d; 32 int8                                      q·d
========  =====  ==============================================  ==============

Byte j of the nibbles holds value j low and value j + 16 high. Rounding follows ggml's reference
code operation for operation in float32, so files are equal bit for bit with those that a build
without fused multiply-add writes.
"""

from __future__ import annotations

import numpy as np

BLOCK = 32
BLOCK_BYTES = {"q4_0": 18, "q4_1": 20, "q5_0": 22, "q5_1": 24, "q8_0": 34}


def row_bytes(columns: int, dtype: str) -> int:
    """Bytes of one row of ``columns`` values, a multiple of 32."""
    return columns // BLOCK * BLOCK_BYTES[dtype]


def quantize(values: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 [rows, columns] -> uint8 [rows, row_bytes]. Columns must be a multiple of 32."""
    rows = len(values)
    x = np.ascontiguousarray(values, np.float32).reshape(-1, BLOCK)
    out = np.empty((len(x), BLOCK_BYTES[dtype]), np.uint8)
    if dtype == "q8_0":
        scale = np.abs(x).max(1, keepdims=True) / np.float32(127)
        _put_float16(out, 0, scale)
        scaled = x * _inverse(scale)
        size = np.abs(scaled)
        whole = np.floor(size)
        whole += size - whole >= 0.5  # halves away from zero, as C's roundf
        out[:, 2:] = np.copysign(whole, scaled).astype(np.int8).view(np.uint8)
        return out.reshape(rows, -1)
    bits = 4 if dtype.startswith("q4") else 5
    if dtype.endswith("_0"):
        # The value of largest magnitude, sign included, maps to −2^(bits−1) exactly.
        extreme = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
        extreme[extreme == 0] = 0  # not −0
        scale = extreme / np.float32(-(1 << (bits - 1)))
        _put_float16(out, 0, scale)
        q = x * _inverse(scale) + np.float32((1 << (bits - 1)) + 0.5)
        at = 2
    else:
        low = x.min(1, keepdims=True)
        scale = (x.max(1, keepdims=True) - low) / np.float32((1 << bits) - 1)
        _put_float16(out, 0, scale)
        _put_float16(out, 2, low)
        q = (x - low) * _inverse(scale) + np.float32(0.5)
        at = 4
    whole = np.minimum(q.astype(np.uint8), (1 << bits) - 1)
    if bits == 5:
        out[:, at : at + 4] = np.packbits(whole >> 4, axis=1, bitorder="little")
        at += 4
    out[:, at:] = (whole[:, :16] & 15) | (whole[:, 16:] << 4)
    return out.reshape(rows, -1)


def dequantize(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Uint8 [rows, row_bytes] -> float32 [rows, columns]."""
    rows = stored.shape[0]
    blocks = np.ascontiguousarray(stored).reshape(-1, BLOCK_BYTES[dtype])
    scale = _get_float16(blocks, 0)
    if dtype == "q8_0":
        return (blocks[:, 2:].view(np.int8) * scale).reshape(rows, -1)
    nibbles = blocks[:, -16:]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
    if dtype.startswith("q5"):
        high = np.unpackbits(blocks[:, -20:-16], axis=1, bitorder="little")
        q |= high << 4
    if dtype.endswith("_0"):
        half = 8 if dtype == "q4_0" else 16
        return ((q.astype(np.int8) - half) * scale).reshape(rows, -1)
    return (q * scale + _get_float16(blocks, 2)).reshape(rows, -1)


def all_finite(stored: np.ndarray, dtype: str) -> bool:
    """Whether every block's scale and minimum are finite; the integers always are."""
    blocks = stored.reshape(-1, BLOCK_BYTES[dtype])
    ends = (2, 4) if dtype.endswith("_1") else (2,)
    return all(bool(np.isfinite(_get_float16(blocks, end - 2)).all()) for end in ends)


def _inverse(scale: np.ndarray) -> np.ndarray:
    # A subnormal scale has no finite inverse and is stored as float16 zero anyway.
    usable = np.abs(scale) >= np.finfo(np.float32).tiny
    return np.where(usable, 1 / np.where(usable, scale, 1), 0).astype(np.float32)


def _put_float16(out: np.ndarray, at: int, values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        out[:, at : at + 2] = values.astype("<f2").view(np.uint8)


def _get_float16(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)
