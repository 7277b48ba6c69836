from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.small_engines import AwkwardTokenizer, ScriptedEngine, SmallEngine
from wkv.errors import ConfigError, NonFiniteError, ShapeError, TokenizerError
from wkv.generate import Continuation, GenerationOptions, TextStream
from wkv.sampling import SamplingOptions, log_softmax

TOKENIZER = AwkwardTokenizer()
ENGINE = SmallEngine()
PROMPT = [3, 1, 4, 1, 5]
GREEDY = SamplingOptions(temperature=0)


def stream(prompt=PROMPT, state=None, *, engine=ENGINE, tokenizer=TOKENIZER, **options):
    sampling = options.pop("sampling", None) or SamplingOptions(seed=options.pop("seed", 0))
    logits = options.pop("logits", None)
    how = GenerationOptions(**{"max_tokens": 40, "logprobs": True, **options})
    return TextStream(engine, Continuation(prompt, state, tokenizer, how, sampling, logits))


def check_agreement(pieces, result, prompt=PROMPT, state=None, engine=ENGINE):
    """Text, ids, log-probabilities, state and logits all belong together."""
    assert "".join(p.text for p in pieces) == result.text
    assert tuple(i for p in pieces for i in p.ids) == result.ids
    assert tuple(x for p in pieces for x in p.logprobs) == result.logprobs
    assert [p.finish_reason for p in pieces] == [None] * (len(pieces) - 1) + [result.finish_reason]
    assert TOKENIZER.decode(result.ids) == result.text
    every, want = engine.forward([[*prompt, *result.ids]], state, logits="all")
    np.testing.assert_array_equal(result.state.att_x, want.att_x)
    np.testing.assert_array_equal(result.logits, every[-1])
    for i, token in enumerate(result.ids):
        assert result.logprobs[i] == pytest.approx(
            log_softmax(every[len(prompt) - 1 + i])[token], abs=1e-5
        )
    assert result.usage.prompt_tokens == len(prompt)
    assert result.usage.completion_tokens == len(result.ids)


# --- stops ----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10_000), chunk=st.integers(1, 6))
def test_after_a_stop_string_all_is_as_if_it_was_never_read(data, seed, chunk):
    free = stream(seed=seed, stop_tokens=[0]).result()
    text = free.text
    stops = []
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, max(0, len(text) - 1)))
        stop = text[start : start + data.draw(st.integers(1, 5))]
        if data.draw(st.booleans()):
            stop += data.draw(st.sampled_from(["", "a", "\n", "q"]))  # may never come
        if stop and "\ufffd" not in stop:
            stops.append(stop)
    assume(stops)
    run = stream(seed=seed, stop=stops, prefill_chunk=chunk, stop_tokens=[0])
    pieces = list(run)
    result = run.result()
    check_agreement(pieces, result)
    # What was sampled is the same with and without stops, up to where one is met; the one that is
    # complete first counts, and among those complete with the same token the earliest.
    decoded, want = b"", None
    for token in free.ids:
        decoded += TOKENIZER.decode_bytes([token])
        at = [decoded.find(s.encode()) for s in stops]
        if max(at) >= 0:
            want = decoded[: min(i for i in at if i >= 0)]
            break
    if want is None:
        assert (result.text, result.finish_reason) == (text, free.finish_reason)
    else:
        assert result.text == want.decode("utf-8", errors="replace")
        kept = 0  # tokens that lie wholly before the stop: these stay as they were sampled
        while len(TOKENIZER.decode_bytes(free.ids[: kept + 1])) <= len(want):
            kept += 1
        rest = want[len(TOKENIZER.decode_bytes(free.ids[:kept])) :]
        assert result.ids == (*free.ids[:kept], *TOKENIZER.encode_bytes(rest))
        assert result.finish_reason == "stop"
        assert result.stop in stops


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_stop_inside_a_token_cuts_it(data):
    """Scripts of awkward tokens whose text holds the stop at a known place."""
    plain = data.draw(st.lists(st.integers(1, 24), max_size=4))
    script = [*plain, *script_of(b"a\n"), *data.draw(st.lists(st.integers(1, 24), max_size=3))]
    engine = ScriptedEngine([*script, 0])
    stop = data.draw(st.sampled_from(["\n", "a", "\n:", "\n\n", "b\n", "你"]))
    run = stream([2], engine=engine, sampling=GREEDY, stop=[stop], stop_tokens=[0])
    pieces, result = list(run), run.result()
    whole = TOKENIZER.decode_bytes(script)
    at = whole.find(stop.encode())
    expected = whole if at < 0 else whole[:at]
    assert TOKENIZER.decode_bytes(result.ids) == expected
    check_agreement(pieces, result, [2], engine=engine)


def script_of(*texts: bytes) -> list[int]:
    return [TOKENIZER.table.index(t) for t in texts]


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_certain():
    engine = ScriptedEngine([*script_of(b"a", b"\n", b":", b"a", b"\n", b":", b"b"), 0])
    run = stream([2], engine=engine, sampling=GREEDY, stop=["\n:b"], stop_tokens=[0])
    assert [p.text for p in run] == ["a", "\n:a", ""]
    result = run.result()
    assert (result.text, result.finish_reason, result.stop) == ("a\n:a", "stop", "\n:b")


def test_a_token_that_holds_text_and_stop_is_replaced_by_its_text():
    engine = ScriptedEngine(script_of(b"a", b"ba\nb"))
    run = stream([2], engine=engine, sampling=GREEDY, stop=["\nb"])
    pieces, result = list(run), run.result()
    assert result.text == "aba"
    assert result.ids == (*script_of(b"a"), *TOKENIZER.encode("ba"))
    check_agreement(pieces, result, [2], engine=engine)


def test_a_cut_inside_a_character_s_bytes_keeps_them():
    """A token of half a character, then one of the other half and the stop."""
    engine = ScriptedEngine(script_of(b"\xe4\xbd", b"\xa0a\n"))
    run = stream([2], engine=engine, sampling=GREEDY, stop=["a"])
    pieces, result = list(run), run.result()
    assert result.text == "你"
    assert [p.text for p in pieces if p.text] == ["你"]
    check_agreement(pieces, result, [2], engine=engine)


def test_of_two_stops_met_by_one_token_the_earlier_wins_and_then_the_longer():
    engine = ScriptedEngine(script_of(b"ab", b"ba\nb"))
    result = stream([2], engine=engine, sampling=GREEDY, stop=["\n", "a\n", "a\nb"]).result()
    assert (result.text, result.stop) == ("abb", "a\nb")


def test_a_stop_token_ends_without_being_text_id_or_state():
    engine = ScriptedEngine([*script_of(b"a", b"b"), 0, *script_of(b"a")])
    run = stream([2], engine=engine, sampling=GREEDY, stop_tokens=[0, 7])
    pieces, result = list(run), run.result()
    assert (result.text, result.finish_reason, result.stop) == ("ab", "stop", 0)
    assert result.logits.argmax() == 0
    check_agreement(pieces, result, [2], engine=engine)


def test_text_held_for_a_stop_string_is_given_out_at_any_other_end():
    engine = ScriptedEngine([*script_of(b"a", b"\n"), 0])
    for options in ({"stop_tokens": [0]}, {"max_tokens": 2}):
        run = stream([2], engine=engine, sampling=GREEDY, stop=["\n\n\n"], **options)
        assert run.result().text == "a\n"


# --- ends and continuations -----------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(first=st.integers(1, 12), second=st.integers(1, 12), chunk=st.integers(1, 7))
def test_going_on_from_a_result_equals_never_having_stopped(first, second, chunk):
    options = {"sampling": GREEDY, "prefill_chunk": chunk}
    whole = stream(max_tokens=first + second, **options).result()
    head = stream(max_tokens=first, **options).result()
    tail = stream([], head.state, logits=head.logits, max_tokens=second, **options).result()
    assert head.ids + tail.ids == whole.ids
    np.testing.assert_array_equal(tail.state.att_x, whole.state.att_x)
    assert head.finish_reason == "length"
    assert len(head.ids) == first
    assert tail.usage.prompt_tokens == 0
    fed = stream(list(head.ids), ENGINE.forward([PROMPT])[1], max_tokens=second, **options).result()
    assert fed.ids == tail.ids


def test_the_prompt_is_run_in_chunks_and_the_head_only_for_the_last():
    engine = SmallEngine()
    seen = []
    forward = engine.forward
    engine.forward = lambda *a, **k: seen.append(k["logits"]) or forward(*a, **k)
    stream(list(range(1, 11)), engine=engine, max_tokens=1, prefill_chunk=4).result()
    assert engine.runs == [4, 4, 2, 1]
    assert seen == ["none", "none", "last", "last"]


@pytest.mark.parametrize("after", range(8))
def test_a_cancelled_generation_keeps_what_was_written(after):
    run = stream(seed=3, stop=["\n:ab"], prefill_chunk=5)
    pieces = []
    for piece in run:
        pieces.append(piece)
        if len(pieces) == after:
            run.cancel()
    if after == 0:
        run = stream(seed=3, prefill_chunk=5)
        run.cancel()
        assert [p.finish_reason for p in run] == ["cancelled"]
        assert run.result().usage.prompt_tokens == 0
        assert run.result().logits is None
        return
    result = run.result()
    assert result.finish_reason == "cancelled"
    check_agreement(pieces, result)
    assert result.ids == stream(seed=3).result().ids[: len(result.ids)]


def test_a_prompt_can_be_cancelled_between_chunks():
    engine = SmallEngine()
    run = stream(list(range(1, 11)), engine=engine, prefill_chunk=3)
    forward = engine.forward
    engine.forward = lambda *a, **k: (
        (run.cancel() if len(engine.runs) == 1 else None) or forward(*a, **k)
    )
    result = run.result()
    assert (result.text, result.ids, result.finish_reason) == ("", (), "cancelled")
    assert result.usage.prompt_tokens == 6
    want = SmallEngine().forward([list(range(1, 7))])[1]
    np.testing.assert_array_equal(result.state.att_x, want.att_x)


def test_an_error_of_the_engine_leaves_the_stream_where_it_was():
    engine = SmallEngine()
    forward, failing = engine.forward, set(range(2, 30, 3))
    calls = iter(range(1000))

    def sometimes(*args, **kwargs):
        if next(calls) in failing:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    engine.forward = sometimes
    run, pieces, failures = stream(engine=engine, seed=5), [], 0
    while not pieces or pieces[-1].finish_reason is None:
        try:
            pieces.append(next(run))
        except KeyboardInterrupt:  # noqa: PERF203
            failures += 1
    assert failures > 3
    check_agreement(pieces, run.result())
    assert run.result().ids == stream(seed=5).result().ids


def test_damaged_logits_end_the_stream_with_an_error_and_can_be_cancelled():
    engine = SmallEngine()
    engine.read = lambda h: np.full(64, np.nan, np.float32)
    run = stream(engine=engine)
    for _ in range(2):
        with pytest.raises(NonFiniteError):
            next(run)
    run.cancel()
    result = run.result()
    assert (result.finish_reason, result.ids) == ("cancelled", ())
    assert result.usage.prompt_tokens == len(PROMPT)


# --- text -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_pieces_never_hold_a_character_that_is_broken_only_for_now(seed):
    run = stream(seed=seed)
    pieces, result = list(run), run.result()
    check_agreement(pieces, result)
    for i in range(len(pieces) - 1):
        shown = "".join(p.text for p in pieces[: i + 1])
        assert result.text.startswith(shown)


def test_log_probabilities_are_given_where_asked():
    run = stream(logprobs=False, max_tokens=4)
    assert all(piece.logprobs == () for piece in run)
    assert run.result().logprobs == ()
    assert len(stream(max_tokens=4).result().logprobs) == 4


def test_without_a_tokenizer_ids_are_generated_and_text_is_refused():
    result = stream(tokenizer=None, max_tokens=5).result()
    assert result.text == ""
    assert result.ids == stream(max_tokens=5).result().ids
    with pytest.raises(TokenizerError, match="use stop_tokens"):
        stream(tokenizer=None, stop=["a"])


def test_penalties_see_the_generated_text_and_repetition_the_prompt():
    strong = SamplingOptions(temperature=0, presence_penalty=1000)
    ids = stream(sampling=strong, max_tokens=20).result().ids
    assert len(set(ids)) == 20
    assert set(ids) & set(PROMPT)
    strong = SamplingOptions(temperature=0, repetition_penalty=1e6, penalty_decay=1)
    positive = SmallEngine()
    positive.read = lambda h: np.abs(SmallEngine.read(positive, h)) + 1
    ids = stream(engine=positive, sampling=strong, max_tokens=20).result().ids
    assert len(set(ids)) == 20
    assert not set(ids) & set(PROMPT)


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"stop": [""]}, "not empty"),
        ({"stop": [3]}, "stop is"),
        ({"stop_tokens": [-1]}, "a stop token is -1"),
        ({"stop_tokens": ["x"]}, "a stop token is 'x'"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
    ],
)
def test_impossible_options_are_refused(values, word):
    with pytest.raises(ConfigError, match=word):
        GenerationOptions(**values)
    assert GenerationOptions(stop="ab").stop == ("ab",)
    assert GenerationOptions(max_tokens=None).max_tokens is None


def test_a_generation_is_asked_for_its_result_at_its_end_only():
    c = Continuation(PROMPT, None, TOKENIZER, GenerationOptions(), GREEDY)
    with pytest.raises(ShapeError, match="has not ended"):
        c.result(ENGINE.forward([[1]])[1])
    assert c.cancel().finish_reason == "cancelled"
    assert c.cancel() is None
    with pytest.raises(ShapeError, match="has ended"):
        c.accept(*ENGINE.forward([[1]]))
