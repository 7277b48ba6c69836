"""RWKV-4 as transformers classes: the same modules as ``wkv.model.rwkv4``, under the hub's names.

Unlike transformers' own classes these honour ``attention_mask``, run any batch, never change a
weight or the caller's state, and let gradients through a carried state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput

from ..checkpoint.names import to_hf
from ..model.init import init_attention, init_embedding, init_feed_forward, init_head
from ..model.rwkv4 import Attention, Backbone, FeedForward
from ..state import Fingerprint, State
from .configuration import RwkvConfig
from .generation import RwkvGenerationMixin
from .inputs import OF_LOSS, Padding, as_torch_state, countable, packed_starts, refuse


@dataclass
class RwkvOutput(ModelOutput):
    """Output of :class:`RwkvModel`.

    ``last_hidden_state`` is [B, T, D]; ``state`` is what the model remembers after the last real
    token of each row (None without ``use_cache``); ``hidden_states`` are the L block inputs and
    the final, normalised hidden states, each [B, T, D].
    """

    last_hidden_state: torch.Tensor | None = None
    state: State | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


@dataclass
class RwkvCausalLMOutput(ModelOutput):
    """Output of :class:`RwkvForCausalLM`: scalar ``loss``, ``logits`` [B, T, V]; see above."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    state: State | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


class RwkvPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation."""

    config: RwkvConfig
    config_class = RwkvConfig
    base_model_prefix = "rwkv"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["state"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _is_stateful = True

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype | None]:
        # Decay and bonus enter exponents. Asked to load in 16 bits, keep the precision that the
        # file has (they are computed with in float32 anyway), so that saving gives it back.
        plan = super()._get_dtype_plan(dtype)
        if dtype in (torch.float16, torch.bfloat16):
            plan |= {"time_decay": None, "time_first": None}
        return plan

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fill what a checkpoint did not bring (the constructor has filled a fresh model)."""
        if isinstance(module, Attention):
            init_attention(module)
        elif isinstance(module, FeedForward):
            init_feed_forward(module)
        elif isinstance(module, nn.Embedding):
            init_embedding(module)
        elif isinstance(module, nn.Linear) and module is not getattr(self, "score", None):
            for parent in self.modules():
                if isinstance(parent, Attention | FeedForward) and module in parent.children():
                    return self._init_weights(parent)
            init_head(module)
        else:
            super()._init_weights(module)
        return None

    def _mark_filled(self, *modules: nn.Module) -> None:
        # The constructors of the modules filled them already: once is enough, orthogonal matrices
        # are slow. On the meta device nothing was filled.
        for module in modules:
            for part in module.modules():
                part._is_hf_initialized = all(not p.is_meta for p in part.parameters())  # type: ignore[assignment]


class RwkvModel(Backbone, RwkvPreTrainedModel):
    """RWKV-4 without a head: token ids to hidden states.

    ``wkv_implementation`` chooses the operator of :mod:`wkv.ops` (``"auto"`` is the fastest).
    """

    wkv_implementation = "auto"

    def __init__(self, config: RwkvConfig) -> None:
        # Not through Backbone's constructor, which takes the other kind of configuration.
        RwkvPreTrainedModel.__init__(self, config)  # type: ignore[call-arg]
        self.build(config.architecture())
        self._mark_filled(self)
        self.post_init()  # type: ignore[operator]

    def get_input_embeddings(self) -> nn.Module:
        """The embedding."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the embedding."""
        self.embeddings = value

    def fingerprint(self) -> Fingerprint | None:
        """Tells this model's states from another's; None while weights are offloaded."""

        def vector(name: str) -> Any:
            return self.get_parameter(to_hf(name).removeprefix("rwkv.")).detach().float().cpu()

        if any(p.is_meta for p in self.parameters()):
            return None
        return Fingerprint.of(self.config.architecture(), vector)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: State | list[torch.Tensor] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> RwkvOutput | tuple[Any, ...]:
        """Run tokens, going on from a state.

        Args:
            input_ids: token ids [B, T], or
            inputs_embeds: embedded tokens [B, T, D].
            attention_mask: [B, T], 0 where there is no token. A masked position changes nothing:
                neither the other positions nor the state. Its own output repeats that of the last
                real token before it (0 before the first), so the last column always belongs to
                the last real token. A longer mask is taken from its end.
            state: where to go on from, B rows; never changed. A list of five tensors [B, D, L] in
                the order of transformers' own class is taken too.
            use_cache: return the new state (default: the config's, but not in training unless a
                state was given).
            output_hidden_states: return the hidden states between the blocks.
            return_dict: False for a tuple.
            kwargs: of attention-based models. Sequences packed into one row without padding are
                kept apart where ``cu_seq_lens_q`` or ``position_ids`` tell where they begin; the
                state then has a row for each. The rest means nothing here.

        Returns:
            :class:`RwkvOutput`.
        """
        refuse(kwargs)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        if use_cache is None:
            use_cache = state is not None if self.training else self.config.use_cache
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        inner: list[torch.Tensor] | None = [] if output_hidden_states else None

        padding = Padding.of(attention_mask, x)
        h, new = self.run(
            padding.pack(x) if padding else x,
            as_torch_state(state, self.config, x.device),
            starts=padding.starts if padding else packed_starts(kwargs, x),
            implementation=self.wkv_implementation,
            hidden_states=inner,
        )
        every = (*inner, h) if inner is not None else None
        if padding:
            h = padding.unpack(h)
            every = tuple(padding.unpack(e) for e in every) if every is not None else None
        output = RwkvOutput(h, new if use_cache else None, every)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class RwkvForCausalLM(RwkvPreTrainedModel, RwkvGenerationMixin):
    """RWKV-4 with its language-model head."""

    _tied_weights_keys = {"head.weight": "rwkv.embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__(config)
        self.rwkv = RwkvModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if not config.tie_word_embeddings:
            init_head(self.head)
        self._mark_filled(self.head)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.head = new_embeddings

    def fingerprint(self) -> Fingerprint | None:
        """See :meth:`RwkvModel.fingerprint`."""
        return self.rwkv.fingerprint()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: State | list[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> RwkvCausalLMOutput | tuple[Any, ...]:
        """Run tokens to logits; see :meth:`RwkvModel.forward`.

        Args:
            input_ids: as there.
            attention_mask: as there.
            inputs_embeds: as there.
            state: as there.
            labels: [B, T], shifted inside; −100, masked positions and the first real token of a
                row are not counted.
            use_cache: as there.
            output_hidden_states: as there.
            return_dict: as there.
            logits_to_keep: only the last so many positions' logits (0: all), or those of the
                positions in a tensor.
            kwargs: as there, and of the loss (``num_items_in_batch`` …).

        Returns:
            :class:`RwkvCausalLMOutput`.
        """
        of_loss = {k: kwargs.pop(k) for k in OF_LOSS if k in kwargs}
        outputs = self.rwkv(
            input_ids,
            attention_mask,
            inputs_embeds,
            state,
            use_cache,
            output_hidden_states,
            True,
            **kwargs,
        )
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.head(outputs.last_hidden_state[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=countable(labels, attention_mask),
                vocab_size=self.config.vocab_size,
                **of_loss,
            )
        output = RwkvCausalLMOutput(loss, logits, outputs.state, outputs.hidden_states)
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()


class RwkvForSequenceClassification(RwkvPreTrainedModel):
    """RWKV-4 reading a sequence to one label (many to one), from its last real token."""

    def __init__(self, config: RwkvConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.rwkv = RwkvModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        state: State | list[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Any, ...]:
        """Run tokens to one row of logits [B, num_labels]; see :meth:`RwkvModel.forward`.

        Args:
            input_ids: as there. Without a mask the ids after the last that is not
                ``config.pad_token_id`` are padding.
            attention_mask: as there.
            inputs_embeds: as there.
            state: as there.
            labels: [B] classes or numbers, [B, num_labels] for several of each;
                ``config.problem_type`` or their dtype chooses the loss.
            output_hidden_states: as there.
            return_dict: as there.
            kwargs: as there, and of the loss.

        Returns:
            transformers' ``SequenceClassifierOutput``.
        """
        if (
            attention_mask is None
            and input_ids is not None
            and self.config.pad_token_id is not None
        ):
            real = input_ids != self.config.pad_token_id
            attention_mask = real.flip(1).cummax(1).values.flip(1)
        of_loss = {k: kwargs.pop(k) for k in OF_LOSS if k in kwargs}
        outputs = self.rwkv(
            input_ids,
            attention_mask,
            inputs_embeds,
            state,
            False,
            output_hidden_states,
            True,
            **kwargs,
        )
        logits = self.score(outputs.last_hidden_state[:, -1])  # the last real token of each row
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, pooled_logits=logits, config=self.config, **of_loss
            )
        output = SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return output if as_dict else output.to_tuple()
