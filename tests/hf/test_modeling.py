"""Forward, masks, state and gradients of the transformers classes."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from tests.hf.conftest import causal_lm, padded
from tests.oracles import rwkv_float64
from tests.oracles.models import random_weights, transformers_model
from wkv.errors import ConfigError, ShapeError, StateError, UnavailableError
from wkv.hf import (
    RwkvConfig,
    RwkvForCausalLM,
    RwkvForSequenceClassification,
    RwkvModel,
)
from wkv.state import FIELDS, State

TOKENS = [5, 17, 3, 88, 5, 41, 0, 96, 23, 23, 7, 60, 1]


def close(got, want, tolerance=1e-5):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    assert np.isfinite(got).all()
    assert np.abs(got - want).max() <= tolerance * max(1.0, np.abs(want).max())


@torch.no_grad()
def test_prefill_and_cached_decode_equal_the_float64_recurrence(model, square_config):
    want, want_state = rwkv_float64.forward(random_weights(square_config), TOKENS)
    output = model(torch.tensor([TOKENS]))
    close(output.logits[0], want)
    for name in FIELDS:
        close(getattr(output.state, name)[0], want_state[name])
    state, rows = None, []
    for token in TOKENS:
        step = model(torch.tensor([[token]]), state=state)
        rows.append(step.logits[0, 0])
        state = step.state
    close(torch.stack(rows), want)


@torch.no_grad()
def test_prefill_and_cached_decode_equal_transformers_own_class(model, square_config):
    theirs = transformers_model(square_config, random_weights(square_config))
    ids = torch.tensor([TOKENS])
    close(model(ids).logits, theirs(ids).logits, 1e-4)
    ours, other = model(ids[:, :5]), theirs(ids[:, :5], use_cache=True)
    for token in TOKENS[5:]:
        step = torch.tensor([[token]])
        ours, other = model(step, state=ours.state), theirs(step, state=other.state)
        close(ours.logits, other.logits, 1e-4)


@torch.no_grad()
def test_the_state_of_transformers_own_class_is_taken_too(model, square_config):
    theirs = transformers_model(square_config, random_weights(square_config))
    ids = torch.tensor([TOKENS])
    state = theirs(ids[:, :5], use_cache=True).state
    close(model(ids[:, 5:], state=state).logits, model(ids).logits[:, 5:], 1e-4)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_padding_changes_no_logit_and_no_state(model, prompts, side):
    ids, mask = padded(prompts, side, pad=13)
    begin = model(torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])).state
    for state in (None, begin):
        output = model(ids, attention_mask=mask, state=state)
        for row, prompt in enumerate(prompts):
            own = None if state is None else state.select(row)
            alone = model(torch.tensor([prompt]), state=own)
            close(output.logits[row][mask[row] == 1], alone.logits[0])
            close(output.logits[row, -1], alone.logits[0, -1])
            for name in FIELDS:
                close(getattr(output.state, name)[row], getattr(alone.state, name)[0])


@torch.no_grad()
def test_a_row_without_tokens_keeps_its_state(model):
    state = model(torch.tensor([[1, 2], [3, 4]])).state
    mask = torch.tensor([[0, 0, 0], [0, 1, 1]])
    after = model(torch.tensor([[9, 9, 9], [9, 5, 6]]), attention_mask=mask, state=state).state
    for name in FIELDS:
        assert torch.equal(getattr(after, name)[0], getattr(state, name)[0])


def test_a_batch_without_any_token_keeps_its_states(model):
    state = model(torch.tensor([[1, 2], [3, 4]])).state
    ids = torch.tensor([[9, 9, 9], [9, 9, 9]])
    after = model(ids, attention_mask=torch.zeros_like(ids), state=state)
    assert after.logits.shape == (2, 3, model.config.vocab_size)
    for name in FIELDS:
        assert torch.equal(getattr(after.state, name), getattr(state, name))


def test_padding_changes_no_loss_and_no_gradient(own_model, prompts):
    ids, mask = padded(prompts, "left")
    labels = ids.masked_fill(mask == 0, -100)
    own_model(ids, attention_mask=mask, labels=labels).loss.backward()
    got = {n: p.grad.clone() for n, p in own_model.named_parameters()}
    own_model.zero_grad()
    count = sum(len(p) - 1 for p in prompts)
    for prompt in prompts:
        row = torch.tensor([prompt])
        if len(prompt) > 1:
            own_model(row, labels=row, num_items_in_batch=count).loss.backward()
    for name, p in own_model.named_parameters():
        close(got[name], p.grad)


@pytest.mark.parametrize("told", ["position_ids", "cu_seq_lens_q"])
def test_sequences_packed_by_transformers_collator_do_not_see_each_other(model, prompts, told):
    from transformers import DataCollatorWithFlattening

    collate = DataCollatorWithFlattening(
        return_tensors="pt", return_flash_attn_kwargs=told != "position_ids"
    )
    batch = collate([{"input_ids": p, "labels": p} for p in prompts])
    if told != "position_ids":
        del batch["position_ids"]
    with torch.no_grad():
        output = model(**batch, use_cache=True)
        rows = [model(torch.tensor([p])) for p in prompts]
    close(output.logits[0], torch.cat([row.logits[0] for row in rows]))
    close(output.state.num, torch.cat([row.state.num for row in rows]))


@torch.no_grad()
def test_a_long_sequence_has_no_maximum(square_config):
    model = causal_lm(square_config)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 97, (1, 5000)))
    whole = model(ids, logits_to_keep=1)
    state = None
    for part in ids.split(1234, 1):
        output = model(part, state=state, logits_to_keep=1)
        state = output.state
    close(output.logits, whole.logits)


@torch.no_grad()
def test_a_longer_mask_is_taken_from_its_end(model):
    ids = torch.tensor([TOKENS])
    state = model(ids[:, :5]).state
    mask = torch.ones(1, len(TOKENS), dtype=torch.long)
    close(
        model(ids[:, 5:], attention_mask=mask, state=state).logits, model(ids).logits[:, 5:], 1e-5
    )


@torch.no_grad()
def test_batched_decode_equals_single_rows(model, prompts):
    ids, mask = padded(prompts)
    state = model(ids, attention_mask=mask).state
    step = model(torch.tensor([[4], [5], [6], [7]]), state=state)
    for row, prompt in enumerate(prompts):
        close(step.logits[row, 0], model(torch.tensor([[*prompt, 4 + row]])).logits[0, -1])


@torch.no_grad()
def test_embeddings_may_be_given_instead_of_ids(model, prompts):
    ids, mask = padded(prompts)
    embedded = model.get_input_embeddings()(ids)
    assert torch.equal(
        model(inputs_embeds=embedded, attention_mask=mask).logits,
        model(ids, attention_mask=mask).logits,
    )
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**wrong)


@torch.no_grad()
def test_hidden_states_are_the_block_inputs_and_the_final_ones(model, prompts):
    ids, mask = padded(prompts)
    output = model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(output.hidden_states) == model.config.num_hidden_layers + 1
    close(
        output.hidden_states[0][mask == 1],
        model.get_input_embeddings()(ids)[mask == 1],
    )
    close(model.head(output.hidden_states[-1]), output.logits)
    assert model(ids).hidden_states is None


@torch.no_grad()
def test_logits_to_keep_keeps_the_last_ones(model):
    ids = torch.tensor([TOKENS])
    whole = model(ids).logits
    close(model(ids, logits_to_keep=2).logits, whole[:, -2:])
    close(model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])


@torch.no_grad()
def test_use_cache_decides_whether_a_state_comes_back(model):
    ids = torch.tensor([TOKENS])
    assert isinstance(model(ids).state, State)
    assert model(ids, use_cache=False).state is None
    assert len(model(ids, return_dict=False)) == 2
    model.train()
    try:
        assert model(ids).state is None
        assert model(ids, use_cache=True).state is not None
    finally:
        model.eval()


def test_gradients_reach_back_through_a_carried_state(own_model):
    ids = torch.tensor([TOKENS])
    own_model.train()
    own_model(ids).logits.square().sum().backward()
    want = {n: p.grad.clone() for n, p in own_model.named_parameters()}
    own_model.zero_grad()
    first = own_model(ids[:, :6], use_cache=True)
    second = own_model(ids[:, 6:], state=first.state)
    (first.logits.square().sum() + second.logits.square().sum()).backward()
    for name, p in own_model.named_parameters():
        close(p.grad, want[name], 1e-4)


def test_forward_changes_neither_the_callers_state_nor_a_weight(square_config):
    model = causal_lm(square_config).half()
    stored = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        state = model(torch.tensor([TOKENS])).state
        before = state.copy()
        model(torch.tensor([TOKENS]), state=state)
        theirs = [x.clone() for x in state.to_layout("huggingface")]
        given = [x.clone() for x in theirs]
        model(torch.tensor([TOKENS]), state=given)
    for name in FIELDS:
        assert torch.equal(getattr(state, name), getattr(before, name))
    assert all(map(torch.equal, given, theirs))
    assert all(torch.equal(v, stored[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_sixteen_bit_logits_are_near_the_float64_ones(square_config, dtype):
    want, _ = rwkv_float64.forward(random_weights(square_config), TOKENS)
    logits = causal_lm(square_config).to(dtype)(torch.tensor([TOKENS])).logits
    error = np.abs(logits[0].float().numpy() - want).max() / np.abs(want).max()
    assert error < (0.02 if dtype == torch.float16 else 0.15)


def test_gradient_checkpointing_changes_no_gradient(square_config):
    ids = torch.tensor([TOKENS])
    plain, saving = causal_lm(square_config).train(), causal_lm(square_config).train()
    saving.gradient_checkpointing_enable()
    assert saving.rwkv.gradient_checkpointing
    calls = [0, 0]
    for i, model in enumerate((plain, saving)):

        def count(*args, i=i):
            calls[i] += 1

        model.rwkv.blocks[1].register_forward_pre_hook(count)
        model(ids, labels=ids).loss.backward()
    assert calls == [1, 2]
    for p, q in zip(plain.parameters(), saving.parameters()):
        close(q.grad, p.grad)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@torch.no_grad()
def test_classification_reads_the_last_real_token_of_each_row(square_config, prompts, side):
    torch.manual_seed(0)
    model = RwkvForSequenceClassification(RwkvConfig.of(square_config, num_labels=3)).eval()
    model.rwkv.load_state_dict(causal_lm(square_config).rwkv.state_dict())
    ids, mask = padded(prompts, side)
    logits = model(ids, attention_mask=mask).logits
    assert logits.shape == (len(prompts), 3)
    for row, prompt in enumerate(prompts):
        alone = torch.tensor([prompt])
        close(logits[row], model(alone).logits[0])
        close(logits[row], model.score(model.rwkv(alone).last_hidden_state[0, -1]))


@torch.no_grad()
def test_classification_without_a_mask_goes_by_the_padding_id(square_config, prompts):
    config = RwkvConfig.of(square_config, num_labels=3, pad_token_id=0)
    model = RwkvForSequenceClassification(config).eval()
    model.rwkv.load_state_dict(causal_lm(square_config).rwkv.state_dict())
    ids, mask = padded(prompts, "right", pad=0)
    close(model(ids).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize(
    ("labels", "count"),
    [
        (torch.tensor([0, 2, 1, 1]), 3),
        (torch.tensor([0.5, -1.0, 2.0, 0.0]), 1),
        (torch.tensor([[1.0, 0.0, 1.0]] * 4), 3),
    ],
    ids=["classes", "numbers", "several"],
)
def test_classification_has_the_losses_of_transformers(square_config, prompts, labels, count):
    model = RwkvForSequenceClassification(RwkvConfig.of(square_config, num_labels=count))
    ids, mask = padded(prompts, "right")
    output = model(ids, attention_mask=mask, labels=labels)
    output.loss.backward()
    want = {
        "classes": lambda: torch.nn.functional.cross_entropy(output.logits, labels),
        "numbers": lambda: torch.nn.functional.mse_loss(output.logits[:, 0], labels),
        "several": lambda: torch.nn.functional.binary_cross_entropy_with_logits(
            output.logits, labels
        ),
    }["numbers" if count == 1 else "classes" if labels.ndim == 1 else "several"]()
    close(output.loss.detach(), want.detach())
    assert model.score.weight.grad.abs().sum() > 0


def test_a_fresh_model_has_the_published_initialisation(square_config):
    from wkv.model.rwkv4 import Rwkv4

    torch.manual_seed(0)
    ours = RwkvForCausalLM(RwkvConfig.of(square_config)).state_dict()
    torch.manual_seed(0)
    plain = Rwkv4(square_config).state_dict()
    assert ours.keys() == plain.keys()
    for name, value in plain.items():
        assert torch.equal(ours[name], value), name


def test_impossible_arguments_are_refused_by_name(model):
    ids = torch.tensor([TOKENS])
    with pytest.raises(TypeError, match="attenton_mask"):
        model.rwkv(ids, attenton_mask=ids)
    with pytest.raises(TypeError, match="attenton_mask"):
        model(ids, attenton_mask=ids)
    with pytest.raises(TypeError, match="sate"):
        RwkvForSequenceClassification(model.config)(ids, sate=None)
    with pytest.raises(UnavailableError, match="no attention maps"):
        model(ids, output_attentions=True)
    with pytest.raises(UnavailableError, match="state="):
        model(ids, past_key_values=object())
    with pytest.raises(ShapeError, match="attention_mask is"):
        model(ids, attention_mask=torch.ones(1, 3))
    with pytest.raises(ShapeError, match="attention_mask is"):
        model(ids, attention_mask=torch.ones(1, 1, 13, 13))
    with pytest.raises(StateError, match="five tensors"):
        model(ids, state="state.st")
    with pytest.raises(ShapeError, match="state is"):
        model(ids, state=State.zeros(model.config.architecture(), 2))


HUB_CONFIG = {
    "architectures": ["RwkvForCausalLM"],
    "attention_hidden_size": 768,
    "bos_token_id": 0,
    "context_length": 1024,
    "eos_token_id": 0,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_epsilon": 1e-05,
    "model_type": "rwkv",
    "num_hidden_layers": 12,
    "rescale_every": 6,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.28.0.dev0",
    "use_cache": True,
    "vocab_size": 50277,
}


def test_the_hubs_config_is_read_and_written_key_by_key(tmp_path):
    from transformers import AutoConfig

    (tmp_path / "config.json").write_text(json.dumps(HUB_CONFIG))
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is RwkvConfig
    assert config.architecture().parameters == 169_342_464
    config.save_pretrained(tmp_path / "again")
    written = json.loads((tmp_path / "again" / "config.json").read_text())
    for key, value in HUB_CONFIG.items():
        if key not in ("torch_dtype", "transformers_version"):
            assert written[key] == value, key
    assert written["dtype"] == "float16"
    assert set(written) - set(HUB_CONFIG) <= {"dtype", "pad_token_id"}


def test_a_config_that_makes_no_model_is_refused():
    with pytest.raises(ConfigError, match="hidden_size is 0"):
        RwkvConfig(hidden_size=0)


def test_auto_classes_use_ours_and_registering_twice_changes_nothing(square_config):
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    from wkv.hf import register

    config = RwkvConfig.of(square_config)
    for _ in range(2):
        assert type(AutoModel.from_config(config)) is RwkvModel
        assert type(AutoModelForCausalLM.from_config(config)) is RwkvForCausalLM
        assert (
            type(AutoModelForSequenceClassification.from_config(config))
            is RwkvForSequenceClassification
        )
        register()
