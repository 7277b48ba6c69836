from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wkv.checkpoint import dtypes

ALL_16_BIT = np.arange(1 << 16, dtype=np.uint16)


def test_every_bfloat16_reads_as_torch_reads_it():
    ours = dtypes.to_float32(ALL_16_BIT, "bfloat16")
    theirs = torch.from_numpy(ALL_16_BIT.copy()).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_torchs_at_and_around_every_tie(dtype):
    near = ALL_16_BIT.astype(np.uint32) << 16
    bits = np.concatenate([near + k for k in (0, 1, 0x0FFF, 0x1000, 0x7FFF, 0x8000, 0x8001)])
    values = bits.view(np.float32)
    theirs = torch.from_numpy(values.copy()).to(getattr(torch, dtype)).view(torch.uint16).numpy()
    ours = dtypes.from_float32(values, dtype).view(np.uint16)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(ours[numbers], theirs[numbers])
    assert np.isnan(dtypes.to_float32(dtypes.from_float32(values, dtype), dtype)[~numbers]).all()


@pytest.mark.parametrize("dtype", list(dtypes.STORAGE))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_found(dtype, bad):
    values = np.linspace(-3, 3, 101).astype(np.float32)
    assert dtypes.all_finite(dtypes.from_float32(values, dtype), dtype)
    values[77] = bad
    assert not dtypes.all_finite(dtypes.from_float32(values, dtype), dtype)


def test_the_largest_finite_values_are_finite():
    assert dtypes.all_finite(np.array([0x7BFF, 0xFBFF], np.uint16).view(np.float16), "float16")
    assert dtypes.all_finite(np.array([0x7F7F, 0xFF7F], np.uint16), "bfloat16")


@given(st.floats(width=32, allow_nan=False))
def test_bfloat16_rounds_to_nearest(value):
    x = np.array([value], np.float32)
    back = dtypes.to_float32(dtypes.from_float32(x, "bfloat16"), "bfloat16")
    if np.isfinite(back).all():
        assert abs(float(back[0]) - float(x[0])) <= abs(float(x[0])) * 2**-8 + 2**-134


def test_float64_beyond_float32_becomes_infinite_rather_than_an_error():
    assert np.isinf(dtypes.to_float32(np.array([1e300]), "float64")).all()


@pytest.mark.parametrize(
    ("given", "name"), [("FP16", "float16"), ("torch.bfloat16", "bfloat16"), ("Q4_0", "q4_0")]
)
def test_dtypes_have_one_name(given, name):
    assert dtypes.canonical(given) == name
