"""The engine that runs on a CPU at the speed of memory. Needs no PyTorch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .. import _native
from ..checkpoint import Checkpoint, open_checkpoint
from ..checkpoint.packed import (
    PackedMatrix,
    check_format,
    default_formats,
    is_matrix,
    pack_matrix,
)
from ..checkpoint.quantized import Quantized, open_quantized, quantization_of
from ..config import ModelConfig
from ..errors import CancelledError, ConfigError, NonFiniteError, ShapeError
from ..state import FIELDS, Fingerprint, State
from .protocol import Logits, check_batch


class Cancel:
    """A flag that another thread sets to stop a forward between two layers."""

    def __init__(self) -> None:
        self.native = _native.Cancel()

    def set(self) -> None:
        """Stop the calls that were given this flag, and every later one."""
        self.native.set()

    def clear(self) -> None:
        """Let calls run again."""
        self.native.clear()


class NativeEngine:
    """A model in the kernels' own layout, run by ``threads`` threads of its own.

    Calls from several Python threads run one after the other. Results are the same bits whatever
    the number of threads, whatever else is in the batch and however a sequence is split, on any
    one instruction set.
    """

    name = "native"

    def __init__(
        self,
        config: ModelConfig,
        matrices: Mapping[str, PackedMatrix],
        vectors: Mapping[str, np.ndarray],
        *,
        threads: int | None = None,
        instruction_set: str | None = None,
    ) -> None:
        """``matrices`` and ``vectors`` [n] float32 by original names; kept, not copied."""
        self.config = config
        self.format = matrices["blocks.0.att.key.weight"].format
        self.embedding_format = matrices["emb.weight"].format
        self.fingerprint: Fingerprint | None = Fingerprint.of(config, lambda n: vectors[n])
        self._shape_x = (config.num_hidden_layers, config.hidden_size)
        self._shape_a = (config.num_hidden_layers, config.attention_size)
        distinct = {id(m.data): m.data.nbytes for m in matrices.values()}
        self.nbytes = sum(distinct.values())
        numbers = {
            "hidden": config.hidden_size,
            "attention": config.attention_size,
            "ffn": config.ffn_size,
            "vocab": config.vocab_size,
            "layers": config.num_hidden_layers,
            "epsilon": config.layer_norm_epsilon,
        }
        known = _native.engine_instruction_sets()
        if instruction_set is not None and instruction_set not in known:
            raise ConfigError(
                f"instruction set {instruction_set!r} cannot run here: choose from "
                f"{', '.join(known)}"
            )
        self._engine = _native.Engine(
            numbers,
            {n: np.ascontiguousarray(v, np.float32) for n, v in vectors.items()},
            {name: tuple(m) for name, m in matrices.items()},
            _threads(threads),
            instruction_set or "",
        )
        self._empty = State.zeros(config)

    @property
    def threads(self) -> int:
        """Number of threads that a call runs on."""
        return int(self._engine.threads)

    @property
    def instruction_set(self) -> str:
        """The kernels in use: ``avx512``, ``avx_vnni``, ``avx2``, ``neon`` or ``portable``."""
        return str(self._engine.instruction_set)

    @property
    def ffn_density(self) -> list[float]:
        """Share of each layer's feed-forward value matrix that single tokens had to read."""
        return list(self._engine.density)

    def forward(
        self,
        tokens: Sequence[Sequence[int]],
        state: State | None = None,
        *,
        logits: Logits | Sequence[int] | np.ndarray = "last",
        cancel: Cancel | None = None,
    ) -> tuple[np.ndarray, State]:
        """See :meth:`wkv.engine.protocol.Engine.forward`.

        ``logits`` may also be ascending positions in the row of all sequences' tokens. ``cancel``
        stops the call between two layers when another thread sets it.

        Raises:
            CancelledError: ``cancel`` was set.
            NonFiniteError: a logit is NaN or infinite: weights or state are damaged.
        """
        by_name = logits if isinstance(logits, str) else "none"
        flat, starts = check_batch(self, tokens, state, by_name)
        if not isinstance(logits, str):
            wanted = _positions(logits, len(flat))
        elif logits == "last":
            wanted = starts[1:] - 1
        else:
            wanted = np.arange(len(flat) if logits == "all" else 0)
        batch = len(starts) - 1
        before = self._arrays(state, batch)
        shapes = (self._shape_x, self._shape_x, self._shape_a, self._shape_a, self._shape_a)
        after = [np.empty((batch, *shape), np.float32) for shape in shapes]
        out = np.empty((len(wanted), self.config.vocab_size), np.float32)
        outcome = self._engine.forward(
            np.ascontiguousarray(flat, np.int32),
            np.ascontiguousarray(starts, np.int64),
            before,
            after,
            np.ascontiguousarray(wanted, np.int64),
            out,
            cancel.native if cancel is not None else None,
        )
        if outcome == "cancelled":
            raise CancelledError("the forward was cancelled; the state given to it is unchanged")
        if outcome != "done":
            raise NonFiniteError(
                "a logit is NaN or infinite: the weights or the state are damaged; load them again"
            )
        return out, State(**dict(zip(FIELDS, after)), fingerprint=self.fingerprint)

    def _arrays(self, state: State | None, batch: int) -> list[np.ndarray]:
        if state is None:
            fields = self._empty.fields()
            return [np.repeat(fields[name], batch, axis=0) for name in FIELDS]
        fields = state.to("numpy").fields()
        return [np.ascontiguousarray(fields[name], np.float32) for name in FIELDS]


_DTYPES = {"float32": "f32", "bfloat16": "bf16"}
_QUANTS = ("q8", "q4")


def load_native(
    source: str | Path | Checkpoint | Quantized,
    *,
    dtype: str | None = None,
    quant: str | None = None,
    threads: int | None = None,
) -> NativeEngine:
    """Load a model by the names that :func:`wkv.load` has; see :func:`load_format`.

    Args:
        source: a packed folder, or anything that :func:`wkv.checkpoint.open_checkpoint` opens.
        dtype: ``"float32"`` or ``"bfloat16"``; None is the stored one.
        quant: ``"q8"`` or ``"q4"``, instead of a dtype.
        threads: by default one for each CPU that this process may use.

    Raises:
        ConfigError: a dtype that the engine does not have, or a dtype and a quantization.
    """
    if dtype is not None and quant is not None:
        raise ConfigError(f"dtype={dtype!r} and quant={quant!r} are both given: give one")
    if dtype is not None and dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}: engine 'native' has {', '.join(_DTYPES)}")
    if quant is not None and quant not in _QUANTS:
        raise ConfigError(f"quant is {quant!r}: choose from {', '.join(_QUANTS)}")
    return load_format(source, format=quant or _DTYPES.get(dtype or ""), threads=threads)


def load_format(
    source: str | Path | Checkpoint | Quantized,
    *,
    format: str | None = None,
    threads: int | None = None,
    instruction_set: str | None = None,
) -> NativeEngine:
    """Load a model into the native engine.

    Args:
        source: a folder of :func:`wkv.checkpoint.quantized.quantize`, which is mapped, or anything
            that :func:`wkv.checkpoint.open_checkpoint` opens, which is packed into memory.
        format: ``"f32"``, ``"bf16"``, ``"q8"`` or ``"q4"``; None is the folder's own, and for other
            checkpoints what holds their weights exactly: bf16 for bfloat16, f32 for all others.
        threads: by default one for each CPU that this process may use.
        instruction_set: by default the best one of this CPU.

    Raises:
        CheckpointError: the files are damaged, or the folder is packed in another format.
        ConfigError: an unknown format, instruction set or number of threads.
    """
    if format is not None:
        check_format(format)
    count = _threads(threads)
    if isinstance(source, str | Path) and quantization_of(source) is not None:
        source = open_quantized(source)
    if isinstance(source, Quantized):
        if format not in (None, source.format):
            raise ConfigError(
                f"{source.path} is packed as {source.format}: load it without a format, or pack "
                f"the original weights as {format}"
            )
        matrices, vectors = source.matrices, source.vectors
        config = source.config
    else:
        checkpoint = source if isinstance(source, Checkpoint) else open_checkpoint(source)
        config = checkpoint.config
        if format is None:
            format = "bf16" if checkpoint.dtype == "bfloat16" else "f32"
        matrices, vectors = {}, {}
        kinds = default_formats(config, format)
        for name, shape in checkpoint.shapes.items():
            if not is_matrix(shape):
                vectors[name] = checkpoint.tensor(name).reshape(-1)
            elif name != "head.weight" or not config.tie_word_embeddings:
                matrices[name] = pack_matrix(
                    checkpoint, name, kinds.get(name, format), threads=count
                )
        if config.tie_word_embeddings:
            matrices["head.weight"] = matrices["emb.weight"]
        if checkpoint is not source:
            checkpoint.close()
    decays = {
        name.replace("time_decay", "decay"): -np.exp(vector.astype(np.float64)).astype(np.float32)
        for name, vector in vectors.items()
        if name.endswith("att.time_decay")
    }
    vectors = {**vectors, **decays}
    return NativeEngine(config, matrices, vectors, threads=count, instruction_set=instruction_set)


def available_threads() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(threads: int | None) -> int:
    if threads is None:
        return available_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise ConfigError(f"threads is {threads!r}: give 1 to 1024")
    return threads


def _positions(logits: Sequence[int] | np.ndarray, tokens: int) -> np.ndarray:
    chosen = np.asarray(logits)
    if chosen.size == 0:
        return np.zeros(0, np.int64)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or (np.diff(chosen) <= 0).any():
        raise ShapeError("positions of logits must be ascending whole numbers [n]")
    if chosen[0] < 0 or chosen[-1] >= tokens:
        raise ShapeError(f"logits of positions {chosen[0]} to {chosen[-1]}: there are {tokens}")
    return chosen.astype(np.int64)
