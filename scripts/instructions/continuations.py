"""Tasks to go on with a text: stories, verses, scenes of plays, writing in somebody's manner."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .example import Example, as_name
from .passages import ENDED, MANNERS, NOVELS, Paragraph, even


def go_on(p: Paragraph, rng: random.Random) -> Example | None:
    """Continue a text, or write its next sentence."""
    run = p.run(420, rng, 2)
    if not run or p.source not in MANNERS:
        return None
    cut = rng.randrange(1, len(run))
    given = " ".join(run[:cut])
    if rng.random() < 0.35:
        what, rest = "next sentence", run[cut]
        asked = rng.choice(
            ("Write the next sentence.", "What comes next?", "What is the next sentence?")
        )
    else:
        what, rest = "continue", " ".join(run[cut:])
        name = "story" if p.source in NOVELS else "text"
        asked = rng.choice(
            (
                f"Continue this {name}.",
                f"Continue the {name}.",
                f"Go on with this {name}.",
                "Continue.",
                f"How does this {name} go on?",
                "Finish this paragraph.",
            )
        )
    if len(given) > 240 or not 25 <= len(rest) <= 300 or not (even(given) and even(rest)):
        return None
    return Example(what, p.document, asked, given, rest)


def finish(p: Paragraph, rng: random.Random) -> Example | None:
    """Finish a sentence that stops at a comma or semicolon."""
    s = rng.choice(p.sentences)
    commas = [m.start() for m in re.finditer(r"[,;] ", s) if 15 <= m.start() <= len(s) - 15]
    if not commas or len(s) > 180 or not re.search(ENDED, s) or p.source not in MANNERS:
        return None
    cut = rng.choice(commas) + 1
    given, rest = s[:cut], s[cut + 1 :]
    if not (even(given) and even(rest)):
        return None
    asked = rng.choice(
        ("Finish the verse.", "Complete this verse.", "How does this verse end?")
        if p.source == "bible"
        else ("Finish this sentence.", "Complete the sentence.", "How does this sentence end?")
    )
    return Example("finish", p.document, asked, given, rest)


def manner(p: Paragraph, rng: random.Random) -> Example | None:
    """Write in somebody's manner, or begin with given words."""
    run = p.run(260, rng)
    if not run or len(" ".join(run)) < 70 or p.source not in MANNERS:
        return None
    text, (author, work) = " ".join(run), MANNERS[p.source]
    if p.source in NOVELS and rng.random() < 0.4:
        begin = " ".join(text.split()[: rng.choice((2, 3, 4))])
        if not even(begin):
            return None
        asked = rng.choice(
            (
                f"Begin a story with: {begin}",
                f"Write a story that begins with: {begin}",
                f"Tell a story that starts like this: {begin}",
            )
        )
        return Example("begin", p.document, asked, "", text)
    by = author if author[0].isupper() else work
    asked = rng.choice(
        (
            f"Write in the manner of {by}.",
            f"Write a few sentences in the style of {by}.",
            f"Write a passage like one from {work}.",
            f"Write something that could be from {work}.",
        )
        + (("Tell me a story.", "Write a short story.") if p.source in NOVELS else ())
    )
    return Example("manner", p.document, asked, "", text)


def about(p: Paragraph, rng: random.Random, topics: frozenset[str]) -> Example | None:
    """Write about something that the passage mentions."""
    run = p.run(240, rng)
    if not run or p.source not in (*NOVELS, "bible"):
        return None
    text = " ".join(run)
    found = sorted({w for w in re.findall(r"\b[A-Za-z]{3,}\b", text) if w in topics})
    if not found or len(text) < 50:
        return None
    asked = rng.choice(
        (
            "Write about {}.",
            "Write a few sentences about {}.",
            "Tell a story about {}.",
            "Tell me something about {}.",
            "Write a short paragraph about {}.",
        )
    )
    topic = rng.choice(found)
    asked = asked.format(topic if topic[0].isupper() else f"the {topic}")
    return Example("about", p.document, asked, "", text)


# --- plays ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """Neighbouring speeches of a play: (speaker, lines)."""

    document: str
    speeches: tuple[tuple[str, str], ...]


def scenes_of(record: dict[str, str], size: int = 3) -> Iterator[Scene]:
    """Runs of ``size`` neighbouring short speeches of an act."""
    speeches: list[tuple[str, str]] = []
    for block in record["text"].split("\n\n"):
        head, _, lines = block.partition("\n")
        found = re.fullmatch(r"([A-Z][A-Z' ]{2,24})\.", head)
        lines = re.sub(r"\s*\[[^\]]*\]", "", lines).strip()
        if not found or not lines or len(lines) > 320 or re.search(r"[\[\]]", lines):
            speeches = []
            continue
        speeches.append((found[1], lines))
        if len(speeches) == size:
            yield Scene(record["id"], tuple(speeches))
            speeches = []


def speaker(scene: Scene, rng: random.Random) -> Example | None:
    """Who speaks first, last, or a line, in two or three speeches of a play?"""
    speeches = [s for s in scene.speeches[: rng.choice((2, 3))] if len(s[1]) <= 130]
    if len(speeches) < 2 or len({s[0] for s in speeches}) != len(speeches):
        return None
    i = rng.choice((0, -1, rng.randrange(len(speeches))))
    who_spoke, lines = speeches[i]
    line = rng.choice(lines.split("\n")).rstrip(",;:")
    asked = rng.choice(
        (
            f'Who says "{line}"?',
            f'Who says: "{line}"?',
            {0: "Who speaks first?", -1: "Who speaks last?"}.get(i, f'Who says "{line}"?'),
        )
    )
    return Example("speaker", scene.document, asked, _set(speeches), as_name(who_spoke.title()))


def scene_on(scene: Scene, rng: random.Random) -> Example | None:
    """The next speech, or the next lines of one."""
    *given, (name, lines) = scene.speeches
    if rng.random() < 0.5:
        if len(_set(given)) > 240 or len(lines) > 240:
            return None
        asked = rng.choice(
            ("Continue this scene.", "Continue the play.", "Write the next speech.", "Go on.")
        )
        return Example("scene", scene.document, asked, _set(given), _set([(name, lines)]))
    rows = max((s[1].split("\n") for s in scene.speeches), key=len)
    if len(rows) < 4:
        return None
    asked = rng.choice(("Finish the verse.", "Continue this poem.", "Write the next two lines."))
    return Example("verse", scene.document, asked, "\n".join(rows[:2]), "\n".join(rows[2:4]))


def scene_between(scene: Scene, rng: random.Random) -> Example | None:
    """A scene between two given persons, or in Shakespeare's manner."""
    speeches = scene.speeches[: rng.choice((2, 3))]
    people = list(dict.fromkeys(s[0].title() for s in speeches))
    if len(_set(speeches)) > 280 or len(people) != 2:
        return None
    a, b = people
    asked = rng.choice(
        (
            f"Write a scene between {a} and {b}.",
            f"Write a dialogue between {a} and {b}.",
            f"Let {a} and {b} speak with each other.",
            "Write in the manner of Shakespeare.",
            "Write a scene like one from a play by Shakespeare.",
        )
    )
    return Example("dialogue", scene.document, asked, "", _set(speeches))


def _set(speeches: Iterable[tuple[str, str]]) -> str:
    return "\n\n".join(f"{name}.\n{lines}" for name, lines in speeches)
