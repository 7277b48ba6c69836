"""Typed errors. Every message says what was got, what was expected, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class WkvError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(WkvError, ValueError):
    """An architecture number or an option is unknown, missing or out of bounds."""


class ShapeError(WkvError, ValueError):
    """Arrays whose shapes, dtypes or lengths do not fit together."""


class StateError(WkvError, ValueError):
    """A state that does not belong to this model, batch or file format."""


class UnavailableError(WkvError, RuntimeError):
    """Something was asked for by name that this installation or machine cannot do."""


class NonFiniteError(WkvError, ArithmeticError):
    """A model gave NaN or infinity where a number was needed."""


class OutOfMemoryError(WkvError, MemoryError):
    """An allocation failed; the message says which setting to lower."""


class TokenizerError(WkvError, ValueError):
    """Text was asked for and no tokenizer is there, or a tokenizer file is damaged."""


class CheckpointError(WkvError, ValueError):
    """A weight file is missing, damaged, hostile or of another shape than it says.

    The message always begins with the file, and the tensor if one is to blame.
    """

    def __init__(self, path: str | Path, problem: str, *, tensor: str | None = None) -> None:
        self.path = Path(path)
        self.tensor = tensor
        self.problem = problem
        super().__init__(f"{path}: {f'tensor {tensor!r}: ' if tensor else ''}{problem}")

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[Path, str], dict[str, Any]]:
        # It crosses from worker processes; the message and the tensor are in the dictionary.
        return type(self), (self.path, self.problem), {**self.__dict__, "args": self.args}


class UnsafeFileError(CheckpointError):
    """A pickle that asks to run code. Nothing of it was executed."""


class ArchitectureError(CheckpointError):
    """The tensors describe a model that this version of the package does not run."""


class CorpusError(WkvError, ValueError):
    """A file of texts or tokens to train on is missing, damaged or unfit for what was asked.

    The message always begins with the file.
    """

    def __init__(self, path: str | Path, problem: str) -> None:
        self.path = Path(path)
        self.problem = problem
        super().__init__(f"{path}: {problem}")

    def __reduce__(self) -> tuple[type[CorpusError], tuple[Path, str]]:
        return type(self), (self.path, self.problem)  # it crosses from worker processes


class CancelledError(WkvError, RuntimeError):
    """A forward was stopped because its caller asked for it. Nothing was changed."""
