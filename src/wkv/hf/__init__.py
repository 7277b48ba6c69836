"""RWKV for transformers: ``register()`` makes its Auto classes use this package's."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from ..tokenizer.world_hf import RWKVWorldTokenizer, RwkvWorldTokenizer
from .configuration import RwkvConfig
from .modeling import (
    RwkvCausalLMOutput,
    RwkvForCausalLM,
    RwkvForSequenceClassification,
    RwkvModel,
    RwkvOutput,
    RwkvPreTrainedModel,
)

__all__ = [
    "RWKVWorldTokenizer",
    "RwkvCausalLMOutput",
    "RwkvConfig",
    "RwkvForCausalLM",
    "RwkvForSequenceClassification",
    "RwkvModel",
    "RwkvOutput",
    "RwkvPreTrainedModel",
    "RwkvWorldTokenizer",
    "register",
]


def register() -> None:
    """Put these classes in the place of transformers' own for ``model_type: rwkv``.

    Afterwards ``AutoConfig``, ``AutoModel``, ``AutoModelForCausalLM``,
    ``AutoModelForSequenceClassification``, ``AutoTokenizer`` and pipelines use them. Calling it
    again changes nothing.
    """
    AutoConfig.register("rwkv", RwkvConfig, exist_ok=True)
    AutoModel.register(RwkvConfig, RwkvModel, exist_ok=True)
    AutoModelForCausalLM.register(RwkvConfig, RwkvForCausalLM, exist_ok=True)
    AutoModelForSequenceClassification.register(
        RwkvConfig, RwkvForSequenceClassification, exist_ok=True
    )
    # A World tokenizer is found by the name in its tokenizer_config.json. The last one registered
    # is what a folder gets that names none: it reads the folder's tokenizer.json as it is.
    for tokenizer in (RWKVWorldTokenizer, RwkvWorldTokenizer, PreTrainedTokenizerFast):
        AutoTokenizer.register(RwkvConfig, tokenizer, exist_ok=True)
