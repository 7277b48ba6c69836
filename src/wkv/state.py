"""The state of an RWKV-4 model: everything it remembers, as an immutable value.

A layer's state is five vectors: the previous token's post-LayerNorm activations of the attention
and feed-forward inputs (``att_x``, ``ffn_x``) and the wkv recurrence's numerator, denominator and
running maximum (``num``, ``den``, ``max``). See docs/mathematics.md and the RWKV paper, appendix B.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .atomic import new_file
from .config import ModelConfig
from .errors import StateError

if TYPE_CHECKING:
    import torch

FIELDS = ("att_x", "ffn_x", "num", "den", "max")
EMPTY_MAX = -1e38  # the running maximum before any token: finite, so that max - max is never NaN
FORMAT = "wkv-state"
FORMAT_VERSION = 1
ARCHITECTURE = "rwkv4"
LAYOUTS = ("huggingface", "rwkv", "rwkv.cpp", "v4neo")
# Order of the five vectors in each flat foreign layout (in "huggingface", of its five tensors).
_ORDER = {
    "huggingface": ("ffn_x", "att_x", "num", "den", "max"),
    "rwkv": ("att_x", "num", "den", "max", "ffn_x"),
    "rwkv.cpp": ("ffn_x", "att_x", "num", "den", "max"),
    "v4neo": ("ffn_x", "att_x", "num", "den", "max"),
}


@dataclass(frozen=True)
class Fingerprint:
    """Tells one model's states from another's, whatever precision its weights are stored in.

    ``shape`` is (layers, D, A, F, V). ``probe`` samples small vectors of the weights, which every
    format keeps in at least bfloat16, so it agrees between formats to 2⁻⁷ and differs between
    models that were trained apart.
    """

    shape: tuple[int, int, int, int, int]
    probe: tuple[float, ...]

    @classmethod
    def of(cls, config: ModelConfig, vector: Callable[[str], np.ndarray]) -> Fingerprint:
        """Sample the weights; ``vector(name)`` returns a 1-D tensor by its original name."""
        samples: list[float] = []
        last = config.num_hidden_layers - 1
        for layer in sorted({0, last // 2, last}):
            for name in ("att.time_first", "ln1.weight", "ln2.weight", "ln2.bias"):
                values = np.asarray(vector(f"blocks.{layer}.{name}"), dtype=np.float32).reshape(-1)
                samples += values[np.linspace(0, values.size - 1, 8).astype(int)].tolist()
        return cls(_shape(config), tuple(samples))

    def matches(self, other: Fingerprint) -> bool:
        """Whether both were taken from the same model, up to the rounding of its weights."""
        if self is other:
            return True
        if self.shape != other.shape or len(self.probe) != len(other.probe):
            return False
        return bool(np.allclose(self.probe, other.probe, rtol=2**-7, atol=1e-5))

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"shape": self.shape, "probe": self.probe})

    @classmethod
    def from_json(cls, text: str) -> Fingerprint:
        """The inverse of :meth:`to_json`; ValueError, KeyError or TypeError where it is not one."""
        data = json.loads(text)
        layers, d, a, f, v = (int(n) for n in data["shape"])
        probe = tuple(float(x) for x in data["probe"])
        if not all(map(math.isfinite, probe)):
            raise ValueError("the fingerprint holds values that are not finite")
        return cls((layers, d, a, f, v), probe)


def _shape(config: ModelConfig) -> tuple[int, int, int, int, int]:
    return (
        config.num_hidden_layers,
        config.hidden_size,
        config.attention_size,
        config.ffn_size,
        config.vocab_size,
    )


@dataclass(frozen=True, eq=False)
class State:
    """A batch of states.

    ``att_x`` and ``ffn_x`` are [B, L, D]; ``num``, ``den`` and ``max`` are [B, L, A]; all float32,
    all NumPy arrays or all torch tensors. NumPy arrays become read-only when a state takes them
    (views of writable memory are copied). No operation of this package ever changes a state:
    running a model returns a new one.
    """

    att_x: Any
    ffn_x: Any
    num: Any
    den: Any
    max: Any
    fingerprint: Fingerprint | None = None

    def __post_init__(self) -> None:
        arrays = self.fields()
        kinds = {type(a).__module__.partition(".")[0] for a in arrays.values()}
        if kinds not in ({"numpy"}, {"torch"}):
            raise StateError(
                f"state fields are of {sorted(kinds)}: give all NumPy arrays or all torch tensors"
            )
        if any(a.ndim != 3 for a in arrays.values()):
            got = {n: tuple(a.shape) for n, a in arrays.items()}
            raise StateError(f"state fields are {got}: each must be [batch, layers, channels]")
        batch_layers = {tuple(a.shape[:2]) for a in arrays.values()}
        d = {self.att_x.shape[2], self.ffn_x.shape[2]}
        a = {self.num.shape[2], self.den.shape[2], self.max.shape[2]}
        if len(batch_layers) != 1 or len(d) != 1 or len(a) != 1:
            got = {n: tuple(x.shape) for n, x in arrays.items()}
            raise StateError(f"state fields do not fit together: {got}")
        if kinds == {"numpy"}:
            for name, array in arrays.items():
                if array.dtype != np.float32:
                    raise StateError(f"state field {name!r} is {array.dtype}: give float32")
                # Whoever made the array, or holds what it is a view of, could still write to it.
                if isinstance(array.base, np.ndarray) and array.base.flags.writeable:
                    array = array.copy()
                    object.__setattr__(self, name, array)
                array.flags.writeable = False

    def __reduce__(self) -> Any:
        # Through the constructor, so that an unpickled state is read-only too.
        return State, (*self.fields().values(), self.fingerprint)

    # --- construction -------------------------------------------------------------------------

    @classmethod
    def zeros(cls, config: ModelConfig, batch_size: int = 1) -> State:
        """The state before the first token, as NumPy arrays."""
        x = np.zeros((batch_size, config.num_hidden_layers, config.hidden_size), np.float32)
        a = np.zeros((batch_size, config.num_hidden_layers, config.attention_size), np.float32)
        return cls(x, x.copy(), a, a.copy(), np.full_like(a, EMPTY_MAX))

    @classmethod
    def stack(cls, states: Sequence[State]) -> State:
        """Join batches into one batch, in order."""
        if not states:
            raise StateError("no states to stack: give at least one")
        first = states[0]
        fingerprint = next((s.fingerprint for s in states if s.fingerprint), None)
        if first.is_torch:
            import torch

            join: Callable[[list[Any]], Any] = torch.cat
        else:
            join = np.concatenate
        for other in states[1:]:
            if other.is_torch != first.is_torch:
                raise StateError("cannot stack NumPy states with torch states: use .to() first")
            other.check_fingerprint(fingerprint)
            for name, array in other.fields().items():
                want = tuple(getattr(first, name).shape[1:])
                if tuple(array.shape[1:]) != want:
                    raise StateError(
                        f"cannot stack {name} of {tuple(array.shape[1:])} onto {want}: "
                        "the states come from models of different shape"
                    )
        fields = {name: join([getattr(s, name) for s in states]) for name in FIELDS}
        return cls(**fields, fingerprint=fingerprint)

    # --- looking ------------------------------------------------------------------------------

    def fields(self) -> dict[str, Any]:
        """The five arrays by name."""
        return {name: getattr(self, name) for name in FIELDS}

    @property
    def is_torch(self) -> bool:
        """Whether the fields are torch tensors."""
        return not isinstance(self.att_x, np.ndarray)

    @property
    def batch_size(self) -> int:
        """Number of sequences, B."""
        return int(self.att_x.shape[0])

    @property
    def num_layers(self) -> int:
        """Number of layers, L."""
        return int(self.att_x.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of all five fields."""
        return sum(
            int(a.nbytes if isinstance(a, np.ndarray) else a.numel() * a.element_size())
            for a in self.fields().values()
        )

    def __len__(self) -> int:
        return self.batch_size

    def check(self, config: ModelConfig, *, batch_size: int | None = None) -> None:
        """Raise :class:`StateError` unless this state fits a model of ``config``."""
        want_x = (config.num_hidden_layers, config.hidden_size)
        want_a = (config.num_hidden_layers, config.attention_size)
        if tuple(self.att_x.shape[1:]) != want_x or tuple(self.num.shape[1:]) != want_a:
            raise StateError(
                f"state of {self.num_layers} layers, {self.att_x.shape[2]} hidden and "
                f"{self.num.shape[2]} attention channels given to a model of {want_x[0]}, "
                f"{want_x[1]} and {want_a[1]}"
            )
        if batch_size is not None and self.batch_size != batch_size:
            raise StateError(
                f"state of {self.batch_size} sequences given with a batch of {batch_size}: "
                "use state.select(...) or State.stack([...])"
            )

    def check_fingerprint(self, fingerprint: Fingerprint | None) -> None:
        """Raise :class:`StateError` if this state was made by another model."""
        if self.fingerprint and fingerprint and not self.fingerprint.matches(fingerprint):
            raise StateError(
                f"this state belongs to another model (its shape {self.fingerprint.shape}, this "
                f"model's {fingerprint.shape}; layers, hidden, attention, ffn, vocabulary): "
                "load it into the model that made it"
            )

    # --- making others ------------------------------------------------------------------------

    def _map(self, f: Callable[[Any], Any]) -> State:
        return replace(self, **{name: f(a) for name, a in self.fields().items()})

    def with_fingerprint(self, fingerprint: Fingerprint | None) -> State:
        """The same state, marked as made by the model of ``fingerprint``."""
        return replace(self, fingerprint=fingerprint)

    def copy(self) -> State:
        """The same values in memory of their own."""
        return self._map(lambda a: a.clone() if self.is_torch else a.copy())

    def select(self, rows: int | Sequence[int] | slice) -> State:
        """The states of some rows, in the given order; a row may be repeated (beam search)."""
        if isinstance(rows, int | np.integer):
            rows = [int(rows)]
        if not isinstance(rows, slice):
            if any(isinstance(r, bool | np.bool_) for r in rows):
                raise StateError(f"rows are {rows!r}: give row numbers, not a mask")
            rows = [int(r) for r in rows]
            for r in rows:
                if not -self.batch_size <= r < self.batch_size:
                    raise StateError(f"row {r} is outside a state of {self.batch_size} sequences")
        return self._map(lambda a: a[rows])

    def detach(self) -> State:
        """Cut the gradient of a torch state: truncated back-propagation through time."""
        return self._map(lambda a: a.detach()) if self.is_torch else self

    def to(self, target: str | torch.device, dtype: Any = None) -> State:
        """Move to ``"numpy"`` or to a torch device (``"cpu"``, ``"cuda:0"``).

        Float32 arrays are shared, not copied, where the kind allows it. ``dtype`` is a torch
        dtype for the result; the wkv fields stay float32 at least.
        """
        if target == "numpy":
            if not self.is_torch:
                return self
            return self._map(lambda a: a.detach().float().cpu().numpy())
        import torch

        def convert(name: str, a: Any) -> Any:
            if isinstance(a, np.ndarray):
                a = _tensor(a)
            keep = name in ("num", "den", "max") and dtype in (torch.float16, torch.bfloat16)
            return a.to(device=target, dtype=None if keep else dtype)

        return replace(self, **{name: convert(name, a) for name, a in self.fields().items()})

    # --- files --------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: five fields, format version and the model's fingerprint.

        Written beside and renamed: a failure (a :class:`StateError`) leaves an existing file as
        it was.
        """
        from safetensors.numpy import save

        path = Path(path)
        metadata = {"format": FORMAT, "version": str(FORMAT_VERSION), "architecture": ARCHITECTURE}
        if self.fingerprint:
            metadata["fingerprint"] = self.fingerprint.to_json()
        arrays = {n: np.ascontiguousarray(a) for n, a in self.to("numpy").fields().items()}
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                raise StateError(f"{path}: not saved: field {name!r} is not finite everywhere")
        blob = save(arrays, metadata=metadata)

        def failure(path: Path, problem: str) -> StateError:
            return StateError(f"{path}: not saved: {problem}")

        with new_file(path, overwrite=True, size=len(blob), failure=failure) as f:
            f.write(blob)

    @classmethod
    def load(cls, path: str | Path) -> State:
        """Read a file of :meth:`save`, as NumPy arrays."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise StateError(f"{path}: no such state file")
        try:
            with safe_open(str(path), framework="np") as f:
                metadata = f.metadata() or {}
                names = set(f.keys())
                if metadata.get("format") != FORMAT:
                    raise StateError(f"{path}: not a state file (no format {FORMAT!r} in its head)")
                if metadata.get("version") != str(FORMAT_VERSION):
                    raise StateError(
                        f"{path}: state format version {metadata.get('version')!r}; this package "
                        f"reads version {FORMAT_VERSION}: upgrade wkv"
                    )
                if metadata.get("architecture") != ARCHITECTURE:
                    raise StateError(
                        f"{path}: state of architecture {metadata.get('architecture')!r}; this "
                        f"package runs {ARCHITECTURE!r}"
                    )
                if names != set(FIELDS):
                    raise StateError(f"{path}: holds {sorted(names)}, expected {sorted(FIELDS)}")
                arrays = {n: f.get_tensor(n) for n in FIELDS}
            text = metadata.get("fingerprint")
            fingerprint = Fingerprint.from_json(text) if text else None
        except StateError:
            raise
        except (SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
            raise StateError(f"{path}: damaged state file: {error}") from error
        for name, array in arrays.items():
            if array.dtype != np.float32:
                raise StateError(f"{path}: field {name!r} is {array.dtype}, expected float32")
            if not np.isfinite(array).all():
                raise StateError(f"{path}: field {name!r} holds values that are not finite")
        try:
            return cls(**arrays, fingerprint=fingerprint)
        except StateError as error:
            raise StateError(f"{path}: {error}") from error

    # --- foreign layouts ----------------------------------------------------------------------

    def to_layout(self, layout: str) -> Any:
        """Convert to another software's layout, in memory of its own: that software may write.

        ``"huggingface"``: list of five [B, D, L]; the others hold one sequence (B must be 1):
        ``"rwkv"``: list of 5·L vectors [D]; ``"rwkv.cpp"``: flat float32 [5·L·D];
        ``"v4neo"``: [5·L, D]. Arrays stay of this state's kind, NumPy or torch.
        """
        order = _order(layout)
        own = {n: a.clone() if self.is_torch else a.copy() for n, a in self.fields().items()}
        if layout == "huggingface":
            return [own[n].swapaxes(1, 2) for n in order]
        if self.batch_size != 1:
            raise StateError(
                f"layout {layout!r} holds one sequence, this state {self.batch_size}: select one"
            )
        if self.att_x.shape[2] != self.num.shape[2]:
            raise StateError(
                f"layout {layout!r} needs equal sizes: hidden is {self.att_x.shape[2]}, "
                f"attention is {self.num.shape[2]}"
            )
        rows = [own[n][0, i] for i in range(self.num_layers) for n in order]
        if layout == "rwkv":
            return rows
        joined = _stack(rows)
        return joined.reshape(-1) if layout == "rwkv.cpp" else joined

    @classmethod
    def from_layout(
        cls, layout: str, value: Any, config: ModelConfig, fingerprint: Fingerprint | None = None
    ) -> State:
        """The inverse of :meth:`to_layout`; the values are copied, as float32."""
        order = _order(layout)
        n_layers, d = config.num_hidden_layers, config.hidden_size
        if layout == "rwkv.cpp":
            size = int(np.prod(tuple(value.shape)))
            if size != 5 * n_layers * d:
                raise StateError(f"flat state of {size} numbers; this model's has 5·{n_layers}·{d}")
            value = value.reshape(5 * n_layers, d)
        parts = [_float32_copy(x) for x in value]
        shapes = sorted({tuple(x.shape) for x in parts})
        if layout == "huggingface":
            if len(parts) != 5 or any(len(shape) != 3 for shape in shapes):
                raise StateError(
                    f"layout {layout!r} is five tensors [B, D, L], got {len(parts)} of {shapes}"
                )
            fields = {n: x.swapaxes(1, 2) for n, x in zip(order, parts, strict=True)}
        else:
            if len(parts) != 5 * n_layers or shapes != [(d,)]:
                raise StateError(
                    f"layout {layout!r} of this model is {5 * n_layers} vectors of ({d},), got "
                    f"{len(parts)} of {shapes}"
                )
            fields = {n: _stack(parts[j::5])[None] for j, n in enumerate(order)}
        state = cls(**fields, fingerprint=fingerprint)
        state.check(config)
        return state


def _order(layout: str) -> tuple[str, ...]:
    if layout not in _ORDER:
        raise StateError(f"unknown state layout {layout!r}: choose from {', '.join(LAYOUTS)}")
    return _ORDER[layout]


def _tensor(a: np.ndarray) -> torch.Tensor:
    """A torch tensor over the same memory."""
    import torch

    with warnings.catch_warnings():
        # torch warns about read-only memory; nothing in this package ever writes to a state.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(a)


def _float32_copy(x: Any) -> Any:
    if hasattr(x, "detach"):
        return x.float().clone()  # with its gradient
    return np.array(x, dtype=np.float32)


def _stack(rows: Sequence[Any]) -> Any:
    if isinstance(rows[0], np.ndarray):
        return np.stack(rows)
    import torch

    return torch.stack(list(rows))
