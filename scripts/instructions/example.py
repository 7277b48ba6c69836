"""What a task is, and what several builders of tasks use."""

from __future__ import annotations

import re
from typing import NamedTuple


class Example(NamedTuple):
    """A task of the instruction data; ``document`` decides on which side of the split it is."""

    task: str
    document: str
    instruction: str
    input: str
    output: str


def first_sentences(text: str, most: int) -> str | None:
    """As many whole sentences from the beginning as fit ``most`` characters, at least one."""
    ends = [m.end() for m in re.finditer(r"[a-z)\"'][.!?][\"')]?(?= [A-Z\"'(]|$)", text)]
    fitting = [end for end in ends if end <= most]
    found = text[: fitting[-1]] if fitting and fitting[-1] >= 15 else None
    if not found or re.search(r"[\[\]_{}<>|\\]", found) or found.count('"') % 2:
        return None
    return found


def as_name(name: str) -> str:
    """An answer that is a name alone."""
    return f"{name}."
