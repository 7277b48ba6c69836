"""The engine that runs the PyTorch model, on any device that PyTorch has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..checkpoint import Checkpoint, load_state_dict
from ..checkpoint.names import to_hf
from ..config import ModelConfig
from ..errors import ConfigError, UnavailableError
from ..state import Fingerprint, State
from .protocol import Logits, check_batch

if TYPE_CHECKING:
    import torch

    from ..model.rwkv4 import Rwkv4

DTYPES = ("float32", "bfloat16", "float16", "float64")


class TorchEngine:
    """A :class:`wkv.model.rwkv4.Rwkv4` behind the engine protocol.

    On the CPU states are NumPy arrays; on other devices they are torch tensors that stay there
    (``state.to("numpy")`` brings them over). ``threads`` limits PyTorch's during a call.
    """

    name = "torch"

    def __init__(
        self,
        model: Rwkv4,
        fingerprint: Fingerprint | None = None,
        *,
        threads: int | None = None,
    ) -> None:
        if threads is not None and threads < 1:
            raise ConfigError(f"threads is {threads}: give at least 1")
        self.model = model.eval().requires_grad_(False)
        self.fingerprint = fingerprint
        self._threads = threads

    @property
    def config(self) -> ModelConfig:
        """The model's numbers."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.head.weight.device

    @property
    def dtype(self) -> str:
        """The dtype of the matrices, ``"float32"`` …"""
        return str(self.model.head.weight.dtype).removeprefix("torch.")

    def forward(
        self,
        tokens: Sequence[Sequence[int]],
        state: State | None = None,
        *,
        logits: Logits = "last",
    ) -> tuple[np.ndarray, State]:
        """See :meth:`wkv.engine.protocol.Engine.forward`."""
        import torch

        flat, starts = check_batch(self, tokens, state, logits)
        model, device = self.model, self.device
        lengths = np.diff(starts)
        with torch.no_grad(), self._limited():
            ids = torch.from_numpy(flat).to(device)
            past = state.to(device) if state is not None else None
            if (lengths == lengths[0]).all():
                ids, offsets = ids.reshape(len(lengths), -1), None  # [B, T]
            else:
                ids, offsets = ids[None], torch.from_numpy(starts).to(device)  # [1, ΣT]
            hidden, new = model.rwkv.run(model.rwkv.embeddings(ids), past, starts=offsets)
            hidden = hidden.reshape(len(flat), -1)  # [ΣT, D]
            if logits == "last":
                hidden = hidden[torch.from_numpy(starts[1:] - 1).to(device)]
            elif logits == "none":
                hidden = hidden[:0]
            out = model.head(hidden).float().cpu().numpy()
        if device.type == "cpu":
            new = new.to("numpy")
        return out, new.with_fingerprint(self.fingerprint)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        if self._threads is None:
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def load_torch(
    checkpoint: Checkpoint,
    *,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    threads: int | None = None,
) -> TorchEngine:
    """Load a checkpoint into PyTorch.

    Args:
        checkpoint: opened with ``writable=True`` its weights are shared with the file.
        device: a torch device; None is the CPU.
        dtype: of the matrices; None is float32 on the CPU and the stored one elsewhere. Decay and
            bonus enter exponents and stay float32.
        threads: see :class:`TorchEngine`.

    Raises:
        UnavailableError: PyTorch is not installed, or has no such device.
        CheckpointError: see :func:`wkv.checkpoint.open_checkpoint`.
    """
    try:
        import torch
    except ImportError as error:
        raise UnavailableError(
            "engine 'torch' needs PyTorch: pip install 'wkv[torch]', or use engine 'native'"
        ) from error
    from ..model.rwkv4 import Rwkv4

    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}: choose from {', '.join(DTYPES)}")
    place = _device(device)
    if dtype is None:
        stored = checkpoint.dtype if checkpoint.dtype in DTYPES else "float32"
        dtype = "float32" if place.type == "cpu" else stored
    fingerprint = checkpoint.fingerprint()
    tensors = load_state_dict(checkpoint, dtype)
    if dtype in ("bfloat16", "float16"):
        for name in checkpoint.names():
            if name.endswith((".time_decay", ".time_first")):
                tensors[to_hf(name)] = torch.from_numpy(checkpoint.tensor(name).copy())
    with torch.device("meta"):  # no memory, and no random numbers, for weights that follow
        model = Rwkv4(checkpoint.config)
    model.load_state_dict(tensors, assign=True)
    return TorchEngine(model.to(place), fingerprint, threads=threads)


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    try:
        place = torch.device("cpu" if device is None else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # each backend says it in its own way
        reason = str(error).splitlines()[0]
        raise UnavailableError(f"device {str(device)!r} cannot be used: {reason}") from None
    return place
