from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkv.errors import ConfigError, NonFiniteError, ShapeError
from wkv.sampling import (
    SamplingOptions,
    TokenCounts,
    adjust,
    candidates,
    log_probability,
    log_softmax,
    sample,
)

V = 1200


def random_logits(seed: int = 0, size: int = V, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def dense(logits: np.ndarray, options: SamplingOptions) -> np.ndarray:
    ids, p = candidates(logits, options)
    assert (np.diff(ids) > 0).all()
    assert p.sum() == pytest.approx(1, abs=1e-12)
    out = np.zeros(len(logits))
    out[ids] = p
    return out


# --- against Hugging Face -------------------------------------------------------------------

WARPERS = [
    {"temperature": 0.7},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 5000},
    {"top_p": 0.0},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"typical_p": 0.2},
    {"typical_p": 0.95},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 100, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.9},
]


def hugging_face(logits: np.ndarray, o: SamplingOptions, ids=(), generated=()) -> np.ndarray:
    """The same chain built from transformers' own processors, in the order of its generate()."""
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    chain: list = []
    if o.repetition_penalty != 1:
        chain.append(hf.RepetitionPenaltyLogitsProcessor(o.repetition_penalty))
    if o.logit_bias:
        chain.append(
            hf.SequenceBiasLogitsProcessor({(int(t),): float(b) for t, b in o.logit_bias.items()})
        )
    if o.banned_tokens:
        chain.append(hf.SuppressTokensLogitsProcessor(list(o.banned_tokens)))
    if o.temperature != 1:
        chain.append(hf.TemperatureLogitsWarper(o.temperature))
    if o.top_k:
        chain.append(hf.TopKLogitsWarper(o.top_k))
    if o.top_p < 1:
        chain.append(hf.TopPLogitsWarper(o.top_p))
    if o.min_p:
        chain.append(hf.MinPLogitsWarper(o.min_p))
    if o.typical_p < 1:
        chain.append(hf.TypicalLogitsWarper(o.typical_p))
    scores = torch.tensor(logits, dtype=torch.float64)[None]  # so that its sums do not round
    for step in chain:
        scores = step(torch.tensor([list(ids)], dtype=torch.long), scores)
    return scores[0].double().softmax(-1).numpy()


@pytest.mark.parametrize("size", [7, V, 20_000])
@pytest.mark.parametrize("values", WARPERS, ids=str)
def test_truncation_and_temperature_equal_hugging_face(values, size):
    options = SamplingOptions(**values)
    logits = random_logits(1, size)
    np.testing.assert_allclose(dense(logits, options), hugging_face(logits, options), atol=2e-6)


def test_truncation_equals_hugging_face_on_tokens_excluded_before():
    logits = random_logits(2)
    logits[::3] = -np.inf
    for values in WARPERS:
        options = SamplingOptions(**values)
        np.testing.assert_allclose(dense(logits, options), hugging_face(logits, options), atol=2e-6)


def test_repetition_penalty_bias_and_bans_equal_hugging_face():
    logits = random_logits(3)
    prompt, text = [5, 9, 5, 11], [9, 700, 700]
    options = SamplingOptions(
        repetition_penalty=1.3,
        penalty_decay=1.0,
        logit_bias={3: 2.5, 700: -4.0},
        banned_tokens=[7, 1199],
    )
    counts = TokenCounts(options.penalty_decay, prompt)
    for token in text:
        counts.add(token)
    got = dense(adjust(logits, options, counts), options)
    np.testing.assert_allclose(got, hugging_face(logits, options, prompt + text), atol=1e-6)
    assert got[7] == got[1199] == 0


# --- against the original -------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"top_p": 0.85},
        {"top_p": 0.3, "temperature": 0.6},
        {"top_p": 0.9, "top_k": 30, "temperature": 1.4},
        {"top_k": 3, "temperature": 2.0},
        {"top_p": 0.0},
    ],
    ids=str,
)
def test_the_original_order_equals_the_rwkv_package(values, monkeypatch):
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("rwkv.utils")
    seen = {}
    monkeypatch.setattr(np.random, "choice", lambda a, p: seen.update(p=p) or 0)
    logits = random_logits(4)
    pipeline = utils.PIPELINE.__new__(utils.PIPELINE)
    pipeline.sample_logits(torch.tensor(logits), **{"top_p": 1.0, **values})
    options = SamplingOptions(temperature_last=True, **values)
    np.testing.assert_allclose(dense(logits, options), seen["p"], atol=2e-6)


def test_penalties_and_their_decay_equal_the_original_s():
    """The published loop: counts decay, then the new token's is raised by one."""
    options = SamplingOptions(presence_penalty=0.2, frequency_penalty=0.3, penalty_decay=0.9)
    counts = TokenCounts(options.penalty_decay, prompt=[4, 4, 8])  # the prompt is not penalised
    occurrence: dict[int, float] = {}
    for token in [3, 5, 3, 3, 6, 5]:
        counts.add(token)
        occurrence = {t: n * 0.9 for t, n in occurrence.items()}
        occurrence[token] = occurrence.get(token, 0) + 1
        want = random_logits(5)
        for t, n in occurrence.items():
            want[t] -= 0.2 + n * 0.3
        np.testing.assert_allclose(adjust(random_logits(5), options, counts), want, atol=1e-6)


def test_the_two_orders_differ_only_with_temperature_and_truncation():
    logits = random_logits(6)
    both = [SamplingOptions(top_p=0.5, temperature_last=last) for last in (False, True)]
    np.testing.assert_array_equal(dense(logits, both[0]), dense(logits, both[1]))
    hot = [dataclasses.replace(o, temperature=2.0) for o in both]
    kept = [np.count_nonzero(dense(logits, o)) for o in hot]
    assert kept[0] > kept[1] == np.count_nonzero(dense(logits, both[1]))


# --- penalties ------------------------------------------------------------------------------


def test_old_tokens_are_forgiven_by_the_repetition_penalty():
    options = SamplingOptions(repetition_penalty=2.0, penalty_decay=0.5)
    counts = TokenCounts(0.5, prompt=[1])
    logits = np.array([4.0, 4.0, 4.0, -4.0], np.float32)
    assert adjust(logits, options, counts)[1] == pytest.approx(2.0)
    for _ in range(3):
        counts.add(3)
    adjusted = adjust(logits, options, counts)
    assert adjusted[1] == pytest.approx(4 / 2**0.125)
    assert adjusted[3] == pytest.approx(-8.0)  # seen more than once is penalised once
    assert adjusted[0] == 4


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 20), max_size=30), cut=st.integers(0, 30), decay=st.floats(0, 1)
)
def test_counts_of_prompt_and_text_are_the_same_however_they_came(tokens, cut, decay):
    at_once, one_by_one = TokenCounts(decay, tokens), TokenCounts(decay, tokens[:cut])
    for token in tokens[cut:]:
        one_by_one.add(token)
    a = dict(zip(*at_once.all(), strict=True))
    b = dict(zip(*one_by_one.all(), strict=True))
    assert a.keys() == b.keys()
    assert all(a[t] == pytest.approx(b[t], rel=1e-6) for t in a)
    assert set(one_by_one.generated()[0]) <= set(tokens[cut:])


def test_logits_are_never_changed_in_place():
    logits = random_logits(7)
    before = logits.copy()
    options = SamplingOptions(
        temperature=0.5, top_k=9, top_p=0.9, presence_penalty=1.0, banned_tokens=[2]
    )
    counts = TokenCounts()
    counts.add(int(logits.argmax()))
    sample(logits, options, options.generator(), counts)
    np.testing.assert_array_equal(logits, before)


# --- choosing -------------------------------------------------------------------------------


def test_greedy_takes_the_most_probable_after_penalties():
    logits = np.array([1.0, 3.0, 2.9, -1.0], np.float32)
    for options in (SamplingOptions(temperature=0), SamplingOptions(do_sample=False, top_k=3)):
        assert sample(logits, options, options.generator()) == 1
    options = SamplingOptions(temperature=0, presence_penalty=0.5)
    counts = TokenCounts()
    counts.add(1)
    assert sample(logits, options, options.generator(), counts) == 2


@pytest.mark.parametrize("values", [{}, {"top_k": 5}, {"top_p": 0.7, "temperature": 1.3}], ids=str)
@pytest.mark.parametrize("size", [10, 700])
def test_tokens_come_as_often_as_their_probability_says(values, size):
    options = SamplingOptions(seed=1, **values)
    logits = random_logits(8, size, scale=1.5)
    generator = options.generator()
    n = 6000
    drawn = np.bincount([sample(logits, options, generator) for _ in range(n)], minlength=size)
    p = dense(logits, options)
    assert not drawn[p == 0].any()
    expected = n * p[p > 0]
    chi_squared = np.sum((drawn[p > 0] - expected) ** 2 / expected)
    degrees = len(expected) - 1
    assert chi_squared < degrees + 5 * np.sqrt(2 * degrees) + 5


def test_a_seed_repeats_and_another_differs():
    logits = random_logits(9)

    def run(seed):
        options = SamplingOptions(seed=seed)
        generator = options.generator()
        return [sample(logits, options, generator) for _ in range(20)]

    assert run(3) == run(3) != run(4)
    assert run(None) != run(None)


@settings(max_examples=80, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.2, 1.0]), min_size=1, max_size=600),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_a_token_without_probability_is_never_drawn(weights, uniform):
    from wkv.sampling import _draw

    array = np.array([*weights, 1.0, 0.0], np.float32)
    at = _draw(array, uniform)
    assert array[at] > 0
    before = array[:at].sum(dtype=np.float64) / array.sum(dtype=np.float64)
    after = array[: at + 1].sum(dtype=np.float64) / array.sum(dtype=np.float64)
    assert before - 1e-12 <= uniform <= after + 1e-12


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e-3])
def test_near_zero_temperatures_are_greedy_and_finite(temperature):
    logits = random_logits(10)
    for last in (False, True):
        options = SamplingOptions(temperature=temperature, temperature_last=last)
        assert sample(logits, options, options.generator()) == logits.argmax()


def test_log_softmax_is_the_logarithm_of_the_probabilities():
    logits = random_logits(11)
    logits[4] = -np.inf
    want = np.exp(logits.astype(np.float64) - 3)
    want = np.log(np.maximum(want / want.sum(), 1e-300))
    got = log_softmax(logits)
    assert got[4] == -np.inf
    np.testing.assert_allclose(np.delete(got, 4), np.delete(want, 4), atol=1e-5)
    assert log_probability(logits, 9) == pytest.approx(want[9], abs=1e-5)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 1.1}, "from 0 to 1"),
        ({"min_p": -1}, "min_p"),
        ({"typical_p": 0}, "typical_p is 0"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"penalty_decay": 1.5}, "penalty_decay"),
        ({"presence_penalty": float("nan")}, "presence_penalty"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"seed": -1}, "seed is -1"),
        ({"logit_bias": {1: float("inf")}}, "banned_tokens"),
        ({"logit_bias": {"a": 1}}, "token id in logit_bias"),
        ({"logit_bias": [1]}, "mapping"),
        ({"banned_tokens": [-1]}, "banned_tokens is -1"),
        ({"banned_tokens": 3}, "give token ids"),
        ({"banned_tokens": "ab"}, "banned_tokens"),
    ],
)
def test_impossible_options_are_refused_by_name_and_value(values, word):
    with pytest.raises(ConfigError, match=word):
        SamplingOptions(**values)


def test_unknown_options_and_ids_outside_the_vocabulary_are_refused():
    assert SamplingOptions.from_dict({"top_k": 3}).top_k == 3
    with pytest.raises(ConfigError, match="unknown sampling option 'topk'"):
        SamplingOptions.from_dict({"topk": 3})
    with pytest.raises(ConfigError, match=r"banned_tokens names token 97: .* run to 96"):
        SamplingOptions(banned_tokens=[97]).check_vocabulary(97)


def test_damaged_logits_are_refused():
    options = SamplingOptions()
    for value in (np.nan, np.inf):
        logits = random_logits(12)
        logits[17] = value
        with pytest.raises(NonFiniteError, match="token 17"):
            sample(logits, options, options.generator())
    with pytest.raises(ConfigError, match="every token is banned"):
        sample(np.full(5, -np.inf, np.float32), options, options.generator())
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        sample(np.zeros((2, 3), np.float32), options, options.generator())
