"""The wkv operator in native code (``native/wkv.hpp``), as PyTorch operators with gradients.

``wkv::wkv_forward`` and ``wkv::wkv_backward`` are what ``torch.compile`` and autograd see. The
forward pass also returns the state before every 64th token, from which the backward pass recomputes
the others: a sixteenth of a float32 key tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from .. import _native as native
from ..state import EMPTY_MAX

WkvTensors = tuple[Tensor, Tensor, Tensor]


def wkv_cpu(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    state: WkvTensors | None = None,
    starts: Tensor | None = None,
) -> tuple[Tensor, WkvTensors]:
    """``wkv.ops.wkv`` on the processor, whose checks have passed; on ``torch.get_num_threads()``.

    Args:
        k: keys [B, T, A], float32, bfloat16, float16 or float64.
        v: values [B, T, A], as k.
        decay: log decay of one step [A].
        first: bonus of the current token [A].
        state: (num, den, max), each [B, A] ([N, A] when packed); None is the empty state.
        starts: offsets [N+1] of N sequences packed along T; B must then be 1.

    Returns:
        y [B, T, A] in k's dtype, and the final (num, den, max) in float32 (float64 for float64).
    """
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    batch, length, channels = k.shape
    if starts is None:
        starts = torch.arange(batch + 1, device=k.device) * length
    if state is None:
        num = k.new_zeros((starts.shape[0] - 1, channels), dtype=wide)
        state = num, torch.zeros_like(num), torch.full_like(num, EMPTY_MAX)
    y, *final, _ = _forward(
        k.reshape(batch * length, channels),
        v.reshape(batch * length, channels),
        *(x.to(wide) for x in (decay, first, *state)),
        starts.to(device=k.device, dtype=torch.int64),
    )
    return y.view(k.shape), tuple(final)


# Tokens of all sequences one after another, [tokens, A], and where each sequence starts, [N+1].
_INPUTS = (
    "Tensor k, Tensor v, Tensor decay, Tensor first, Tensor num, Tensor den, Tensor max, "
    "Tensor starts"
)


@torch.library.custom_op(
    "wkv::wkv_forward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _forward(*inputs: Tensor) -> tuple[Tensor, ...]:
    outputs = _forward_outputs(*inputs)
    native.wkv_forward(*_arrays(*inputs, *outputs), torch.get_num_threads())
    return outputs


@_forward.register_fake
def _forward_outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Empty y, num, den, max, and the states that the backward pass starts from."""
    k, num = inputs[0], inputs[4]
    checkpoints = num.new_empty((-(-k.shape[0] // native.SEGMENT), 4, k.shape[1]))
    return (_empty(k), *(_empty(num) for _ in range(3)), checkpoints)


@torch.library.custom_op(
    "wkv::wkv_backward",
    mutates_args=(),
    device_types="cpu",
    schema=f"({_INPUTS}, Tensor checkpoints, Tensor grad_y, Tensor grad_num, Tensor grad_den, "
    "Tensor grad_max) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def _backward(*inputs: Tensor) -> tuple[Tensor, ...]:
    outputs = _backward_outputs(*inputs)
    native.wkv_backward(*_arrays(*inputs, *outputs), torch.get_num_threads())
    return outputs


@_backward.register_fake
def _backward_outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
    """Empty gradients of k, v, decay, first, num, den, max."""
    return tuple(_empty(x) for x in inputs[:7])


def _empty(like: Tensor) -> Tensor:
    return like.new_empty(like.shape)


def _arrays(*tensors: Tensor) -> list[Any]:
    """DLPack capsules, which share the tensors' memory and cost less than asking the tensor."""
    return [to_dlpack(x.detach().contiguous()) for x in tensors]


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    checkpoints = output[4]
    ctx.save_for_backward(*inputs, checkpoints)
    ctx.mark_non_differentiable(checkpoints)


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return (*_backward(*ctx.saved_tensors, *grads[:4]), None)


_forward.register_autograd(_gradients, setup_context=_keep)
