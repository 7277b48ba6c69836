"""The published learning-rate schedule: warm-up from 0.2, then exponential decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a function of the step.

    Attributes:
        initial: rate at the start (before the warm-up's factor).
        final: rate at the last step.
        steps: steps in all.
        warmup: steps over which the factor 0.2 + 0.8·step/warmup applies; 0 for none.
        shape: ``"exponential"``, initial·(final/initial)^progress (published), or ``"cosine"``.
    """

    initial: float
    final: float
    steps: int
    warmup: int = 0
    shape: str = "exponential"

    def __post_init__(self) -> None:
        if not self.initial > 0 or not self.final > 0:
            raise ConfigError(
                f"learning rates {self.initial!r} → {self.final!r}: both must be above 0"
            )
        if self.steps < 1 or self.warmup < 0:
            raise ConfigError(
                f"{self.steps} steps with {self.warmup} of warm-up: give at least 1, and 0 or more"
            )
        if self.shape not in ("exponential", "cosine"):
            raise ConfigError(
                f"schedule shape {self.shape!r}: choose 'exponential' (published) or 'cosine'"
            )

    def __call__(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        progress = min(step / max(self.steps - 1, 1), 1.0)
        if self.shape == "exponential":
            rate = self.initial * (self.final / self.initial) ** progress
        else:
            rate = self.final + (self.initial - self.final) * (1 + math.cos(math.pi * progress)) / 2
        return rate * (0.2 + 0.8 * step / self.warmup) if step < self.warmup else rate
