"""A training run as a typed value, read from YAML; the defaults are the published recipe."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..errors import ConfigError


@dataclass(frozen=True)
class DataRecipe:
    """What to learn from.

    Attributes:
        train: a tokenised corpus (the common part of its .bin and .idx names).
        validation: another, or none.
        context: tokens a block, T.
        seed: of the order of the blocks.
    """

    train: str
    validation: str | None = None
    context: int = 1024
    seed: int = 0


@dataclass(frozen=True)
class OptimizerRecipe:
    """Adam as published: no weight decay, clipping at a norm of 1."""

    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    multipliers: dict[str, float] = field(
        default_factory=lambda: {"time_decay": 2.0, "time_first": 3.0}
    )


@dataclass(frozen=True)
class ScheduleRecipe:
    """Learning rate: from ``initial`` to ``final`` over the run, after ``warmup`` steps."""

    initial: float = 6e-4
    final: float = 1e-5
    warmup: int = 0
    shape: str = "exponential"


@dataclass(frozen=True)
class RunRecipe:
    """How long, how wide, and what is kept.

    A step sees ``batch`` × ``accumulate`` blocks on each process.
    """

    output: str
    steps: int
    batch: int = 8
    accumulate: int = 1
    precision: str = "fp32"
    device: str = "auto"
    seed: int = 0
    log_every: int = 10
    save_every: int = 100
    keep: int = 2
    evaluate_every: int = 0
    report_to: tuple[str, ...] = ()
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} is {getattr(self, name)}: give at least 1")
        if self.evaluate_every < 0:
            raise ConfigError(
                f"run.evaluate_every is {self.evaluate_every}: give 0 (never) or more"
            )
        _choice("run.precision", self.precision, ("fp32", "bf16"))
        _choice("run.device", self.device, ("auto", "cpu"))


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on, besides the corpus and the machine."""

    model: ModelConfig
    data: DataRecipe
    run: RunRecipe
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    l2wrap: float = 1e-4

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build from nested plain values; a wrong key or type is a ConfigError that names it."""
        recipe: Recipe = _build(cls, values, "")
        return recipe

    @classmethod
    def load(cls, path: str | Path, changes: Sequence[str] = ()) -> Recipe:
        """Read a YAML file; ``changes`` are ``section.key=value`` with the value in YAML."""
        import yaml

        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"{path}: no such recipe")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not YAML: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a recipe is a mapping of sections, got {values!r}")
        for change in changes:
            where, equals, text = change.partition("=")
            if not equals or not where:
                raise ConfigError(f"{change!r}: a change is written section.key=value")
            *sections, last = where.split(".")
            at = values
            for section in sections:
                at = at.setdefault(section, {})
                if not isinstance(at, dict):
                    raise ConfigError(f"{change!r}: {section} is no section")
            at[last] = yaml.safe_load(text)
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """As nested plain values, which :meth:`from_dict` reads back."""
        return dataclasses.asdict(self)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} is {value!r}: choose from {', '.join(choices)}")


def _build(cls: Any, values: Any, where: str) -> Any:
    """A dataclass from plain values, checked by its annotations."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'recipe'} is {values!r}: expected a mapping")
    kinds = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(fields)}"
            raise ConfigError(f"unknown key {_join(where, key)!r}; {hint}")
    missing = [
        name
        for name, f in fields.items()
        if name not in values
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"missing: {', '.join(_join(where, name) for name in missing)}")
    return cls(**{k: _value(kinds[k], v, _join(where, k)) for k, v in values.items()})


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _value(inside[0], value, where)
    if origin is tuple:
        if isinstance(value, (list, tuple)):
            return tuple(_value(inside[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {str(k): _value(inside[1], v, _join(where, k)) for k, v in value.items()}
    elif kind is float:
        # YAML reads 6e-4 as text: it wants a dot before the exponent.
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                return float(value)
            except ValueError:
                pass
    elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    name = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    raise ConfigError(f"{where} is {value!r}: expected {name}")
