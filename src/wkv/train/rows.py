"""Rows that hold several documents: the state is reset exactly where a document begins.

The rows of a batch are laid end to end and cut at every beginning; the operator and the token shift
then run the pieces as separate sequences (``starts`` of :func:`wkv.ops.wkv`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..state import EMPTY_MAX, FIELDS, State


def run_rows(
    model: Callable[..., Any],
    input_ids: torch.Tensor,
    state: State | None = None,
    resets: torch.Tensor | None = None,
    initial: Callable[[int], State] | None = None,
    state_only: bool = False,
) -> tuple[torch.Tensor, State]:
    """Logits of a batch whose rows may hold several documents.

    Args:
        model: a :class:`~wkv.hf.RwkvForCausalLM`, or anything that wraps one.
        input_ids: [B, T].
        state: B rows (torch tensors) to go on from; None is the empty state.
        resets: bool [B, T], true where a document begins: nothing before it, neither in the row
            nor in ``state``, is seen from there. None is no such place.
        initial: gives the state that N documents begin from, where that is not the empty one; the
            model itself must begin from it when it is given none.
        state_only: compute a single place's logits and return none, [0, V].

    Returns:
        Logits [B, T, V] and the state after each row's last token. Gradients pass through both.
    """
    keep = {"logits_to_keep": 1} if state_only else {}
    if resets is None or not bool(resets.any()):
        out = model(input_ids=input_ids, state=state, use_cache=True, **keep)
        return out.logits[0, :0] if state_only else out.logits, out.state
    rows, length = input_ids.shape
    begins = resets.clone()
    begins[:, 0] = True
    heads = begins.flatten().nonzero().squeeze(1)  # [N] where each piece begins
    starts = torch.cat([heads, heads.new_tensor([rows * length])])
    first = torch.searchsorted(heads, torch.arange(rows, device=heads.device) * length)  # [B]
    last = torch.cat([first[1:], first.new_tensor([len(heads)])]) - 1  # [B] each row's last piece
    pieces = None
    if state is not None:
        goes_on = ~resets[:, 0]
        fresh = (_empty(state, len(heads)) if initial is None else initial(len(heads))).fields()
        pieces = State(
            **{
                name: fresh[name].to(field.dtype).index_copy(0, first[goes_on], field[goes_on])
                for name, field in state.fields().items()
            }
        )
    packed = input_ids.reshape(1, -1)
    out = model(input_ids=packed, state=pieces, cu_seq_lens_q=starts, use_cache=True, **keep)
    kept = State(**{name: getattr(out.state, name)[last] for name in FIELDS})
    logits = out.logits[0, :0] if state_only else out.logits.view(rows, length, -1)
    return logits, kept


def _empty(like: State, rows: int) -> State:
    return State(
        **{
            name: x.new_full((rows, *x.shape[1:]), EMPTY_MAX if name == "max" else 0.0)
            for name, x in like.fields().items()
        }
    )
