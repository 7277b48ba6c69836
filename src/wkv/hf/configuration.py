"""``config.json`` of ``model_type: rwkv``, as the hub's repositories write it."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from ..config import ModelConfig


class RwkvConfig(PretrainedConfig):
    """Numbers of an RWKV-4 model, under the hub's names and with transformers' defaults.

    ``context_length`` is the training length, not a limit. ``rescale_every`` of 0 or less means
    that float16 activations are never halved. :meth:`architecture` gives the same numbers as the
    rest of this package wants them, and raises :class:`~wkv.errors.ConfigError` where they make no
    model; so does the constructor.
    """

    model_type = "rwkv"
    # What evaluation must not gather across batches: a state is not a prediction.
    keys_to_ignore_at_inference = ["state"]  # noqa: RUF012

    vocab_size: int = 50277
    context_length: int = 1024
    hidden_size: int = 4096
    num_hidden_layers: int = 32
    attention_hidden_size: int | None = None
    intermediate_size: int | None = None
    layer_norm_epsilon: float = 1e-5
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 0
    pad_token_id: int | None = None
    rescale_every: int = 6
    tie_word_embeddings: bool = False
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        architecture = self.architecture()
        self.attention_hidden_size = architecture.attention_size
        self.intermediate_size = architecture.ffn_size

    def architecture(self) -> ModelConfig:
        """The same numbers, checked."""
        eos = self.eos_token_id
        return ModelConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            attention_hidden_size=self.attention_hidden_size,
            intermediate_size=self.intermediate_size,
            context_length=self.context_length,
            layer_norm_epsilon=self.layer_norm_epsilon,
            bos_token_id=self.bos_token_id,
            eos_token_id=eos[0] if isinstance(eos, list) else eos,
            rescale_every=max(self.rescale_every, 0),
            tie_word_embeddings=self.tie_word_embeddings,
        )

    @classmethod
    def of(cls, architecture: ModelConfig, **kwargs: Any) -> RwkvConfig:
        """From this package's numbers; ``kwargs`` are any other keys of a transformers config."""
        return cls(**{**architecture.to_dict(), **kwargs})
