"""RWKV language models: trained like a transformer, run like an RNN.

``load()`` gives a model that reads and writes text. Importing this package makes the Auto classes
of transformers use its RWKV, as soon as transformers is imported; see :func:`register`.

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import _autoregister, errors

if TYPE_CHECKING:
    from .api import BUNDLED as BUNDLED
    from .api import LanguageModel as LanguageModel
    from .api import load as load
    from .config import PRESETS as PRESETS
    from .config import ModelConfig as ModelConfig
    from .embedding import EmbeddingStatistics as EmbeddingStatistics
    from .generate import Generation as Generation
    from .generate import GenerationOptions as GenerationOptions
    from .generate import Piece as Piece
    from .generate import TextStream as TextStream
    from .sampling import SamplingOptions as SamplingOptions
    from .state import State as State

__version__ = "0.1.0"

WkvError = errors.WkvError
_MODULE_OF = {
    "BUNDLED": "api",
    "LanguageModel": "api",
    "load": "api",
    "PRESETS": "config",
    "ModelConfig": "config",
    "EmbeddingStatistics": "embedding",
    "Generation": "generate",
    "GenerationOptions": "generate",
    "Piece": "generate",
    "TextStream": "generate",
    "SamplingOptions": "sampling",
    "State": "state",
}


def register() -> None:
    """Make transformers' Auto classes use this package's RWKV now.

    ``import wkv`` alone does the same as soon as transformers is imported. Call this where it
    should not wait for that, or to see why it failed.

    Raises:
        ImportError: transformers or PyTorch is not installed (``pip install 'wkv[torch]'``).
    """
    importlib.import_module(".hf", __name__).register()


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})


_autoregister.install(register)
