"""Beam search, whose states follow the beams, and prompt lookup, whose drafts leave no trace."""

from __future__ import annotations

import pytest
import torch

from tests.hf.conftest import causal_lm, padded
from tests.hf.test_generation import NEW, REPETITIVE, by_hand, same_state
from tests.hf.test_modeling import close
from wkv.errors import UnavailableError

# --- beams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("wanted", [1, 3])
@pytest.mark.parametrize("end", [0, 16])
@pytest.mark.parametrize("new", [1, NEW])
def test_beam_search_follows_its_states(model, prompts, side, wanted, end, new):
    ids, mask = padded(prompts, side)
    options = {
        "eos_token_id": end,
        "pad_token_id": 0,
        "attention_mask": mask,
        "num_beams": 3,
        "num_return_sequences": wanted,
        "max_new_tokens": new,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_scores": True,
        "length_penalty": 0.0,
    }
    with_state = model.generate(ids, **options)
    anew = model.generate(ids, use_cache=False, **options)
    assert anew.state is None
    assert torch.equal(with_state.sequences, anew.sequences)
    for row, (sequence, score) in enumerate(
        zip(with_state.sequences.tolist(), with_state.sequences_scores.tolist())
    ):
        prompt = prompts[row // wanted]
        said = sequence[ids.shape[1] :]
        said = said[: said.index(end) + 1] if end in said else said
        with torch.no_grad():
            output = model(torch.tensor([prompt + said[:-1]]))
        logprobs = output.logits[0, len(prompt) - 1 :].log_softmax(-1)
        assert abs(sum(logprobs[i, t].item() for i, t in enumerate(said)) - score) < 1e-3
        same_state(with_state.state.select(row), output.state)


def test_beam_search_finds_the_best_of_all_short_sequences(model):
    prompt = [5, 17, 3]
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
        second = model(torch.tensor([[*prompt, t] for t in range(97)])).logits[:, -1]
    total = (first[:, None] + second.log_softmax(-1))[1:]  # not through the end of text
    best = divmod(int(total.argmax()), 97)
    got = model.generate(
        torch.tensor([prompt]),
        num_beams=97,
        max_new_tokens=2,
        length_penalty=0.0,
        suppress_tokens=[0],
        do_sample=False,
    )
    assert got[0, 3:].tolist() == [best[0] + 1, best[1]]


def test_beam_sampling_runs(model, prompts):
    ids, mask = padded(prompts)
    torch.manual_seed(0)
    got = model.generate(ids, attention_mask=mask, num_beams=3, do_sample=True, max_new_tokens=NEW)
    assert got.shape[0] == len(prompts)


# --- prompt lookup --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3, "temperature": 0.3}])
@pytest.mark.parametrize("drafted", [1, 3, 10])
def test_prompt_lookup_says_what_plain_decoding_says(model, options, drafted):
    ids = torch.tensor([REPETITIVE])
    options = {
        "do_sample": False,
        "max_new_tokens": 24,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        **options,
    }
    plain = model.generate(ids, **options)
    fast = model.generate(ids, prompt_lookup_num_tokens=drafted, **options)
    assert torch.equal(plain.sequences, fast.sequences)
    same_state(fast.state, plain.state)
    assert len(fast.scores) == len(plain.scores)
    for got, want in zip((*fast.scores, *fast.logits), (*plain.scores, *plain.logits)):
        assert torch.equal(got.isinf(), want.isinf())
        close(got[~got.isinf()], want[~want.isinf()], 1e-4)


def test_prompt_lookup_calls_the_model_less_often_when_drafts_are_right(square_config):
    model = causal_lm(square_config)
    # Repeating what stands eight tokens back: the text becomes periodic and drafts right.
    ids = model.generate(torch.tensor([[5, 17]]), max_new_tokens=60, do_sample=False, min_length=60)
    calls = 0

    def count(*args):
        nonlocal calls
        calls += 1

    model.rwkv.register_forward_pre_hook(count)
    options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    plain = model.generate(ids, **options)
    assert calls == 30
    calls = 0
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=5, **options), plain)
    assert calls < 30


def test_prompt_lookup_ends_at_an_end_token_inside_a_draft(model):
    plain = by_hand(model, REPETITIVE, 12)
    end = plain[5]
    ids = torch.tensor([REPETITIVE])
    options = {"eos_token_id": end, "max_new_tokens": 12, "do_sample": False}
    want = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=4, **options), want)
    assert want[0, -1] == end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_cache": False}, "use_cache=True"),
        ({"output_hidden_states": True}, "no output_hidden_states"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
    ],
)
def test_prompt_lookup_refuses_what_it_cannot_do(model, options, message):
    with pytest.raises(UnavailableError, match=message):
        model.generate(
            torch.tensor([REPETITIVE]), prompt_lookup_num_tokens=3, max_new_tokens=2, **options
        )
    with pytest.raises(UnavailableError, match="batch of 2"):
        model.generate(torch.tensor([REPETITIVE] * 2), prompt_lookup_num_tokens=3, max_new_tokens=2)
