"""Prompt templates of the instruction-tuned models, and which part of an example is learnt.

A template turns a record into segments; the loss counts only those with ``learn``: the answers.
What a model sees in training is then exactly what it is prompted with: prompts are encoded by
``Tokenizer.encode_prompt``, answers apart from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import ConfigError
from ..tokenizer import Tokenizer


class Segment(NamedTuple):
    """A piece of an example; ``learn``: its tokens count in the loss."""

    text: str
    learn: bool


_QUESTION = ("instruction", "question", "prompt", "query")
_ANSWER = ("output", "response", "answer", "completion", "reply")
_PLAIN = {"text", "id", "source"}
_ROLES = {"user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


@dataclass(frozen=True)
class Template:
    """One prompt format.

    Attributes:
        name: as in a recipe.
        prompt: question → prompt.
        prompt_with_input: question, further input → prompt.
        before_answer: between prompt and answer; belongs to the answer's tokens.
        after_answer: ends an answer within a conversation.
        system: instruction → text before the first turn; None where the format has none.
        one_line: whether blank lines inside a message would end it, and are collapsed.
    """

    name: str
    prompt: Callable[[str], str]
    prompt_with_input: Callable[[str, str], str]
    before_answer: str
    after_answer: str
    one_line: bool
    system: Callable[[str], str] | None = None

    def segments(self, record: Mapping[str, Any]) -> list[Segment]:
        """Prompt and answer, or the turns of a conversation, in order.

        A record is either ``instruction`` (or ``question``, ``prompt``, ``query``), optionally
        ``input`` (or ``context``), and ``output`` (or ``response``, ``answer``, ``completion``,
        ``reply``); or ``messages``: a list of ``{"role": "user" | "assistant" | "system",
        "content": …}``. A record of nothing but ``text`` (and ``id``, ``source``) is plain text,
        all of which is learnt: among instructions it keeps the language from being forgotten.

        Raises:
            ConfigError: a record of neither kind; the message says what it has.
        """
        if "messages" in record or "conversations" in record:
            return self._turns(record.get("messages") or record.get("conversations") or [])
        if isinstance(record.get("text"), str) and set(record) <= _PLAIN:
            return [Segment(record["text"], True)]
        question, answer = _first(record, _QUESTION), _first(record, _ANSWER)
        if question is None or answer is None:
            raise ConfigError(
                f"a record with {sorted(record)} is no example for template {self.name!r}: it "
                f"needs one of {', '.join(_QUESTION)} and one of {', '.join(_ANSWER)}, or "
                "messages, or text alone"
            )
        more = _first(record, ("input", "context"))
        return self._exchange(question, more, answer)

    def _exchange(self, question: str, more: str | None, answer: str) -> list[Segment]:
        question, answer = self._clean(question), self._clean(answer)
        prompt = (
            self.prompt_with_input(question, self._clean(more))
            if more and more.strip()
            else self.prompt(question)
        )
        return [
            Segment(prompt, False),
            Segment(self.before_answer + answer + self.after_answer, True),
        ]

    def _turns(self, messages: Sequence[Mapping[str, Any]]) -> list[Segment]:
        found: list[Segment] = []
        question: str | None = None
        for number, message in enumerate(messages, 1):
            role = str(message.get("role") or message.get("from") or "").lower()
            text = message.get("content", message.get("value"))
            if not isinstance(text, str) or (role != "system" and role not in _ROLES):
                raise ConfigError(
                    f"message {number} is {dict(message)!r}: expected a role of user, assistant "
                    "or system, and content"
                )
            if role == "system":
                if self.system is None:
                    raise ConfigError(
                        f"template {self.name!r} has no place for a system message: drop it, or "
                        "use 'world' or 'raven-chat'"
                    )
                found.append(Segment(self.system(self._clean(text)), False))
            elif _ROLES[role] == "user":
                if question is not None:
                    raise ConfigError(f"message {number}: two user messages in a row")
                question = text
            else:
                if question is None:
                    raise ConfigError(f"message {number}: an answer without a question")
                found += self._exchange(question, None, text)
                question = None
        if not any(s.learn for s in found):
            raise ConfigError(f"a conversation of {len(messages)} messages holds no answer")
        return found

    def _clean(self, text: str) -> str:
        text = text.replace("\r\n", "\n").strip()
        return re.sub(r"\n\s*\n+", "\n", text) if self.one_line else text


def _first(record: Mapping[str, Any], names: Sequence[str]) -> str | None:
    return next((record[n] for n in names if isinstance(record.get(n), str)), None)


_TASK = "Below is an instruction that describes a task"
_WRITE = "Write a response that appropriately completes the request.\n\n"


def _chat(user: str, bot: str) -> dict[str, Any]:
    return {
        "prompt": lambda q: f"{user}: {q}\n\n{bot}:",
        "prompt_with_input": lambda q, more: f"{user}: {q}\n{more}\n\n{bot}:",
        # The prompt ends at the colon: the space is the first thing that the model writes.
        "before_answer": " ",
        "after_answer": "\n\n",
        "one_line": True,
        "system": lambda text: f"{text}\n\n",
    }


def _alpaca(mark: str) -> dict[str, Any]:
    return {
        "prompt": lambda q: f"{_TASK}. {_WRITE}{mark} Instruction:\n{q}\n\n{mark} Response:\n",
        "prompt_with_input": lambda q, more: (
            f"{_TASK}, paired with an input that provides further context. {_WRITE}"
            f"{mark} Instruction:\n{q}\n\n{mark} Input:\n{more}\n\n{mark} Response:\n"
        ),
        "before_answer": "",
        "after_answer": "",
        "one_line": False,
    }


TEMPLATES: dict[str, Template] = {
    t.name: t
    for t in (
        Template("raven", **_alpaca("#")),
        Template("alpaca", **_alpaca("###")),
        Template("raven-chat", **_chat("Bob", "Alice")),
        Template("world", **_chat("User", "Assistant")),
        Template(
            "qa",
            prompt=lambda q: f"\nQ: {q}\nA:",
            prompt_with_input=lambda q, more: f"\n{more}\nQ: {q}\nA:",
            before_answer=" ",
            after_answer="\n",
            one_line=True,
        ),
    )
}


def template(name: str) -> Template:
    """A template by name; ConfigError names the choices."""
    if name not in TEMPLATES:
        raise ConfigError(f"unknown template {name!r}: choose from {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def templates(names: str) -> list[Template]:
    """Templates by their names, joined by ``+``: ``"alpaca+raven"``."""
    return [template(name) for name in names.split("+")]


def encode_example(
    segments: Sequence[Segment], tokenizer: Tokenizer, end_of_text: int = 0
) -> tuple[list[int], list[int]]:
    """Token ids of an example, ended by ``end_of_text``, and 1 for each that counts in the loss.

    The end counts if the last segment does: a model has to learn to stop.
    """
    ids: list[int] = []
    counts: list[int] = []
    for segment in segments:
        found = tokenizer.encode_prompt(segment.text)
        ids += found
        counts += [int(segment.learn)] * len(found)
    return [*ids, end_of_text], [*counts, int(bool(segments) and segments[-1].learn)]
