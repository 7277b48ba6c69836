"""The wkv operator in native code (``native/wkv.hpp``), as PyTorch operators with gradients.

``wkv::wkv_forward`` and ``wkv::wkv_backward`` are what ``torch.compile`` and autograd see. The
forward pass also returns the state before every 64th token (3/64 of a float32 key tensor), from
which the backward pass recomputes the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _native
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
    if state is None:
        rows = k.shape[0] if starts is None else starts.shape[0] - 1
        num = k.new_zeros((rows, k.shape[2]), dtype=wide)
        state = num, torch.zeros_like(num), torch.full_like(num, EMPTY_MAX)
    if starts is not None:
        starts = starts.to(device="cpu", dtype=torch.int64)
    decay, first, num, den, top = (x.to(wide) for x in (decay, first, *state))
    y, num, den, top, _ = _forward(k, v, decay, first, num, den, top, starts)
    return y, (num, den, top)


@torch.library.custom_op("wkv::wkv_forward", mutates_args=(), device_types="cpu")
def _forward(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    out = _forward_outputs(k, v, decay, first, num, den, max, starts)
    y = out[0]
    _native.wkv_forward(
        *_arrays(k, v, decay, first, num, den, max, starts),
        y.view(-1, y.shape[2]),
        *out[1:],
        torch.get_num_threads(),
    )
    return out


@_forward.register_fake
def _forward_outputs(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    starts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    segments = (k.shape[0] * k.shape[1] + _native.SEGMENT - 1) // _native.SEGMENT
    return (
        k.new_empty(k.shape),
        num.new_empty(num.shape),
        num.new_empty(num.shape),
        num.new_empty(num.shape),
        num.new_empty((segments, 3, k.shape[2])),
    )


@torch.library.custom_op("wkv::wkv_backward", mutates_args=(), device_types="cpu")
def _backward(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    starts: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_num: Tensor,
    grad_den: Tensor,
    grad_max: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    out = tuple(x.new_empty(x.shape) for x in (k, v, decay, first, num, den, max))
    tokens = (-1, k.shape[2])
    _native.wkv_backward(
        *_arrays(k, v, decay, first, num, den, max, starts),
        *(x.detach().contiguous() for x in (checkpoints, grad_y.reshape(tokens))),
        *(x.detach().contiguous() for x in (grad_num, grad_den, grad_max)),
        *(x.view(tokens) for x in out[:2]),
        *out[2:],
        torch.get_num_threads(),
    )
    return out  # type: ignore[return-value]


@_backward.register_fake
def _backward_outputs(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    starts: Tensor | None,
    checkpoints: Tensor,
    grad_y: Tensor,
    grad_num: Tensor,
    grad_den: Tensor,
    grad_max: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (k, v, decay, first, num, den, max))  # type: ignore[return-value]


def _arrays(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    first: Tensor,
    num: Tensor,
    den: Tensor,
    max: Tensor,
    starts: Tensor | None,
) -> list[Tensor]:
    """The native call's inputs: tokens of all rows one after another, and where each row starts."""
    batch, length, channels = k.shape
    if starts is None:
        starts = torch.arange(batch + 1) * length
    flat = (x.reshape(batch * length, channels) for x in (k, v))
    rest = (decay, first, num, den, max, starts)
    return [x.detach().contiguous() for x in (*flat, *rest)]


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.packed = inputs[7] is not None
    ctx.save_for_backward(*inputs[:7], *inputs[7:] if ctx.packed else (), output[4])
    ctx.mark_non_differentiable(output[4])


def _gradients(
    ctx: Any, grad_y: Tensor, grad_num: Tensor, grad_den: Tensor, grad_max: Tensor, _: Any
) -> Any:
    *inputs, checkpoints = ctx.saved_tensors
    starts = inputs.pop() if ctx.packed else None
    return *_backward(*inputs, starts, checkpoints, grad_y, grad_num, grad_den, grad_max), None


_forward.register_autograd(_gradients, setup_context=_keep)
