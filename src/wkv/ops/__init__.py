"""The wkv operator: one signature, several implementations, chosen by name.

``reference`` is the definition, ``scan`` runs wherever PyTorch runs, ``cpu`` is the native core,
``triton`` is for GPUs.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from ..errors import ShapeError, UnavailableError

if TYPE_CHECKING:
    import torch

IMPLEMENTATIONS = ("auto", "reference", "scan", "cpu", "triton")


def resolve(implementation: str, device_type: str, dtype_name: str) -> str:
    """The implementation to run for tensors of a device type and dtype (``"float32"`` …).

    ``"auto"`` takes the fastest that supports them. A name that cannot run there is an
    :class:`UnavailableError`, never another implementation.
    """
    if implementation not in IMPLEMENTATIONS:
        raise UnavailableError(
            f"unknown wkv implementation {implementation!r}: choose from "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    cpu_runs = device_type == "cpu" and dtype_name in ("float32", "bfloat16", "float16", "float64")
    if implementation == "auto":
        return "cpu" if cpu_runs else "scan"
    if implementation == "cpu" and not cpu_runs:
        raise UnavailableError(
            f"wkv implementation 'cpu' cannot run {dtype_name} on device {device_type!r}: "
            "use 'scan' or 'auto'"
        )
    if implementation == "triton":
        _check_triton(device_type)
    return implementation


def _check_triton(device_type: str) -> None:
    if importlib.util.find_spec("triton") is None:
        raise UnavailableError(
            "wkv implementation 'triton' needs Triton: pip install 'wkv[gpu]', or use 'scan'"
        )
    # Its interpreter, for tests, runs anywhere.
    if device_type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UnavailableError(
            f"wkv implementation 'triton' cannot run on device {device_type!r}: use 'auto'"
        )


def wkv(
    k: torch.Tensor,
    v: torch.Tensor,
    decay: torch.Tensor,
    first: torch.Tensor,
    state: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None,
    *,
    starts: torch.Tensor | None = None,
    implementation: str = "auto",
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The RWKV-4 recurrence over a batch of sequences (``reference.py`` has the formulas).

    Args:
        k: keys [B, T, A], float32, bfloat16, float16 or float64.
        v: values [B, T, A], as k.
        decay: w = −exp(time_decay) [A], the log decay of one step.
        first: u = time_first [A], the bonus of the current token.
        state: (num, den, max), each [B, A]; None is the empty state (0, 0, −1e38).
        starts: for N sequences packed along T (B must be 1): integer offsets [N+1] from 0 to T,
            not decreasing; the states are then [N, A].
        implementation: ``"auto"``, ``"reference"``, ``"scan"``, ``"cpu"`` or ``"triton"``.

    Returns:
        y [B, T, A] in k's dtype, and the state after the last token of each sequence, in float32
        (float64 for float64 keys). Gradients reach every tensor argument.

    Raises:
        ShapeError: shapes that do not fit together.
        UnavailableError: the named implementation cannot run these tensors here.
    """
    _check(k, v, decay, first, state, starts)
    chosen = resolve(implementation, k.device.type, str(k.dtype).removeprefix("torch."))
    if chosen == "cpu":
        from .cpu import wkv_cpu

        return wkv_cpu(k, v, decay, first, state, starts)
    if chosen == "triton":
        from .triton import wkv_triton

        return wkv_triton(k, v, decay, first, state, starts)
    if chosen == "scan":
        from .scan import wkv_scan

        return wkv_scan(k, v, decay, first, state, starts)
    return _run_reference(k, v, decay, first, state, starts)


def _check(k: Any, v: Any, decay: Any, first: Any, state: Any, starts: Any) -> None:
    if k.ndim != 3 or tuple(v.shape) != tuple(k.shape):
        raise ShapeError(
            f"keys are {tuple(k.shape)}, values {tuple(v.shape)}: both must be the same [B, T, A]"
        )
    if v.dtype != k.dtype:
        raise ShapeError(f"keys are {k.dtype} and values {v.dtype}: give one dtype")
    if not k.dtype.is_floating_point:
        raise ShapeError(f"keys are {k.dtype}: give floating-point numbers")
    channels = k.shape[2]
    for name, x in (("decay", decay), ("first", first)):
        if tuple(x.shape) != (channels,):
            raise ShapeError(f"{name} is {tuple(x.shape)}: expected [{channels}], as the keys")
    rows = k.shape[0]
    if starts is not None:
        if k.shape[0] != 1:
            raise ShapeError(f"packed sequences need a batch of 1, got {k.shape[0]}")
        if starts.ndim != 1 or starts.numel() < 2:
            raise ShapeError(f"starts is {tuple(starts.shape)}: expected [N+1] offsets, N ≥ 1")
        if starts.dtype.is_floating_point:
            raise ShapeError(f"starts is {starts.dtype}: offsets are whole numbers")
        offsets = starts.tolist()
        if offsets[0] != 0 or offsets[-1] != k.shape[1] or offsets != sorted(offsets):
            raise ShapeError(
                f"starts runs from {offsets[0]} to {offsets[-1]}: it must rise from 0 to T = "
                f"{k.shape[1]} without decreasing"
            )
        rows = len(offsets) - 1
    if state is not None:
        for name, x in zip(("num", "den", "max"), state, strict=True):
            if tuple(x.shape) != (rows, channels):
                raise ShapeError(f"state {name} is {tuple(x.shape)}: expected [{rows}, {channels}]")


def _run_reference(k: Any, v: Any, decay: Any, first: Any, state: Any, starts: Any) -> Any:
    import torch

    from .reference import wkv_reference

    inputs = [k, v, decay, first, *(state or ())]
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise UnavailableError(
            "wkv implementation 'reference' has no gradients: use 'scan', or torch.no_grad()"
        )

    def array(x: torch.Tensor) -> Any:
        return x.detach().double().cpu().numpy()

    y, final = wkv_reference(
        array(k),
        array(v),
        array(decay),
        array(first),
        None if state is None else tuple(array(x) for x in state),
        None if starts is None else starts.tolist(),
    )
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    n, d, m = (torch.from_numpy(x).to(device=k.device, dtype=wide) for x in final)
    return torch.from_numpy(y).to(device=k.device, dtype=k.dtype), (n, d, m)
