"""Registers this package with transformers without importing it.

Where transformers is imported already it is told at once. Otherwise a finder waits for its import,
leaves the search to the other finders, and registers when the module has been executed. Nothing
happens in a program that never imports transformers.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

TARGET = "transformers"
# These import transformers while they are being imported: registering needs them whole.
NEEDED = ("wkv.hf", "wkv.tokenizer.world_hf")


def install(register: Callable[[], None]) -> None:
    """Call ``register`` once transformers is imported, or now if it is."""
    if sys.modules.get(TARGET) is not None:
        _attempt(register)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(register))


class _Finder:
    """Sees the import of transformers once, and is gone."""

    def __init__(self, register: Callable[[], None]) -> None:
        self._register = register
        self._executing: set[str] = set()
        self._arrived = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders give, with a loader that reports when it is through."""
        if name != TARGET and name not in NEEDED:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                self._watch(name, spec.loader)
                return spec
        return None

    def _watch(self, name: str, loader: Any) -> None:
        execute = getattr(loader, "exec_module", None)
        if execute is None:
            return

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # the loader is as it was for whoever looks at it later
            self._executing.add(name)
            try:
                execute(module)
                self._arrived = self._arrived or name == TARGET
            finally:
                self._executing.discard(name)
            if self._arrived and not self._executing and self in sys.meta_path:
                sys.meta_path.remove(self)
                _attempt(self._register)

        loader.exec_module = exec_module


def _attempt(register: Callable[[], None]) -> None:
    if importlib.util.find_spec("torch") is None:
        return  # transformers itself has no models then
    try:
        register()
    except Exception as error:
        # Somebody imports transformers, perhaps for another model: that must not fail.
        warnings.warn(
            f"wkv could not register its models with transformers ({type(error).__name__}: "
            f"{error}); wkv.register() shows where",
            RuntimeWarning,
            stacklevel=2,
        )
