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

from ..config import ModelConfig, preset
from ..data.templates import TEMPLATES
from ..errors import ConfigError

BOUNDARIES = ("stream", "reset", "pack")


@dataclass(frozen=True)
class DataRecipe:
    """What to learn from.

    Attributes:
        train: a tokenised corpus (the common part of its .bin and .idx names), or a source of
            texts for :func:`wkv.data.read_records`, which is then tokenised once.
        validation: another, or none.
        context: tokens a block, T.
        seed: of the order of the blocks, and of what is held out.
        boundaries: what documents see of each other. ``"stream"``, as published: blocks of the
            stream of all documents, the state runs on. ``"reset"``: the same blocks, the state is
            reset where a document begins. ``"pack"``: whole documents side by side, reset too;
            for instructions.
        tokenizer: a name or path; None is what lies beside ``start``.
        field: of a record that holds the text.
        template: for instructions and conversations, a name of :data:`wkv.data.TEMPLATES`, or
            several joined by ``+``, of which each record takes one; only the answers are learnt.
        split: of a ``datasets`` source.
        holdout: share of the documents that becomes the validation set, where none is given.
        workers: processes that tokenise; 0 takes every core.
        cache: folder for what is tokenised; None is ``corpus`` in the run's output.
    """

    train: str
    validation: str | None = None
    context: int = 1024
    seed: int = 0
    boundaries: str = "stream"
    tokenizer: str | None = None
    field: str = "text"
    template: str | None = None
    split: str = "train"
    holdout: float = 0.0
    workers: int = 0
    cache: str | None = None

    def __post_init__(self) -> None:
        _least("data.context", self.context, 1)
        _least("data.workers", self.workers, 0)
        _choice("data.boundaries", self.boundaries, BOUNDARIES)
        if self.template is not None:
            for name in self.template.split("+"):
                _choice("data.template", name, tuple(TEMPLATES))
        if not 0 <= self.holdout < 1:
            raise ConfigError(f"data.holdout is {self.holdout}: give a share from 0 to below 1")
        if self.holdout and self.validation:
            raise ConfigError("data.holdout and data.validation: give one of them")


@dataclass(frozen=True)
class BpttRecipe:
    """Back-propagation through time over chunks of ``chunk`` tokens; 0 runs a block at once.

    ``gradients``: ``"full"`` is exact and runs each chunk twice; ``"truncated"`` carries the state
    but cuts the gradient at the seams.
    """

    chunk: int = 0
    gradients: str = "full"

    def __post_init__(self) -> None:
        _least("bptt.chunk", self.chunk, 0)
        _choice("bptt.gradients", self.gradients, ("full", "truncated"))


@dataclass(frozen=True)
class TuneRecipe:
    """What is learnt: the whole model, LoRA adapters, or the initial state alone.

    Attributes:
        method: ``"full"``, ``"lora"`` or ``"state"``.
        rank: of LoRA's factors.
        alpha: LoRA's scale is alpha / rank.
        dropout: before LoRA's factors.
        modules: last names of the matrices that get adapters.
        lora: a published ``.pth`` LoRA file to go on from.
        merge: write the merged model too, at the end.
    """

    method: str = "full"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    modules: tuple[str, ...] = ("key", "value", "receptance", "output")
    lora: str | None = None
    merge: bool = True

    def __post_init__(self) -> None:
        _choice("tune.method", self.method, ("full", "lora", "state"))
        _least("tune.rank", self.rank, 1)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"tune.dropout is {self.dropout}: give 0 to below 1")
        if not self.modules:
            raise ConfigError("tune.modules is empty: name at least one matrix")
        if self.lora and self.method != "lora":
            raise ConfigError(f"tune.lora is given, but tune.method is {self.method!r}: set 'lora'")


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

    Attributes:
        output: folder of checkpoints, logs, plots and the final model.
        steps: optimiser steps in all.
        batch: blocks a process runs at once.
        accumulate: batches a step.
        precision: ``"fp32"`` or ``"bf16"`` (weights stay float32).
        device: ``"auto"`` or ``"cpu"``.
        seed: of the initial weights.
        log_every: steps between log lines.
        save_every: steps between checkpoints.
        keep: newest checkpoints that are kept, besides the best.
        evaluate_every: steps between validations; 0 is never.
        report_to: ``"tensorboard"``.
        quiet: no progress bar.
        resume: go on from the newest checkpoint in ``output``, if there is one. False begins anew
            and moves those that are there to ``earlier-N``.
        keep_best: save where the validation loss is the lowest so far, and keep that too.
        nonfinite: what a loss or gradient of NaN or infinity does: ``"stop"`` the run with the
            batch saved, or ``"skip"`` the step (the batch is saved too).
        gradient_checkpointing: keep only the blocks' inputs and run each again going back.
        compile: ``torch.compile`` the model.
        sample_every: steps between written samples; 0 is never.
        sample_prompts: what they go on from.
        sample_tokens: their length.
        plot: write ``training.png`` at the end, and whenever the process gets SIGUSR1.
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
    resume: bool = True
    keep_best: bool = True
    nonfinite: str = "stop"
    gradient_checkpointing: bool = False
    compile: bool = False
    sample_every: int = 0
    sample_prompts: tuple[str, ...] = ("\n",)
    sample_tokens: int = 64
    plot: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every", "save_every", "keep"):
            _least(f"run.{name}", getattr(self, name), 1)
        for name in ("evaluate_every", "sample_every"):
            _least(f"run.{name}", getattr(self, name), 0)
        _choice("run.precision", self.precision, ("fp32", "bf16"))
        _choice("run.device", self.device, ("auto", "cpu"))
        _choice("run.nonfinite", self.nonfinite, ("stop", "skip"))


@dataclass(frozen=True)
class Recipe:
    """Everything a run depends on, besides the corpus and the machine.

    ``model`` is the architecture of a new model: its numbers, a published size (``169m``), or a
    size with numbers changed (``{size: 169m, vocab_size: 65536}``). ``start`` is a checkpoint, in
    any format of :mod:`wkv.checkpoint`, to go on from; one of the two is needed, and a model given
    beside ``start`` must be of its shape.
    """

    data: DataRecipe
    run: RunRecipe
    model: ModelConfig | None = None
    start: str | None = None
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    l2wrap: float = 1e-4
    bptt: BpttRecipe = field(default_factory=BpttRecipe)
    tune: TuneRecipe = field(default_factory=TuneRecipe)

    def __post_init__(self) -> None:
        if self.model is None and self.start is None:
            raise ConfigError("missing: model (a new one) or start (a checkpoint to go on from)")
        if self.start is None and self.tune.method != "full":
            raise ConfigError(
                f"tune.method is {self.tune.method!r} without start: name the checkpoint to tune"
            )
        if self.tune.dropout and self.bptt.chunk and self.bptt.gradients == "full":
            raise ConfigError(
                "tune.dropout with full back-propagation over chunks: each chunk runs twice and "
                "would drop different values; set tune.dropout=0 or bptt.gradients=truncated"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """Build from nested plain values; a wrong key or type is a ConfigError that names it."""
        if isinstance(values, Mapping) and "model" in values:
            values = {**values, "model": _sized(values["model"])}
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


def _sized(model: Any) -> Any:
    """A model given by a published size, as all its numbers."""
    if isinstance(model, str):
        model = {"size": model}
    if not isinstance(model, Mapping) or "size" not in model:
        return model
    changes = {key: value for key, value in model.items() if key != "size"}
    return preset(str(model["size"]), **changes).to_dict()


def _least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}: give at least {least}")


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
