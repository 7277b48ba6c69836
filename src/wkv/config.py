"""The numbers that define an RWKV-4 model, under the names of the hub's ``config.json``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError

PILE_VOCAB_SIZE = 50277
WORLD_VOCAB_SIZE = 65536


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one RWKV-4 model.

    ``attention_hidden_size`` and ``intermediate_size`` default to ``hidden_size`` and
    ``4 * hidden_size``. ``context_length`` is the training length, not a limit. ``rescale_every``
    is the number of blocks after which float16 activations are halved (0 = never).
    """

    vocab_size: int = PILE_VOCAB_SIZE
    hidden_size: int = 768
    num_hidden_layers: int = 12
    attention_hidden_size: int | None = None
    intermediate_size: int | None = None
    context_length: int = 1024
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    rescale_every: int = 6
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.attention_hidden_size is None:
            object.__setattr__(self, "attention_hidden_size", self.hidden_size)
        if self.intermediate_size is None:
            object.__setattr__(self, "intermediate_size", 4 * self.hidden_size)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "attention_hidden_size",
            "intermediate_size",
            "context_length",
        ):
            if not _is_whole(value := getattr(self, name), 1):
                raise ConfigError(f"{name} is {value!r}: give a whole number of at least 1")
        if not _is_whole(self.rescale_every, 0):
            raise ConfigError(
                f"rescale_every is {self.rescale_every!r}: give 0 (never) or a number of blocks"
            )
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value, 0):
                raise ConfigError(f"{name} is {value!r}: give one token id, or None")
        epsilon = self.layer_norm_epsilon
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise ConfigError(f"layer_norm_epsilon is {epsilon!r}: give a number in (0, 1)")
        if not isinstance(self.tie_word_embeddings, bool):
            raise ConfigError(
                f"tie_word_embeddings is {self.tie_word_embeddings!r}: give true or false"
            )

    @property
    def attention_size(self) -> int:
        """A: channels of the wkv operator."""
        assert self.attention_hidden_size is not None
        return self.attention_hidden_size

    @property
    def ffn_size(self) -> int:
        """F: hidden channels of the feed-forward layer."""
        assert self.intermediate_size is not None
        return self.intermediate_size

    @property
    def parameters(self) -> int:
        """Number of parameters; 2VD + 13D²L + D(11L + 4) for the published shapes."""
        v, d, n = self.vocab_size, self.hidden_size, self.num_hidden_layers
        a, f = self.attention_size, self.ffn_size
        block = (
            4 * d * a + 2 * d * f + d * d + 2 * a + 9 * d
        )  # matrices, decay/first, mixes + norms
        return v * d * (1 if self.tie_word_embeddings else 2) + n * block + 4 * d

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from plain values; an unknown key is an error that names its nearest neighbour."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {sorted(known)}"
                raise ConfigError(f"unknown configuration key {key!r}{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain values, ready for ``config.json``."""
        return dataclasses.asdict(self)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


PRESETS: dict[str, ModelConfig] = {
    "169m": ModelConfig(num_hidden_layers=12, hidden_size=768),
    "430m": ModelConfig(num_hidden_layers=24, hidden_size=1024),
    "1b5": ModelConfig(num_hidden_layers=24, hidden_size=2048),
    "3b": ModelConfig(num_hidden_layers=32, hidden_size=2560),
    "7b": ModelConfig(num_hidden_layers=32, hidden_size=4096),
    "14b": ModelConfig(num_hidden_layers=40, hidden_size=5120),
}


def preset(name: str, **changes: Any) -> ModelConfig:
    """A published size by name (``"169m"`` … ``"14b"``), with any number changed."""
    key = name.lower()
    if key not in PRESETS:
        raise ConfigError(f"unknown size {name!r}: choose from {', '.join(PRESETS)}")
    return ModelConfig.from_dict(
        {
            **PRESETS[key].to_dict(),
            # The derived sizes follow a changed hidden_size unless they are given too.
            "attention_hidden_size": None,
            "intermediate_size": None,
            **changes,
        }
    )
