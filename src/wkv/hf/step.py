"""One step of generation: which token, what is recorded of it, and what comes out at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig
from transformers.generation import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)

from ..errors import ConfigError
from ..state import State


@dataclass
class RwkvGenerateOutput(GenerateDecoderOnlyOutput):
    """What ``generate(..., return_dict_in_generate=True)`` returns.

    ``state`` has read every real token of each row of ``sequences`` but the last, so
    ``generate(last_tokens, state=output.state)`` goes on; None without ``use_cache``.
    """

    state: State | None = None


@dataclass
class RwkvGenerateBeamOutput(GenerateBeamDecoderOnlyOutput):
    """The same for beam search."""

    state: State | None = None


class Choice:
    """Picks one token a row from processed scores [B, V]."""

    def __init__(
        self, config: GenerationConfig, seed: int | Sequence[int] | None, rows: int
    ) -> None:
        self.sample = config.do_sample
        self.streams: list[np.random.Generator] | None = None
        if seed is None:
            return
        samples = max(config.num_return_sequences or 1, 1)
        prompts = rows // samples
        seeds = [seed] * prompts if isinstance(seed, int | np.integer) else list(seed)
        if len(seeds) != prompts:
            raise ConfigError(f"{len(seeds)} seeds for {prompts} prompts: give one or one for each")
        if any(not isinstance(s, int | np.integer) or s < 0 for s in seeds):
            raise ConfigError(f"seed is {seed!r}: give whole numbers of at least 0")
        self.streams = [np.random.default_rng([s, j]) for s in seeds for j in range(samples)]

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """[B, V] → token ids [B]."""
        if not self.sample:
            return scores.argmax(-1)
        if self.streams is None:
            return torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        # One number a row, through the inverse of the distribution function: which numbers a row
        # gets does not depend on the batch or on the vocabulary. In float64 on the CPU, so that
        # every device draws the same.
        numbers = torch.tensor([[s.random()] for s in self.streams], dtype=torch.float64)
        edges = scores.double().cpu().softmax(-1).cumsum(-1)
        return torch.searchsorted(edges, numbers * edges[:, -1:], right=True)[:, 0].to(
            scores.device
        )


class Record:
    """What ``return_dict_in_generate`` asks for, one entry a token."""

    def __init__(self, config: GenerationConfig) -> None:
        self.wanted = bool(config.return_dict_in_generate)
        self.scores: tuple[Any, ...] | None = () if self.wanted and config.output_scores else None
        self.logits: tuple[Any, ...] | None = () if self.wanted and config.output_logits else None
        self.hidden: tuple[Any, ...] | None = (
            () if self.wanted and config.output_hidden_states else None
        )

    def add(self, scores: torch.Tensor, logits: torch.Tensor, hidden: Any) -> None:
        """One step's processed scores, raw logits [B, V] and hidden states."""
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)
        if self.hidden is not None:
            self.hidden += (hidden,)

    def output(self, sequences: torch.Tensor, state: State | None) -> Any:
        """The sequences alone, or everything that was asked for."""
        if not self.wanted:
            return sequences
        return RwkvGenerateOutput(
            sequences=sequences,
            scores=self.scores,
            logits=self.logits,
            hidden_states=self.hidden,
            state=state,
        )


class StateGuidance(UnbatchedClassifierFreeGuidanceLogitsProcessor):
    """Classifier-free guidance whose unconditional row carries a state."""

    def __init__(self, other: UnbatchedClassifierFreeGuidanceLogitsProcessor) -> None:
        self.__dict__.update(other.__dict__)

    def get_unconditional_logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, T, V] after the negative prompt and what was generated."""
        context = self.unconditional_context
        tokens, mask = input_ids[:, -1:], None
        if context.pop("first_pass", False):
            mask = context["attention_mask"]
            if context["input_ids"] is not None:
                tokens = context["input_ids"]
        outputs = self.model(
            tokens, attention_mask=mask, state=context.get("state"), use_cache=True
        )
        context["state"] = outputs.state
        return outputs.logits
