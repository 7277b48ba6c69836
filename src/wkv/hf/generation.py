"""``generate`` for a model whose memory is a state: a value that is carried, never cropped.

transformers' own loops assume a cache that grows and can be cut. Here a row that has ended reads
nothing more, so a returned state has read what the row says and no padding; drafted tokens are
tried from a state that is kept; and a row's random numbers can be its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.generation import (
    GenerationMode,
    LogitsProcessorList,
    StoppingCriteriaList,
    UnbatchedClassifierFreeGuidanceLogitsProcessor,
)
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.modeling_outputs import ModelOutput

from ..errors import ConfigError, UnavailableError
from ..state import State
from .inputs import as_torch_state
from .step import Choice, Record, RwkvGenerateBeamOutput, RwkvGenerateOutput, StateGuidance

_MODES = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)


class RwkvGenerationMixin(GenerationMixin):
    """Generation with a state instead of a cache."""

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *args: Any,
        state: State | list[torch.Tensor] | None = None,
        seed: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' ``generate``, with two more arguments.

        Args:
            inputs: prompts [B, T]; padding anywhere, given an ``attention_mask``. With a state,
                the tokens that it has not read yet (at least one a row).
            generation_config: see transformers.
            args: see transformers.
            state: where to go on from, B rows; never changed.
            seed: makes sampling a function of prompt, seed and sample number: a row says the same
                alone and in any batch, unlike with ``torch.manual_seed``, whose random numbers the
                rows share. One number for all prompts or one for each prompt.
            kwargs: see transformers. ``prompt_lookup_num_tokens`` works, for one prompt.

        Returns:
            Token ids [B · num_return_sequences, T + new], or with ``return_dict_in_generate``
            :class:`RwkvGenerateOutput` (:class:`RwkvGenerateBeamOutput`).

        Raises:
            UnavailableError: a way of generating that needs a key-value cache.
            StateError: a state of another model or batch size.
        """
        begin = as_torch_state(state, self.config, self._input_device())
        if begin is not None:
            given = (inputs, kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            if all(x is None for x in given):
                raise ValueError("a state goes on with tokens that it has not read: give input_ids")
            begin.check(self.config.architecture())
            if begin.fingerprint:
                begin.check_fingerprint(self.fingerprint())
            kwargs["state"] = begin
        if seed is not None:
            kwargs["seed"] = seed
        output = super().generate(inputs, generation_config, *args, **kwargs)
        if isinstance(output, RwkvGenerateOutput | RwkvGenerateBeamOutput) and output.state:
            output.state = output.state.with_fingerprint(self.fingerprint())
        return output

    # --- what transformers asks of a model ----------------------------------------------------

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        state: State | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool = False,
        seed: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of one forward call."""
        kwargs |= {"state": state, "attention_mask": attention_mask}
        if inputs_embeds is not None and is_first_iteration:
            return {**kwargs, "inputs_embeds": inputs_embeds}
        if next_sequence_length is not None:
            # A token that was just generated is never padding.
            input_ids, kwargs["attention_mask"] = input_ids[:, -next_sequence_length:], None
        return {**kwargs, "input_ids": input_ids.to(self._input_device())}

    def _input_device(self) -> torch.device:
        weight = self.get_input_embeddings().weight
        return torch.device("cpu") if weight.is_meta else weight.device

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        state = kwargs.get("state")
        if state is not None and expand_size > 1:
            rows = [row for row in range(state.batch_size) for _ in range(expand_size)]
            kwargs["state"] = state.select(rows)
        return super()._expand_inputs_for_generation(expand_size, *args, **kwargs)

    def _reorder_cache(self, state: State | None, beams: torch.Tensor) -> State | None:
        return None if state is None else state.select(beams.tolist())

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        processors = super()._get_logits_processor(*args, **kwargs)
        for i, processor in enumerate(processors):
            if isinstance(processor, UnbatchedClassifierFreeGuidanceLogitsProcessor):
                processors[i] = StateGuidance(processor)
        return processors

    # --- what needs a cache that can be cut ---------------------------------------------------

    def _get_deprecated_gen_repo(self, generation_mode: Any, *args: Any, **kwargs: Any) -> Any:
        # Asked first, and would otherwise advise to trust remote code that crops a cache.
        if generation_mode not in _MODES:
            raise UnavailableError(
                f"{generation_mode.value.replace('_', ' ')} crops a key-value cache, and RWKV has "
                "none: use greedy search, sampling, beam search or prompt lookup"
            )
        return super()._get_deprecated_gen_repo(generation_mode, *args, **kwargs)

    def _validate_generation_mode(self, mode: Any, config: Any, mode_kwargs: Any) -> None:
        beams = mode in (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)
        if beams and config.guidance_scale not in (None, 1):
            raise UnavailableError("guidance_scale does not follow beams: use num_beams=1")
        if mode != GenerationMode.ASSISTED_GENERATION:
            return super()._validate_generation_mode(mode, config, mode_kwargs)
        if config.prompt_lookup_num_tokens is None:
            raise UnavailableError(
                "drafting with an assistant crops the assistant's cache after every rejected "
                "token, and a recurrent state cannot be cropped: use prompt_lookup_num_tokens"
            )
        if config.num_return_sequences > 1:
            raise UnavailableError(
                f"prompt lookup writes one sequence, num_return_sequences is "
                f"{config.num_return_sequences}: use 1"
            )
        return None

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Not for RWKV: refused."""
        raise UnavailableError(
            "continuous batching in transformers pages a key-value cache, and RWKV has none: call "
            "generate with a batch, whose states stay small"
        )

    init_continuous_batching = generate_batch

    # --- the loops ----------------------------------------------------------------------------

    def _prefill(
        self,
        input_ids: torch.Tensor,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        is_first_iteration: bool = True,
    ) -> Any:
        inputs = self.prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **model_kwargs
        )
        # Either may be there as None.
        name = "input_ids" if inputs.get("inputs_embeds") is None else "inputs_embeds"
        inputs = {k: v for k, v in inputs.items() if k == name or not k.startswith("input")}
        tokens, mask, state = inputs.pop(name), inputs.pop("attention_mask"), inputs.pop("state")
        length = tokens.shape[1]
        if mask is not None:
            mask = mask[:, -length:]
            empty = (~(mask != 0).any(1)).nonzero().flatten().tolist()
        else:
            empty = [] if length else [0]
        if empty:
            raise ValueError(f"row {empty[0]} has no token to go on from: give at least one")
        chunk = generation_config.prefill_chunk_size or length
        if mask is not None and chunk < length:
            # To the right, so that the last chunk has the last token of every row.
            order = (mask != 0).long().argsort(dim=1, stable=True)
            mask = mask.gather(1, order)
            tokens = tokens[torch.arange(len(tokens), device=tokens.device)[:, None], order]
        if chunk < length and not inputs.get("use_cache"):
            raise ConfigError("prefill_chunk_size carries the state from chunk to chunk: use_cache")
        for begin in range(0, length, chunk):
            part = slice(begin, begin + chunk)
            outputs = self(
                **{name: tokens[:, part]},
                attention_mask=None if mask is None else mask[:, part],
                state=state,
                return_dict=True,
                **inputs,
            )
            state = outputs.state
        return outputs

    def _sample(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        tokenizer: Any = None,  # given to every loop; stop strings already have it
        **model_kwargs: Any,
    ) -> Any:
        """Greedy search and sampling."""
        choose = Choice(generation_config, model_kwargs.pop("seed", None), len(input_ids))
        record = Record(generation_config)
        pads = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        pad = generation_config._pad_token_tensor if pads else None
        cached = model_kwargs["use_cache"]
        going = torch.ones(len(input_ids), dtype=torch.bool, device=input_ids.device)
        outputs, done = None, False
        while self._has_unfinished_sequences(done, synced_gpus, device=input_ids.device):
            if outputs is None:
                outputs = self._prefill(input_ids, generation_config, model_kwargs)
            else:
                inputs = self.prepare_inputs_for_generation(
                    input_ids, next_sequence_length=1 if cached else None, **model_kwargs
                )
                if cached and inputs.get("inputs_embeds") is not None:
                    # PEFT puts its virtual tokens before every step; the state has read them.
                    inputs["inputs_embeds"] = inputs["inputs_embeds"][:, -1:]
                if cached and pad is not None and not bool(going.all()):
                    inputs["attention_mask"] = going[:, None]  # an ended row reads nothing more
                outputs = self(**inputs, return_dict=True)
            model_kwargs = self._update_model_kwargs_for_generation(outputs, model_kwargs)
            if done:  # only keeps other processes' collective calls company
                continue
            logits = outputs.logits[:, -1].to(input_ids.device, torch.float32, copy=True)
            scores = logits_processor(input_ids, logits)
            tokens = choose(scores)
            if pad is not None:
                tokens = torch.where(going, tokens, pad.to(tokens.device))
            record.add(scores, logits, outputs.hidden_states)
            input_ids = torch.cat([input_ids, tokens[:, None]], 1)
            if streamer is not None:
                streamer.put(tokens.cpu())
            going = going & ~stopping_criteria(input_ids, record.scores)
            done = not bool(going.any())
        if streamer is not None:
            streamer.end()
        return record.output(input_ids, model_kwargs.get("state") if cached else None)

    def _assisted_decoding(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Any = None,
        tokenizer: Any = None,  # given to every loop; stop strings already have it
        **model_kwargs: Any,
    ) -> Any:
        """Prompt lookup: drafts what followed the last words before; verifies it in one call.

        A state cannot be cut back to the accepted tokens, so each call runs two rows from the
        state that is kept: the tokens accepted by the call before, whose state is then kept, and
        the same with the draft behind them. The weights are read once.
        """
        if len(input_ids) > 1:
            raise UnavailableError(
                f"prompt lookup writes one sequence, got a batch of {len(input_ids)}"
            )
        if not model_kwargs["use_cache"] or synced_gpus or generation_config.output_hidden_states:
            raise UnavailableError(
                "prompt lookup needs use_cache=True, one process, and no output_hidden_states"
            )
        choose = Choice(generation_config, model_kwargs.pop("seed", None), 1)
        record = Record(generation_config)
        lookup = PromptLookupCandidateGenerator(
            num_output_tokens=generation_config.prompt_lookup_num_tokens,
            max_matching_ngram_size=generation_config.max_matching_ngram_size or 2,
            max_length=generation_config.max_length,
        )
        outputs = self._prefill(input_ids, generation_config, model_kwargs)
        logits = outputs.logits[:, -1:]  # [1, drafted + 1, V]
        kept = ahead = outputs.state  # before and after the draft
        draft: list[int] = []
        unread = input_ids[:, :0]  # accepted, but not read by ``kept``
        done = False
        while not done:
            length = input_ids.shape[1]
            for i in range(len(draft) + 1):
                row = logits[:, i].to(input_ids.device, torch.float32, copy=True)
                scores = logits_processor(input_ids, row)
                token = choose(scores)
                record.add(scores, row, None)
                input_ids = torch.cat([input_ids, token[:, None]], 1)
                if streamer is not None:
                    streamer.put(token.cpu())
                done = bool(stopping_criteria(input_ids, record.scores).all())
                if done or (i < len(draft) and token.item() != draft[i]):
                    break
            said = input_ids[:, length:]
            if said.shape[1] > len(draft):
                kept, unread = ahead, said[:, -1:]
            else:
                unread = said
            if done:
                break
            draft = lookup.get_candidates(input_ids)[0][0, input_ids.shape[1] :].tolist()
            logits, kept, ahead = self._try(unread, draft, kept)
        if streamer is not None:
            streamer.end()
        if record.wanted and unread.shape[1] > 1:
            kept = self.rwkv(unread[:, :-1], state=kept, use_cache=True).state
        return record.output(input_ids, kept)

    def _try(
        self, unread: torch.Tensor, draft: list[int], state: State
    ) -> tuple[torch.Tensor, State, State]:
        """Logits after ``unread`` and each drafted token; states without and with the draft."""
        ids = unread.to(self._input_device())
        if not draft:
            outputs = self.rwkv(ids, state=state, use_cache=True)
            return self.head(outputs.last_hidden_state[:, -1:]), outputs.state, outputs.state
        ids = torch.cat([ids, ids.new_tensor([draft])], 1).expand(2, -1)
        mask = torch.ones_like(ids)
        mask[0, unread.shape[1] :] = 0
        outputs = self.rwkv(ids, mask, state=state.select([0, 0]), use_cache=True)
        logits = self.head(outputs.last_hidden_state[1:, -len(draft) - 1 :])
        return logits, outputs.state.select(0), outputs.state.select(1)

    def _beam_search(
        self,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        tokenizer: Any = None,  # given to every loop; stop strings already have it
        **model_kwargs: Any,
    ) -> Any:
        """transformers' beam search; the state of the chosen beams is read anew from the start."""
        if model_kwargs.pop("seed", None) is not None:
            raise UnavailableError(
                "seed gives each row its own random numbers, which beams share: use num_beams=1, "
                "or torch.manual_seed"
            )
        step = self.prepare_inputs_for_generation(input_ids[:, -1:], next_sequence_length=1)
        if step.get("inputs_embeds") is not None and model_kwargs["use_cache"]:
            raise UnavailableError(
                "beams would read PEFT's virtual tokens at every step: use num_beams=1, or "
                "use_cache=False"
            )
        output = super()._beam_search(
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            synced_gpus,
            **model_kwargs,
        )
        if not isinstance(output, ModelOutput):
            return output
        fields = dict(output)
        fields.pop("past_key_values", None)
        state = None
        if model_kwargs["use_cache"]:
            beams, wanted = generation_config.num_beams, generation_config.num_return_sequences
            rows = [b * beams for b in range(len(input_ids) // beams) for _ in range(wanted)]
            for name in ("attention_mask", "inputs_embeds"):
                if model_kwargs.get(name) is not None:
                    model_kwargs[name] = model_kwargs[name][rows]
            state = self._reorder_cache(model_kwargs.pop("state", None), torch.tensor(rows))
            prompts = self._prefill(
                input_ids[rows], generation_config, {**model_kwargs, "state": state}
            )
            tokens = output.sequences[:, input_ids.shape[1] : -1]
            state = self.rwkv(
                tokens.to(self._input_device()),
                attention_mask=output.beam_indices[:, 1:] >= 0,
                state=prompts.state,
                use_cache=True,
            ).state
        return RwkvGenerateBeamOutput(**fields, state=state)
