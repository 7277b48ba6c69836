import pytest

from wkv.data import TEMPLATES, encode_example, template
from wkv.errors import ConfigError
from wkv.tokenizer import ByteTokenizer


def text(segments):
    return "".join(s.text for s in segments), [s.text for s in segments if s.learn]


@pytest.mark.parametrize(
    ("name", "whole", "learnt"),
    [
        (
            "raven",
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n# Instruction:\nName a tree.\n\n# Response:\nOak.",
            "Oak.",
        ),
        ("raven-chat", "Bob: Name a tree.\n\nAlice: Oak.\n\n", " Oak.\n\n"),
        ("world", "User: Name a tree.\n\nAssistant: Oak.\n\n", " Oak.\n\n"),
        ("qa", "\nQ: Name a tree.\nA: Oak.\n", " Oak.\n"),
    ],
)
def test_an_instruction_takes_the_published_form_and_only_the_answer_is_learnt(name, whole, learnt):
    record = {"instruction": "Name a tree.", "input": "", "output": "Oak."}
    assert text(template(name).segments(record)) == (whole, [learnt])


def test_alpaca_s_input_has_a_section_of_its_own():
    record = {"instruction": "Translate.", "input": "Baum", "output": "Tree"}
    whole, learnt = text(template("alpaca").segments(record))
    assert "### Instruction:\nTranslate.\n\n### Input:\nBaum\n\n### Response:\nTree" in whole
    assert learnt == ["Tree"]


def test_a_conversation_keeps_its_turns_and_blank_lines_inside_a_message_are_collapsed():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi\n\n\nthere"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "Bye."},
    ]
    whole, learnt = text(template("world").segments({"messages": messages}))
    assert whole == (
        "Be brief.\n\nUser: Hi\nthere\n\nAssistant: Hello.\n\nUser: Bye\n\nAssistant: Bye.\n\n"
    )
    assert learnt == [" Hello.\n\n", " Bye.\n\n"]


def test_the_mask_covers_the_answer_and_the_end_and_nothing_else():
    tokenizer = ByteTokenizer()
    segments = template("qa").segments({"question": "a?", "answer": "b"})
    ids, counts = encode_example(segments, tokenizer)
    assert tokenizer.decode(ids) == "\nQ: a?\nA: b\n"
    assert ids[-1] == 0
    learnt = [i for i, c in zip(ids, counts, strict=True) if c]
    assert (tokenizer.decode(learnt), learnt[-1]) == (" b\n", 0)


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"text": "x", "label": 1}, r"a record with \['label', 'text'\] is no example"),
        ({"messages": [{"role": "user", "content": "x"}]}, "holds no answer"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "an answer without a question"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "message 1 is"),
        ({"messages": [{"role": "user", "content": "x"}] * 2}, "two user messages in a row"),
    ],
)
def test_a_record_that_is_no_example_is_named(record, problem):
    with pytest.raises(ConfigError, match=problem):
        TEMPLATES["world"].segments(record)


def test_a_record_of_text_alone_is_learnt_throughout_and_without_a_prompt():
    record = {"text": "Call me Ishmael.\n\nSome", "id": "m/1", "source": "m"}
    assert template("alpaca").segments(record) == [(record["text"], True)]


def test_a_format_without_system_messages_refuses_them():
    with pytest.raises(ConfigError, match="no place for a system message"):
        TEMPLATES["raven"].segments({"messages": [{"role": "system", "content": "x"}]})


def test_an_unknown_template_names_the_choices():
    with pytest.raises(ConfigError, match="choose from raven, alpaca"):
        template("vicuna")
