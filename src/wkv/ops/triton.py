"""The wkv operator on GPUs, in Triton: forward and backward, states in and out.

Two levels, so that one long sequence fills the chip as well as many short ones do. The sequences
are cut into chunks; one kernel sums up each chunk from nothing, a second combines the sums along
each sequence into the state before every chunk (few steps, all channels at once), a third runs
every chunk from its state. Going back is the same in reverse: with the unscaled sums A and B of the
recurrence, q the exponent and d the scaled denominator of token t, and g the gradient of y,

    dA_{t−1} = e^w·dA_t + (g/d)·e^(−q)        dB_{t−1} = e^w·dB_t − (g·y/d)·e^(−q),

a recurrence of the same kind, with −q in the place of the key. Exponents are kept apart, so that
nothing overflows: k + e ≤ 0 and p + w + e ≤ 0 for the exponent e of dA and dB, always.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..state import EMPTY_MAX

CHUNK = 64  # tokens a program runs in a row
BLOCK = 64  # channels a program runs side by side

_EMPTY = tl.constexpr(EMPTY_MAX)
Triple = tuple[Tensor, Tensor, Tensor]


def wkv_triton(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    state: Triple | None,
    starts: Tensor | None,
) -> tuple[Tensor, Triple]:
    """See :func:`wkv.ops.wkv`; the checks there have passed."""
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    batch, length, channels = k.shape
    ends = torch.arange(batch + 1) * length if starts is None else starts
    offsets: list[int] = ends.tolist()
    rows = len(offsets) - 1
    if state is None:
        zero = k.new_zeros(rows, channels, dtype=wide)
        state = zero, torch.zeros_like(zero), torch.full_like(zero, EMPTY_MAX)
    num, den, top = (x.to(wide).contiguous() for x in state)
    y, num, den, top = _Wkv.apply(
        k.reshape(-1, channels).contiguous(),
        v.reshape(-1, channels).contiguous(),
        decay.to(wide).contiguous(),
        first.to(wide).contiguous(),
        num,
        den,
        top,
        _Chunks(offsets, k.device),
    )
    return y.view(k.shape), (num, den, top)


class _Chunks:
    """Where the chunks lie: tokens [begin[c], begin[c+1]), and each sequence's first chunk."""

    def __init__(self, offsets: list[int], device: torch.device) -> None:
        begins: list[int] = []
        firsts: list[int] = []
        for start, end in itertools.pairwise(offsets):
            firsts.append(len(begins))
            begins += range(start, end, CHUNK)
        firsts.append(len(begins))
        begins.append(offsets[-1])
        self.count, self.rows = len(begins) - 1, len(offsets) - 1
        self.begin = torch.tensor(begins, dtype=torch.int64, device=device)
        self.first = torch.tensor(firsts, dtype=torch.int64, device=device)
        self.ends = torch.tensor(offsets[1:], dtype=torch.int64, device=device)


class _Wkv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        k: Tensor,
        v: Tensor,
        w: Tensor,
        u: Tensor,
        num: Tensor,
        den: Tensor,
        top: Tensor,
        chunks: _Chunks,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels = k.shape[1]
        wide = tl.float64 if w.dtype == torch.float64 else tl.float32
        y = torch.empty_like(k)
        # Sums of each chunk, then in the same place the state before it; and which token holds a
        # sequence's maximum (−1: the incoming state).
        sums = w.new_empty(max(chunks.count, 1), 3, channels)
        at = torch.empty(max(chunks.count, 1), channels, dtype=torch.int64, device=k.device)
        final = w.new_empty(3, chunks.rows, channels)
        argmax = torch.empty(chunks.rows, channels, dtype=torch.int64, device=k.device)
        blocks = triton.cdiv(channels, BLOCK)
        options: Any = {"channels": channels, "WIDE": wide, "BLOCK": BLOCK, "num_warps": 2}
        if chunks.count:
            _sum_chunks[(chunks.count, blocks)](k, v, w, chunks.begin, sums, at, **options)
        where = (chunks.begin, chunks.first, chunks.ends)
        _join_chunks[(chunks.rows, blocks)](
            w, num, den, top, *where, sums, at, final, argmax, **options
        )
        if chunks.count:
            _run_chunks[(chunks.count, blocks)](k, v, w, u, chunks.begin, sums, y, **options)
        ctx.save_for_backward(k, v, w, u, num, den, top, sums, final, argmax)
        ctx.chunks, ctx.options = chunks, options
        return y, final[0], final[1], final[2]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        grad_y, grad_num, grad_den, grad_top = (g.contiguous() for g in grads)
        k, v, w, u, num, den, top, sums, final, argmax = ctx.saved_tensors
        chunks, options = ctx.chunks, ctx.options
        channels = k.shape[1]
        blocks = triton.cdiv(channels, BLOCK)
        count = max(chunks.count, 1)
        gk, gv = torch.empty_like(k), torch.empty_like(v)
        # The state before every token: going back cannot run the recurrence backwards, which would
        # divide by decays.
        states = w.new_empty(3, max(k.shape[0], 1), channels)
        back = w.new_empty(count, 3, channels)
        gw, gu = w.new_zeros(count, channels), w.new_zeros(count, channels)
        initial = w.new_empty(3, chunks.rows, channels)
        tokens = max(k.shape[0], 1)
        if chunks.count:
            _sum_chunks_back[(chunks.count, blocks)](
                k, v, w, u, grad_y, chunks.begin, sums, states, back, tokens, **options
            )
        _join_chunks_back[(chunks.rows, blocks)](
            w, grad_num, grad_den, final, chunks.begin, chunks.first, back, initial, **options
        )
        if chunks.count:
            _run_chunks_back[(chunks.count, blocks)](
                k, v, w, u, grad_y, chunks.begin, states, back, gk, gv, gw, gu, tokens, **options
            )
        gw, gu = gw.sum(0), gu.sum(0)
        # dA_0 = initial·e^exponent, and A_0 = num·e^max: the exponents cancel.
        scale = torch.exp(top + initial[2])
        g_num, g_den = initial[0] * scale, initial[1] * scale
        g_top = g_num * num + g_den * den
        # The maximum as a function of its own: its gradient goes to the token that holds it, and
        # to the decay once a step from there.
        through = grad_top - grad_num * final[0] - grad_den * final[1]
        held = argmax >= 0
        g_top = g_top + torch.where(held, 0.0, through)
        if chunks.count:
            gk.scatter_add_(0, argmax.clamp(min=0), torch.where(held, through, 0.0).to(gk.dtype))
        lengths = torch.diff(chunks.ends, prepend=chunks.ends.new_zeros(1))[:, None]
        steps = torch.where(held, chunks.ends[:, None] - 1 - argmax, lengths)
        gw = gw + (through * steps).sum(0)
        return gk, gv, gw, gu, g_num, g_den, g_top, None


@triton.jit
def _sum_chunks(
    k, v, w, begin, sums, at,
    channels, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    decay = tl.load(w + c, mask=real, other=0.0)
    num = tl.zeros([BLOCK], WIDE)
    den = tl.zeros([BLOCK], WIDE)
    top = tl.full([BLOCK], _EMPTY, WIDE)
    where = tl.full([BLOCK], -1, tl.int64)
    for t in range(tl.load(begin + chunk), tl.load(begin + chunk + 1)):
        kt = tl.load(k + t * channels + c, mask=real, other=0.0).to(WIDE)
        vt = tl.load(v + t * channels + c, mask=real, other=0.0).to(WIDE)
        q = tl.maximum(top + decay, kt)
        where = tl.where(kt >= top + decay, t, where)
        old, new = tl.exp(top + decay - q), tl.exp(kt - q)
        num, den, top = old * num + new * vt, old * den + new, q
    tl.store(sums + (chunk * 3 + 0) * channels + c, num, mask=real)
    tl.store(sums + (chunk * 3 + 1) * channels + c, den, mask=real)
    tl.store(sums + (chunk * 3 + 2) * channels + c, top, mask=real)
    tl.store(at + chunk * channels + c, where, mask=real)


@triton.jit
def _join_chunks(
    w, num_in, den_in, top_in, begin, first, ends, sums, at, final, argmax,
    channels, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.num_programs(0)
    real = c < channels
    decay = tl.load(w + c, mask=real, other=0.0)
    num = tl.load(num_in + row * channels + c, mask=real, other=0.0)
    den = tl.load(den_in + row * channels + c, mask=real, other=0.0)
    top = tl.load(top_in + row * channels + c, mask=real, other=0.0)
    where = tl.full([BLOCK], -1, tl.int64)
    for chunk in range(tl.load(first + row), tl.load(first + row + 1)):
        size = (tl.load(begin + chunk + 1) - tl.load(begin + chunk)).to(WIDE)
        here = sums + chunk * 3 * channels + c
        chunk_num = tl.load(here, mask=real, other=0.0)
        chunk_den = tl.load(here + channels, mask=real, other=0.0)
        chunk_top = tl.load(here + 2 * channels, mask=real, other=0.0)
        chunk_at = tl.load(at + chunk * channels + c, mask=real, other=0)
        tl.store(here, num, mask=real)
        tl.store(here + channels, den, mask=real)
        tl.store(here + 2 * channels, top, mask=real)
        carried = top + decay * size
        q = tl.maximum(carried, chunk_top)
        where = tl.where(chunk_top >= carried, chunk_at, where)
        old, new = tl.exp(carried - q), tl.exp(chunk_top - q)
        num, den, top = old * num + new * chunk_num, old * den + new * chunk_den, q
    tl.store(final + row * channels + c, num, mask=real)
    tl.store(final + (rows + row) * channels + c, den, mask=real)
    tl.store(final + (2 * rows + row) * channels + c, top, mask=real)
    tl.store(argmax + row * channels + c, where, mask=real)


@triton.jit
def _run_chunks(
    k, v, w, u, begin, sums, y,
    channels, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    decay = tl.load(w + c, mask=real, other=0.0)
    bonus = tl.load(u + c, mask=real, other=0.0)
    here = sums + chunk * 3 * channels + c
    num = tl.load(here, mask=real, other=0.0)
    den = tl.load(here + channels, mask=real, other=0.0)
    top = tl.load(here + 2 * channels, mask=real, other=0.0)
    for t in range(tl.load(begin + chunk), tl.load(begin + chunk + 1)):
        kt = tl.load(k + t * channels + c, mask=real, other=0.0).to(WIDE)
        vt = tl.load(v + t * channels + c, mask=real, other=0.0).to(WIDE)
        q = tl.maximum(top, bonus + kt)
        old, new = tl.exp(top - q), tl.exp(bonus + kt - q)
        out = (old * num + new * vt) / (old * den + new)
        tl.store(y + t * channels + c, out.to(y.dtype.element_ty), mask=real)
        q = tl.maximum(top + decay, kt)
        old, new = tl.exp(top + decay - q), tl.exp(kt - q)
        num, den, top = old * num + new * vt, old * den + new, q


@triton.jit
def _sum_chunks_back(
    k, v, w, u, grad_y, begin, sums, states, back, tokens,
    channels, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    decay = tl.load(w + c, mask=real, other=0.0)
    bonus = tl.load(u + c, mask=real, other=0.0)
    here = sums + chunk * 3 * channels + c
    num = tl.load(here, mask=real, other=0.0)
    den = tl.load(here + channels, mask=real, other=0.0)
    top = tl.load(here + 2 * channels, mask=real, other=0.0)
    start, end = tl.load(begin + chunk), tl.load(begin + chunk + 1)
    # What this chunk adds to the gradient at its incoming state. The sum runs forwards, with the
    # decay from the chunk's beginning growing by one step a token.
    da = tl.zeros([BLOCK], WIDE)
    db = tl.zeros([BLOCK], WIDE)
    e = tl.full([BLOCK], _EMPTY, WIDE)
    for t in range(start, end):
        at = t * channels + c
        kt = tl.load(k + at, mask=real, other=0.0).to(WIDE)
        vt = tl.load(v + at, mask=real, other=0.0).to(WIDE)
        g = tl.load(grad_y + at, mask=real, other=0.0).to(WIDE)
        tl.store(states + at, num, mask=real)
        tl.store(states + tokens * channels + at, den, mask=real)
        tl.store(states + 2 * tokens * channels + at, top, mask=real)
        q = tl.maximum(top, bonus + kt)
        old, new = tl.exp(top - q), tl.exp(bonus + kt - q)
        d = old * den + new
        out = (old * num + new * vt) / d
        reach = decay * (t - start).to(WIDE) - q
        m = tl.maximum(e, reach)
        kept, added = tl.exp(e - m), tl.exp(reach - m) * g / d
        da, db, e = kept * da + added, kept * db - added * out, m
        q = tl.maximum(top + decay, kt)
        old, new = tl.exp(top + decay - q), tl.exp(kt - q)
        num, den, top = old * num + new * vt, old * den + new, q
    there = back + chunk * 3 * channels + c
    tl.store(there, da, mask=real)
    tl.store(there + channels, db, mask=real)
    tl.store(there + 2 * channels, e, mask=real)


@triton.jit
def _join_chunks_back(
    w, grad_num, grad_den, final, begin, first, back, initial,
    channels, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    rows = tl.num_programs(0)
    real = c < channels
    decay = tl.load(w + c, mask=real, other=0.0)
    # num = A·e^(−max): the final state's gradient, seen from A, has the exponent −max.
    da = tl.load(grad_num + row * channels + c, mask=real, other=0.0)
    db = tl.load(grad_den + row * channels + c, mask=real, other=0.0)
    e = -tl.load(final + (2 * rows + row) * channels + c, mask=real, other=0.0)
    low, high = tl.load(first + row), tl.load(first + row + 1)
    for i in range(high - low):
        chunk = high - 1 - i
        size = (tl.load(begin + chunk + 1) - tl.load(begin + chunk)).to(WIDE)
        here = back + chunk * 3 * channels + c
        chunk_da = tl.load(here, mask=real, other=0.0)
        chunk_db = tl.load(here + channels, mask=real, other=0.0)
        chunk_e = tl.load(here + 2 * channels, mask=real, other=0.0)
        tl.store(here, da, mask=real)
        tl.store(here + channels, db, mask=real)
        tl.store(here + 2 * channels, e, mask=real)
        carried = e + decay * size
        m = tl.maximum(carried, chunk_e)
        old, new = tl.exp(carried - m), tl.exp(chunk_e - m)
        da, db, e = old * da + new * chunk_da, old * db + new * chunk_db, m
    tl.store(initial + row * channels + c, da, mask=real)
    tl.store(initial + (rows + row) * channels + c, db, mask=real)
    tl.store(initial + (2 * rows + row) * channels + c, e, mask=real)


@triton.jit
def _run_chunks_back(
    k, v, w, u, grad_y, begin, states, back, gk, gv, gw, gu, tokens,
    channels, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    chunk, c = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    real = c < channels
    decay = tl.load(w + c, mask=real, other=0.0)
    bonus = tl.load(u + c, mask=real, other=0.0)
    here = back + chunk * 3 * channels + c
    da = tl.load(here, mask=real, other=0.0)  # of the state after token t
    db = tl.load(here + channels, mask=real, other=0.0)
    e = tl.load(here + 2 * channels, mask=real, other=0.0)
    decay_sum = tl.zeros([BLOCK], WIDE)
    bonus_sum = tl.zeros([BLOCK], WIDE)
    start, end = tl.load(begin + chunk), tl.load(begin + chunk + 1)
    for i in range(end - start):
        t = end - 1 - i
        at = t * channels + c
        kt = tl.load(k + at, mask=real, other=0.0).to(WIDE)
        vt = tl.load(v + at, mask=real, other=0.0).to(WIDE)
        g = tl.load(grad_y + at, mask=real, other=0.0).to(WIDE)
        num = tl.load(states + at, mask=real, other=0.0)
        den = tl.load(states + tokens * channels + at, mask=real, other=0.0)
        top = tl.load(states + 2 * tokens * channels + at, mask=real, other=0.0)
        q = tl.maximum(top, bonus + kt)
        old, new = tl.exp(top - q), tl.exp(bonus + kt - q)
        d = old * den + new
        out = (old * num + new * vt) / d
        direct = new * g / d
        into = tl.exp(kt + e)
        through_bonus = direct * (vt - out)
        grad_k = into * (vt * da + db) + through_bonus
        tl.store(gk + at, grad_k.to(gk.dtype.element_ty), mask=real)
        tl.store(gv + at, (into * da + direct).to(gv.dtype.element_ty), mask=real)
        bonus_sum += through_bonus
        decay_sum += tl.exp(top + decay + e) * (num * da + den * db)
        m = tl.maximum(e + decay, -q)
        kept, added = tl.exp(e + decay - m), tl.exp(-q - m) * g / d
        da, db, e = kept * da + added, kept * db - added * out, m
    tl.store(gw + chunk * channels + c, decay_sum, mask=real)
    tl.store(gu + chunk * channels + c, bonus_sum, mask=real)
