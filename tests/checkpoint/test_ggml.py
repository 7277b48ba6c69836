from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from wkv.checkpoint import ggml

f32 = np.float32
KINDS = list(ggml.BLOCK_BYTES)


def plain_quantize(block: np.ndarray, kind: str) -> bytes:
    """One block, one value at a time, in float32: ggml's reference in words."""
    values = [f32(x) for x in block]
    if kind == "q8_0":
        scale = max(abs(x) for x in values) / f32(127)
        inverse = f32(1) / scale if scale else f32(0)
        q = []
        for x in values:
            size = abs(x * inverse)
            whole = int(size) + (size - f32(int(size)) >= f32(0.5))
            q.append(-whole if x * inverse < 0 else whole)
        return struct.pack("<e32b", float(scale), *q)
    bits = 4 if kind[1] == "4" else 5
    top = (1 << bits) - 1
    if kind.endswith("_0"):
        extreme = f32(0)
        for x in values:
            if abs(x) > abs(extreme):
                extreme = x
        scale = extreme / f32(-(1 << (bits - 1)))
        inverse = f32(1) / scale if scale else f32(0)
        q = [min(top, int(x * inverse + f32((1 << (bits - 1)) + 0.5))) for x in values]
        head = struct.pack("<e", float(scale))
    else:
        low = min(values)
        scale = (max(values) - low) / f32(top)
        inverse = f32(1) / scale if scale else f32(0)
        q = [min(top, int((x - low) * inverse + f32(0.5))) for x in values]
        head = struct.pack("<ee", float(scale), float(low))
    if bits == 5:
        head += struct.pack("<I", sum((v >> 4) << i for i, v in enumerate(q)))
    return head + bytes((q[j] & 15) | ((q[j + 16] & 15) << 4) for j in range(16))


def plain_dequantize(blob: bytes, kind: str) -> list[float]:
    (scale,) = struct.unpack_from("<e", blob)
    if kind == "q8_0":
        return [f32(scale) * f32(q) for q in struct.unpack_from("<32b", blob, 2)]
    at = 2
    low = None
    if kind.endswith("_1"):
        (low,) = struct.unpack_from("<e", blob, at)
        at += 2
    high = 0
    if kind[1] == "5":
        (high,) = struct.unpack_from("<I", blob, at)
        at += 4
    q = [blob[at + i % 16] >> (4 if i >= 16 else 0) & 15 | (high >> i & 1) << 4 for i in range(32)]
    if low is not None:
        return [f32(f32(v) * f32(scale)) + f32(low) for v in q]
    half = 8 if kind == "q4_0" else 16
    return [f32(v - half) * f32(scale) for v in q]


def awkward_blocks() -> np.ndarray:
    rng = np.random.default_rng(1)
    blocks = rng.standard_normal((60, 32)).astype(f32)
    blocks[:20] *= 1e-3
    blocks[20:30] = np.round(blocks[20:30] * 4) / 4  # ties
    blocks[30] = 0
    blocks[31] = -0.0
    blocks[32] = 3
    blocks[33] = -3
    blocks[34] = 0
    blocks[34, 5] = 7
    blocks[35, 4], blocks[35, 9] = 9, -9  # two extremes: the first counts
    blocks[36, 4], blocks[36, 9] = -9, 9
    blocks[37] = 1e-7
    blocks[38] *= 1e4
    return blocks


@pytest.mark.parametrize("kind", KINDS)
def test_quantized_blocks_equal_the_plain_reference_bit_for_bit(kind):
    blocks = awkward_blocks()
    want = b"".join(plain_quantize(b, kind) for b in blocks)
    got = ggml.quantize(blocks.reshape(30, 64), kind)
    assert got.shape == (30, 2 * ggml.BLOCK_BYTES[kind])
    assert got.tobytes() == want


@pytest.mark.parametrize("kind", KINDS)
def test_dequantized_values_equal_the_plain_reference(kind):
    stored = ggml.quantize(awkward_blocks(), kind)
    want = [plain_dequantize(row.tobytes(), kind) for row in stored]
    np.testing.assert_array_equal(ggml.dequantize(stored, kind), np.array(want, f32))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    arrays.arrays(f32, (3, 64), elements=st.floats(-1000, 1000, width=32)),
)
def test_a_round_trip_stays_within_one_step(kind, values):
    back = ggml.dequantize(ggml.quantize(values, kind), kind).reshape(-1, 32)
    blocks = values.reshape(-1, 32)
    steps = {"q4_0": 8, "q4_1": 15, "q5_0": 16, "q5_1": 31, "q8_0": 127}[kind]
    span = np.ptp(blocks, 1) if kind.endswith("_1") else np.abs(blocks).max(1)
    # One step, as the extreme's opposite falls off the end of _0 formats; and float16's rounding.
    allowed = span / steps + np.abs(blocks).max(1) * 2**-9 + 1e-5
    assert (np.abs(back - blocks).max(1) <= allowed).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_scale_that_is_not_finite_is_found(kind):
    stored = ggml.quantize(awkward_blocks(), kind)
    assert ggml.all_finite(stored, kind)
    stored[7, 0:2] = 0, 0x7C
    assert not ggml.all_finite(stored, kind)


@pytest.mark.parametrize("kind", ["q4_1", "q5_1"])
def test_a_minimum_that_is_not_finite_is_found(kind):
    stored = ggml.quantize(awkward_blocks(), kind)
    stored[7, 2:4] = 0, 0xFE
    assert not ggml.all_finite(stored, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_values_whose_scale_float32_cannot_invert_become_zero(kind):
    stored = ggml.quantize(np.full((1, 32), 1e-40, f32), kind)
    np.testing.assert_array_equal(ggml.dequantize(stored, kind), np.zeros((1, 32), f32))
