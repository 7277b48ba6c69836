"""Every instruction set's kernels against plain NumPy over the unpacked weights."""

from __future__ import annotations

import numpy as np
import pytest

from wkv import _native

ISAS = _native.engine_instruction_sets()
FORMATS = ("f32", "bf16", "q8", "q4")
BLOCK = {"q8": 128, "q4": 64}
# Relative to Σ|w·x|: float32 sums; q8 and q4 sum exactly and add few floats.
TOLERANCE = {"f32": 3e-6, "bf16": 3e-6, "q8": 1e-6, "q4": 1e-6}


def pack(w, format, lanes=1, importance=None):
    return (_native.pack(w, format, lanes, importance, 1), format, *w.shape, lanes)


def bfloat16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def rounded_inputs(x, format):
    """The values that the products really see: what `quantize` makes of the inputs."""
    if format in ("f32", "bf16"):
        return x.astype(np.float64)
    n = BLOCK[format]
    padded = np.zeros((x.shape[0], -(-x.shape[1] // n) * n), np.float32)
    padded[:, : x.shape[1]] = x
    blocks = padded.reshape(x.shape[0], -1, n)
    top = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.where(top > 0, np.float32(127) / np.where(top > 0, top, 1), 0).astype(np.float32)
    q = np.rint(blocks * inverse).astype(np.float64)
    scale = (top / np.float32(127)).astype(np.float64)
    return (q * scale).reshape(padded.shape)[:, : x.shape[1]]


def case(rows, cols, tokens, seed=0, zeros=0.0):
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((rows, cols)).astype(np.float32)
    x = rng.standard_normal((tokens, cols)).astype(np.float32)
    x[rng.random(x.shape) < zeros] = 0
    return w, x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize(
    ("rows", "cols", "tokens"),
    [
        (1, 1, 1),
        (15, 63, 2),
        (16, 64, 3),
        (17, 65, 5),
        (64, 128, 13),
        (70, 129, 16),
        (131, 500, 31),
    ],
)
def test_products_equal_numpy_over_the_unpacked_weights(isa, format, lanes, rows, cols, tokens):
    w, x = case(rows, cols, tokens)
    packed = pack(w, format, lanes)
    weights = _native.unpack(packed).astype(np.float64)
    inputs = rounded_inputs(x, format)
    expected = inputs @ weights.T
    bound = TOLERANCE[format] * (np.abs(inputs) @ np.abs(weights).T + 1e-6)
    got = _native.matmul(packed, x, isa)
    assert got.shape == (tokens, rows)
    assert (np.abs(got - expected) <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("lanes", [1, 4])
def test_products_are_the_same_bits_alone_in_a_batch_and_by_panels(isa, format, lanes):
    w, x = case(150, 1100, 41)  # wide enough for columns in several chunks
    packed = pack(w, format, lanes)
    whole = _native.matmul(packed, x, isa)
    for n in (1, 2, 3, 6, 7, 12, 13, 16, 23, 24, 25, 40):
        assert np.array_equal(_native.matmul(packed, x[:n], isa), whole[:n])
    panels = -(-150 // (16 * lanes))
    for cut in range(panels + 1):
        parts = [
            _native.matmul(packed, x, isa, first=a, last=b) for a, b in ((0, cut), (cut, panels))
        ]
        joined = np.where(np.isnan(parts[0]), parts[1], parts[0])
        assert np.array_equal(joined, whole)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.97, 1.0])
def test_skipping_zeros_changes_no_bit(isa, format, lanes, zeros):
    w, x = case(100, 300, 9, zeros=zeros)
    packed = pack(w, format, lanes)
    dense = _native.matmul(packed, x, isa)
    assert np.array_equal(_native.matmul(packed, x, isa, sparse=True), dense)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ["q8", "q4"])
def test_quantized_products_agree_between_instruction_sets(isa, format):
    w, x = case(48, 256, 7)
    packed = pack(w, format)
    reference = _native.matmul(packed, x, "portable")
    scale = np.abs(reference).max()
    assert np.abs(_native.matmul(packed, x, isa) - reference).max() <= 1e-6 * scale


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ["q8", "q4"])
def test_extreme_integers_do_not_overflow(isa, format):
    w = np.tile(np.array([1, -1, 1, 1], np.float32), (32, 64))
    x = np.tile(np.array([1, -1, 1, 1], np.float32), (3, 64))
    packed = pack(w, format)
    np.testing.assert_allclose(_native.matmul(packed, x, isa), 256, rtol=0.01)
    np.testing.assert_allclose(_native.matmul(packed, -x, isa), -256, rtol=0.01)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_input_that_is_not_finite_never_looks_finite(isa, format, bad):
    w, x = case(32, 130, 2)
    x[1, 77] = bad
    out = _native.matmul(pack(w, format), x, isa)
    assert np.isfinite(out[0]).all()
    assert not np.isfinite(out[1]).any()


@pytest.mark.parametrize("isa", ISAS)
def test_tiny_and_huge_inputs_stay_in_range(isa):
    w, x = case(16, 128, 2)
    x[0] *= 1e-37
    x[1] *= 1e30
    for format in FORMATS:
        out = _native.matmul(pack(w, format), x, isa)
        assert np.isfinite(out).all()
        assert np.abs(out[0]).max() < 1e-34


def test_unpacked_f32_is_the_source():
    w, _ = case(77, 131, 1)
    for lanes in (1, 4):
        assert np.array_equal(_native.unpack(pack(w, "f32", lanes)), w)


def test_unpacked_bf16_is_the_nearest_bfloat16():
    w, _ = case(77, 131, 1)
    assert np.array_equal(_native.unpack(pack(w, "bf16", 4)), bfloat16(w))


def test_q8_errs_by_half_a_step_at_most():
    w, _ = case(40, 300, 1)
    error = np.abs(_native.unpack(pack(w, "q8")) - w)
    for c in range(0, 300, 128):
        step = np.abs(w[:, c : c + 128]).max(1, keepdims=True) / 127
        assert (error[:, c : c + 128] <= step * 0.501).all()


def test_q4_beats_min_max_rounding_and_takes_four_and_a_half_bits():
    w, _ = case(64, 1024, 1)
    packed = pack(w, "q4")
    assert 8 * packed[0].nbytes / w.size == 4.5
    blocks = w.reshape(64, -1, 64)
    low, high = blocks.min(-1, keepdims=True), blocks.max(-1, keepdims=True)
    step = (high - low) / 15
    plain = np.rint((blocks - low) / step) * step + low
    ours = np.square(_native.unpack(packed) - w).mean()
    assert ours < 0.9 * np.square(plain - blocks).mean()


def test_q4_weights_its_error_by_importance():
    w, _ = case(64, 256, 1)
    importance = np.ones(256, np.float32)
    importance[::8] = 100
    plain = np.square(_native.unpack(pack(w, "q4")) - w)
    weighted = np.square(_native.unpack(pack(w, "q4", 1, importance)) - w)
    assert weighted[:, ::8].mean() < 0.7 * plain[:, ::8].mean()


def test_packing_is_the_same_bytes_on_any_number_of_threads():
    w, _ = case(200, 200, 1)
    for format in FORMATS:
        one = _native.pack(w, format, 1, None, 1)
        assert np.array_equal(one, _native.pack(w, format, 1, None, 5))


@pytest.mark.parametrize("isa", ISAS)
def test_constant_and_zero_blocks_come_back_exactly(isa):
    for value in (0.0, 0.5, -3.0):
        w = np.full((16, 64), value, np.float32)
        for format in FORMATS:
            np.testing.assert_allclose(_native.unpack(pack(w, format)), w, rtol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 15, 16, 33])
def test_the_recurrence_equals_float64(isa, channels):
    rng = np.random.default_rng(2)
    t = 50
    k, v, r = (rng.normal(0, 3, (t, channels)).astype(np.float32) for _ in range(3))
    decay = -np.exp(rng.uniform(-6, 2, channels)).astype(np.float32)
    first = rng.normal(0, 1, channels).astype(np.float32)
    state = np.zeros((3, channels), np.float32)
    state[2] = -1e38
    out = r.copy()
    _native.recurrence(k, v, out, decay, first, state, isa)

    from wkv.ops.reference import wkv_reference

    y, (a, b, p) = wkv_reference(k[None], v[None], decay, first)
    np.testing.assert_allclose(
        out, (y[0] / (1 + np.exp(-r.astype(np.float64)))), atol=2e-5, rtol=2e-5
    )
    np.testing.assert_allclose(state[2], p[0], rtol=1e-5)
    np.testing.assert_allclose(state[0], a[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state[1], b[0], rtol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 16, 31, 768])
def test_layer_norm_equals_float64(isa, width):
    rng = np.random.default_rng(3)
    x = rng.normal(5, 2, (3, width)).astype(np.float32)
    weight, bias = rng.normal(1, 1, (2, width)).astype(np.float32)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    got = _native.layer_norm(x, weight, bias, 1e-5, isa)
    np.testing.assert_allclose(got, expected * weight + bias, atol=3e-5)


def test_wrong_sizes_are_refused():
    w, x = case(16, 64, 1)
    data, format, rows, cols, lanes = pack(w, "q4")
    with pytest.raises(ValueError, match="takes 576"):
        _native.unpack((data[:-1], format, rows, cols, lanes))
    with pytest.raises(ValueError, match="unknown weight format"):
        _native.packed_bytes("q3", 1, 1, 1)
    with pytest.raises(ValueError, match="as many columns"):
        _native.matmul((data, format, rows, cols, lanes), x[:, :32].copy(), "portable")
    with pytest.raises(ValueError, match="out of bounds"):
        _native.packed_bytes("q4", 1 << 30, 1, 1)
    with pytest.raises(ValueError, match="cannot run here"):
        _native.matmul((data, format, rows, cols, lanes), x, "sse9")
