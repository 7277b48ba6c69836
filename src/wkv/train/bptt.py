"""Back-propagation through time over chunks: any context in the memory of one chunk.

A row of T tokens is run in chunks of C, the state carried from each to the next. ``truncated``
cuts the gradient at the seams. ``full`` is exact: a first pass without gradients keeps only the
states at the seams; then, from the last chunk to the first, each chunk is run again from its kept
state, and the gradient that the next chunk left at its incoming state enters at this one's outgoing
state. Kept are one state a seam (5·L·D numbers) and the activations of one chunk.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from ..state import FIELDS, State
from .rows import run_rows

GRADIENTS = ("full", "truncated")
LossOf = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def chunked_backward(
    model: Callable[..., Any],
    input_ids: torch.Tensor,
    labels: torch.Tensor,
    loss_of: LossOf,
    chunk: int,
    *,
    gradients: str = "full",
    resets: torch.Tensor | None = None,
    state: State | None = None,
    state_needs_grad: bool = False,
    initial: Callable[[int], State] | None = None,
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> torch.Tensor:
    """Add the gradient of a batch's loss to the parameters' ``grad``, chunk by chunk.

    Args:
        model: a :class:`~wkv.hf.RwkvForCausalLM`, or anything that wraps one.
        input_ids: [B, T].
        labels: [B, T].
        loss_of: logits and labels of a chunk → its share of the loss (the shares are summed).
        chunk: C, tokens a chunk; T need not be a multiple.
        gradients: ``"full"`` or ``"truncated"``.
        resets: see :func:`wkv.train.rows.run_rows`.
        state: B rows to begin from (torch tensors); None is the empty state.
        state_needs_grad: back-propagate into ``state``, which then belongs to a graph (tuning of
            the initial state).
        initial: see :func:`wkv.train.rows.run_rows`.
        autocast: entered around each forward pass.
        no_sync: entered around every backward pass but the last: gradients are exchanged between
            processes once a call.

    Returns:
        The summed loss, detached.
    """
    length = input_ids.shape[1]
    spans = [slice(at, min(at + chunk, length)) for at in range(0, length, chunk)]

    def run(span: slice, past: State | None, **options: Any) -> tuple[torch.Tensor, State]:
        begins = None if resets is None else resets[:, span]
        return run_rows(model, input_ids[:, span], past, begins, initial, **options)

    def forward(span: slice, past: State | None) -> tuple[torch.Tensor, State]:
        with autocast():
            logits, new = run(span, past)
            return loss_of(logits, labels[:, span]), new

    if gradients == "truncated":
        return _truncated(forward, spans, state, state_needs_grad, no_sync)

    pasts: list[State | None] = [state]
    with torch.no_grad(), autocast():
        for span in spans[:-1]:
            pasts.append(run(span, pasts[-1], state_only=True)[1])
    total = torch.zeros((), device=input_ids.device)
    later: dict[str, torch.Tensor] | None = None  # gradients at the outgoing state
    for i in range(len(spans) - 1, -1, -1):
        past, leaf = pasts.pop(), None
        if past is not None and (i > 0 or state_needs_grad):
            leaf = State(**{n: x.detach().requires_grad_() for n, x in past.fields().items()})
            past = leaf
        with no_sync() if i > 0 else contextlib.nullcontext():
            loss, new = forward(spans[i], past)
            outputs, grads = [loss], [torch.ones_like(loss)]
            if later is not None:
                # A frozen layer may leave a field without a way back to anything that is learnt.
                for name, grad in later.items():
                    if (field := getattr(new, name)).requires_grad:
                        outputs.append(field)
                        grads.append(grad)
            torch.autograd.backward(outputs, grads)
        total = total + loss.detach()
        later = None if leaf is None else _gradients(leaf)
    if state_needs_grad and state is not None and later is not None:
        learnt = {n: g for n, g in later.items() if getattr(state, n).requires_grad}
        torch.autograd.backward([getattr(state, n) for n in learnt], list(learnt.values()))
    return total


def _truncated(
    forward: Callable[[slice, State | None], tuple[torch.Tensor, State]],
    spans: list[slice],
    state: State | None,
    state_needs_grad: bool,
    no_sync: Callable[[], contextlib.AbstractContextManager[Any]],
) -> torch.Tensor:
    past = state if state is None or state_needs_grad else state.detach()
    total: Any = 0.0
    for i, span in enumerate(spans):
        with no_sync() if i < len(spans) - 1 else contextlib.nullcontext():
            loss, new = forward(span, past)
            loss.backward()
        total = total + loss.detach()
        past = new.detach()
    return total


def _gradients(leaf: State) -> dict[str, torch.Tensor]:
    return {n: g for n in FIELDS if (g := getattr(leaf, n).grad) is not None}
