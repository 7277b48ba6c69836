"""Fine-tuning less than the whole model: LoRA adapters, or the initial state alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..checkpoint import open_lora
from ..checkpoint.names import to_hf
from ..checkpoint.tensors import read
from ..errors import CheckpointError, ConfigError, UnavailableError
from ..state import State
from .recipe import TuneRecipe


class StateTuned(nn.Module):
    """A frozen model whose initial state is learnt: what a prompt would leave behind, made to fit.

    Learnt are, for each layer, the two shifted inputs [L, D], the average of the values [L, A] and
    the logarithm of its weight [L, A]; numerator, denominator and maximum are (average, 1, log
    weight), which is the same state with one number less and a denominator that stays positive.
    They begin as the state after ``begin``.

    Args:
        model: a :class:`~wkv.hf.RwkvForCausalLM`; its parameters stop requiring gradients.
        begin: token ids to begin from; token 0 ends a document, so a new one follows.
    """

    def __init__(self, model: Any, begin: tuple[int, ...] = (0,)) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        ids = torch.tensor([begin], device=next(model.parameters()).device)
        with torch.no_grad():
            state: State = model.eval()(input_ids=ids, use_cache=True).state
        self.att_x = nn.Parameter(state.att_x[0].float().clone())
        self.ffn_x = nn.Parameter(state.ffn_x[0].float().clone())
        self.average = nn.Parameter((state.num / state.den)[0].float())
        self.log_weight = nn.Parameter((state.max + state.den.log())[0].float())

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    def initial_state(self, rows: int) -> State:
        """The learnt state for so many sequences, with its gradients."""
        fields: dict[str, Any] = {
            "att_x": self.att_x,
            "ffn_x": self.ffn_x,
            "num": self.average,
            "den": torch.ones_like(self.average),
            "max": self.log_weight,
        }
        return State(**{n: x[None].expand(rows, *x.shape) for n, x in fields.items()})

    def forward(
        self,
        input_ids: torch.Tensor,
        state: State | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """As the model's, from the learnt state where none is given."""
        if state is None:
            rows = input_ids.shape[0] if cu_seq_lens_q is None else len(cu_seq_lens_q) - 1
            state = self.initial_state(rows)
        return self.model(input_ids=input_ids, state=state, cu_seq_lens_q=cu_seq_lens_q, **options)

    def generate(self, input_ids: torch.Tensor, **options: Any) -> Any:
        """As the model's, from the learnt state."""
        state = self.initial_state(input_ids.shape[0]).detach()
        return self.model.generate(input_ids, state=state, **options)

    def learnt(self) -> State:
        """The state as a value, marked as this model's; ``save`` it for any engine to load."""
        return self.initial_state(1).to("numpy").with_fingerprint(self.model.fingerprint())

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is learnt alone: checkpoints need not repeat the frozen model."""
        whole = super().state_dict(*args, **kwargs)
        return {name: x for name, x in whole.items() if not name.startswith("model.")}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """The inverse of :meth:`state_dict`."""
        own = self.state_dict()
        if set(state_dict) != set(own):
            raise ConfigError(
                f"a learnt state has {sorted(own)}; this checkpoint has {sorted(state_dict)[:8]}: "
                "it is of another tune.method"
            )
        with torch.no_grad():
            for name, value in state_dict.items():
                self.get_parameter(name).copy_(value)
        return nn.modules.module._IncompatibleKeys([], [])


def with_lora(model: Any, tune: TuneRecipe) -> Any:
    """The model with PEFT's LoRA adapters at the matrices that ``tune.modules`` names.

    A name matches the end of a module's: ``key`` is attention's and the feed-forward layer's,
    ``attention.key`` the former alone. With ``tune.lora`` the adapters go on from a published file.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UnavailableError("tune.method=lora needs peft: pip install 'wkv[train]'") from error
    matrices = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    for name in tune.modules:
        if not any(f".{m}".endswith(f".{name}") for m in matrices):
            ends = sorted({m.rpartition(".")[2] for m in matrices})
            raise ConfigError(f"tune.modules: no matrix is named {name!r}: choose from {ends}")
    wrapped = get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=tune.rank,
            lora_alpha=tune.alpha,
            lora_dropout=tune.dropout,
            target_modules=list(tune.modules),
        ),
    )
    if tune.lora:
        load_published_lora(wrapped, tune.lora)
    return wrapped


def load_published_lora(model: Any, path: str | Path) -> None:
    """Fill a PEFT model's adapters from a published ``.pth`` LoRA file.

    Whole tensors in the file (LayerNorms, ``time_*``) replace those of the base model. The file
    does not say its alpha: it must be the one that the adapters were built with.

    Raises:
        CheckpointError: a rank or matrix that the adapters do not have.
    """
    lora = open_lora(path)
    parameters = dict(model.named_parameters())
    base = "base_model.model."

    def copy(name: str, value: Any, tensor: str) -> None:
        parameter = parameters.get(name)
        if parameter is None:
            raise CheckpointError(
                path, "has no adapter in this model: add its name to tune.modules", tensor=tensor
            )
        found = torch.from_numpy(value.copy())
        if found.numel() != parameter.numel():
            raise CheckpointError(
                path,
                f"is {list(found.shape)}, this model's {list(parameter.shape)}: set tune.rank to "
                f"the file's ({lora.ranks[0]})",
                tensor=tensor,
            )
        with torch.no_grad():
            parameter.copy_(found.reshape(parameter.shape))

    for tensor, (a, b) in lora.factors.items():
        module = base + to_hf(tensor).removesuffix(".weight")
        copy(f"{module}.lora_A.default.weight", read(a, "float32"), tensor)
        copy(f"{module}.lora_B.default.weight", read(b, "float32"), tensor)
    for tensor, stored in lora.whole.items():
        copy(base + to_hf(tensor), read(stored, "float32"), tensor)
