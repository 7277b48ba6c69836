"""The wkv operator as a chunked log-sum-exp scan in PyTorch: any device, any length.

A span of tokens acts on the state by (num, den, max): the sums e^(k−max)·v and e^(k−max) over the
span, each key decayed to the span's end. Spans compose associatively,

    (n₁, d₁, p₁) ∘ (n₂, d₂, p₂) = (e^(p₁+w·len₂−q)·n₁ + e^(p₂−q)·n₂, …, q = max(p₁+w·len₂, p₂)),

so every prefix comes from log₂ T doublings instead of T steps. Exponents are only ever differences
of nearby maxima, so no precision is lost in long sequences.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..state import EMPTY_MAX

CHUNK = 32  # doublings run inside chunks, then over chunk ends: log₂ 32 + 1 passes over the tokens
SEGMENT = 256  # back-propagation keeps the intermediates of one segment only

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def wkv_scan(
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    first: torch.Tensor,
    state: Triple | None,
    starts: torch.Tensor | None,
) -> tuple[torch.Tensor, Triple]:
    """See :func:`wkv.ops.wkv`."""
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    batch, length, channels = k.shape
    k_wide, v_wide, w, u = k.to(wide), v.to(wide), decay.to(wide), first.to(wide)
    rows = batch if starts is None else starts.numel() - 1
    if state is None:
        zero = k_wide.new_zeros(rows, channels)
        initial: Triple = (zero, zero, torch.full_like(zero, EMPTY_MAX))
    else:
        initial = tuple(x.to(wide) for x in state)  # type: ignore[assignment]
    if length == 0:
        return v, initial

    offsets = None if starts is None else starts.tolist()
    carry: Any = initial if offsets is None else tuple(x[:1] for x in initial)
    outputs, ends = [], []
    needs_grad = torch.is_grad_enabled() and any(
        x.requires_grad for x in (k_wide, v_wide, w, u, *initial)
    )
    for begin in range(0, length, SEGMENT):
        span = slice(begin, min(begin + SEGMENT, length))
        heads = _heads(offsets, initial, span, k.device)
        tails = _tails(offsets, span, k.device)
        args = (k_wide[:, span], v_wide[:, span], w, u, carry, heads, tails)
        if needs_grad and length > SEGMENT:
            result = checkpoint(_segment, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            result = _segment(*args)
        y, carry, at_tails = result
        outputs.append(y)
        if at_tails is not None:
            ends.append(at_tails)
    y = torch.cat(outputs, 1).to(k.dtype)
    if offsets is None:
        return y, carry
    filled = [n for n in range(rows) if offsets[n + 1] > offsets[n]]
    index = torch.tensor(filled, device=k.device)
    final = tuple(
        x.index_copy(0, index, torch.cat([e[i] for e in ends])) for i, x in enumerate(initial)
    )
    return y, final  # type: ignore[return-value]


def _heads(
    offsets: list[int] | None, initial: Triple, span: slice, device: torch.device
) -> tuple[torch.Tensor, Triple] | None:
    """Positions in the span at which a packed sequence begins, and the states they begin from."""
    if offsets is None:
        return None
    rows = [
        n
        for n in range(len(offsets) - 1)
        if span.start <= offsets[n] < span.stop and offsets[n + 1] > offsets[n]
    ]
    if not rows:
        return None
    positions = torch.tensor([offsets[n] - span.start for n in rows], device=device)
    index = torch.tensor(rows, device=device)
    return positions, tuple(x[index] for x in initial)  # type: ignore[return-value]


def _tails(offsets: list[int] | None, span: slice, device: torch.device) -> torch.Tensor | None:
    """Positions in the span at which a packed sequence ends."""
    if offsets is None:
        return None
    ends = [
        end - 1 - span.start
        for start, end in itertools.pairwise(offsets)
        if end > start and span.start <= end - 1 < span.stop
    ]
    return torch.tensor(ends, device=device) if ends else None


def _segment(
    k: torch.Tensor,
    v: torch.Tensor,
    w: torch.Tensor,
    u: torch.Tensor,
    carry: Any,
    heads: tuple[torch.Tensor, Triple] | None,
    tails: torch.Tensor | None,
) -> tuple[torch.Tensor, Any, Any]:
    """One segment: y [B, S, A], the state after it, and the states at ``tails``."""
    batch, length, channels = k.shape
    tokens: Triple = (v, torch.ones_like(k), k)  # [B, S, A] each: one-token spans

    # The state each sequence starts from joins its first token's span.
    joined = _join(carry, tuple(x[:, 0] for x in tokens), w)
    spans = tuple(torch.cat([j[:, None], x[:, 1:]], 1) for j, x in zip(joined, tokens))
    blocked = None
    if heads is not None:
        positions, begin = heads
        joined = _join(begin, tuple(x[0, positions] for x in tokens), w)
        spans = tuple(x.index_copy(1, positions, j[None]) for x, j in zip(spans, joined))
        blocked = torch.zeros(length, dtype=torch.bool, device=k.device)
        blocked[positions] = True

    # Pad in front with empty spans, so that the last span is the last token's.
    chunks = -(-length // CHUNK)
    pad = chunks * CHUNK - length
    if pad:
        spans = tuple(
            torch.cat([x.new_full((batch, pad, channels), fill), x], 1)
            for x, fill in zip(spans, (0.0, 0.0, EMPTY_MAX))
        )
        if blocked is not None:
            blocked = torch.cat([blocked.new_zeros(pad), blocked])
    inner = tuple(x.view(batch, chunks, CHUNK, channels) for x in spans)
    stop = None if blocked is None else blocked.view(chunks, CHUNK)
    inner, stop = _prefixes(inner, w, stop, dim=2)
    if chunks > 1:
        over, _ = _prefixes(
            tuple(x[:, :, -1] for x in inner),
            w * CHUNK,
            None if stop is None else stop[:, -1],
            dim=1,
        )
        steps = torch.arange(1, CHUNK + 1, device=k.device, dtype=k.dtype)[:, None]
        rest = _join(
            tuple(x[:, :-1, None] for x in over),
            tuple(x[:, 1:] for x in inner),
            w * steps,
            None if stop is None else stop[1:],
        )
        inner = tuple(torch.cat([x[:, :1], r], 1) for x, r in zip(inner, rest))
    after = tuple(x.reshape(batch, -1, channels)[:, pad:] for x in inner)  # states after each token

    before = tuple(torch.cat([c[:, None], x[:, :-1]], 1) for c, x in zip(carry, after))
    if heads is not None:
        before = tuple(x.index_copy(1, positions, b[None]) for x, b in zip(before, begin))
    num, den, top = before
    bonus = u + k
    q = torch.maximum(top, bonus)
    old, new = torch.exp(top - q), torch.exp(bonus - q)
    y = (old * num + new * v) / (old * den + new)
    at_tails = None if tails is None else tuple(x[0, tails] for x in after)
    return y, tuple(x[:, -1] for x in after), at_tails


def _join(left: Any, right: Any, w: torch.Tensor, blocked: torch.Tensor | None = None) -> Any:
    """left ∘ right, where ``w`` is the decay over the right span; blocked keeps right alone."""
    top = left[2] + w
    if blocked is not None:
        top = top.masked_fill(blocked[..., None], -torch.inf)
    q = torch.maximum(top, right[2])
    old, new = torch.exp(top - q), torch.exp(right[2] - q)
    return old * left[0] + new * right[0], old * left[1] + new * right[1], q


def _prefixes(spans: Any, w: torch.Tensor, blocked: torch.Tensor | None, dim: int) -> Any:
    """Inclusive prefixes along ``dim`` by doubling; ``blocked`` marks spans that start afresh."""
    size, step = spans[0].shape[dim], 1
    while step < size:
        left = tuple(x.narrow(dim, 0, size - step) for x in spans)
        right = tuple(x.narrow(dim, step, size - step) for x in spans)
        stop = None if blocked is None else blocked.narrow(dim - 1, step, size - step)
        both = _join(left, right, w * step, stop)
        if blocked is not None and stop is not None:
            kept = blocked.narrow(dim - 1, 0, step)
            blocked = torch.cat([kept, stop | blocked.narrow(dim - 1, 0, size - step)], dim - 1)
        spans = tuple(torch.cat([x.narrow(dim, 0, step), b], dim) for x, b in zip(spans, both))
        step *= 2
    return spans, blocked
