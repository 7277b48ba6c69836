"""What callers of the transformers classes hand over: padded or packed rows, states of any form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ..errors import ShapeError, StateError, UnavailableError
from ..state import State
from .configuration import RwkvConfig

# What transformers' tools pass to attention-based models. Some of it says where packed sequences
# begin (``packed_starts``); the rest means nothing to a recurrent network.
OF_ATTENTION = (
    "position_ids",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
    "cache_position",
    "token_type_ids",
    "past_key_values",
    "output_attentions",
)
# What Trainer hands to a model for its loss function.
OF_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")


@dataclass(frozen=True)
class Padding:
    """Where the M real tokens of a padded batch [B, T] lie."""

    real: torch.Tensor  # [B, T]
    starts: torch.Tensor  # [B+1] offsets of the rows once packed
    source: torch.Tensor  # [B, T] packed position of the last real token so far

    @classmethod
    def of(cls, mask: torch.Tensor | None, x: torch.Tensor) -> Padding | None:
        """From a mask [B, ≥ T] and the batch x [B, T, D]; None if nothing is masked."""
        if mask is None:
            return None
        if mask.ndim != 2 or mask.shape[0] != x.shape[0] or mask.shape[1] < x.shape[1]:
            raise ShapeError(
                f"attention_mask is {tuple(mask.shape)}: expected [batch, tokens] = "
                f"{tuple(x.shape[:2])} (a recurrent network takes no other kind)"
            )
        real = mask[:, mask.shape[1] - x.shape[1] :].to(x.device) != 0
        if bool(real.all()):
            return None
        count = real.long().cumsum(1)
        starts = F.pad(real.sum(1).cumsum(0), (1, 0))
        return cls(real, starts, torch.where(count > 0, count + starts[:-1, None] - 1, -1))

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, D] → real tokens alone, row after row [1, M, D]."""
        return x[self.real][None]

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """[1, M, D] → [B, T, D]; a masked position repeats what came before it."""
        # The zero in front is what position −1 finds: before a row's first token.
        return F.pad(x[0], (0, 0, 1, 0))[self.source + 1]


def packed_starts(kwargs: dict[str, Any], x: torch.Tensor) -> torch.Tensor | None:
    """Offsets [N+1] of sequences packed into one row, as padding-free collators tell them.

    By ``cu_seq_lens_q``, or by ``position_ids`` that begin anew; None if there is one sequence.
    """
    if x.shape[0] != 1:
        return None
    starts, positions = kwargs.get("cu_seq_lens_q"), kwargs.get("position_ids")
    if starts is not None:
        return starts.to(x.device, torch.long)
    if positions is None or positions.ndim != 2 or positions.shape[1] != x.shape[1]:
        return None
    begins = (positions[0, 1:] <= positions[0, :-1]).nonzero().flatten() + 1
    if begins.numel() == 0:
        return None
    return F.pad(F.pad(begins.to(x.device), (1, 0)), (0, 1), value=x.shape[1])


def countable(labels: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Labels [B, T] without those that no real token predicts, or that are no tokens: −100."""
    if mask is None:
        return labels
    real = (mask[:, mask.shape[1] - labels.shape[1] :] != 0).long().to(labels.device)
    return labels.masked_fill((real == 0) | (real.cumsum(1) == 1), -100)


def as_torch_state(
    state: State | list[torch.Tensor] | tuple[torch.Tensor, ...] | None,
    config: RwkvConfig,
    device: torch.device,
) -> State | None:
    """A state of torch tensors on ``device``, from any form a caller may hold."""
    if state is None:
        return None
    if isinstance(state, list | tuple):
        state = State.from_layout("huggingface", [x.float() for x in state], config.architecture())
    if not isinstance(state, State):
        raise StateError(
            f"state is a {type(state).__name__}: give a wkv.State, or five tensors [B, D, L]"
        )
    return state.to(device)


def refuse(kwargs: dict[str, Any]) -> None:
    """Raise on arguments that cannot be honoured or do not exist."""
    if kwargs.get("output_attentions"):
        raise UnavailableError("RWKV has no attention maps: output_attentions cannot be given")
    if kwargs.get("past_key_values") is not None:
        raise UnavailableError(
            "RWKV has no key-value cache: pass what the model remembers as state=outputs.state"
        )
    unknown = sorted(set(kwargs).difference(OF_ATTENTION))
    if unknown:
        raise TypeError(f"unknown arguments {unknown}: see RwkvModel.forward")
