"""WordNet's common words, each in its commonest meaning, as material for tasks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from corpus_readers import Synset, wordnet_index, wordnet_synsets

FILES = {"noun": "noun", "verb": "verb", "adjective": "adj", "adverb": "adv"}
PER_DOCUMENT = 40  # synsets with examples in one document of the corpus

# What everything is a kind of says nothing.
VAGUE = frozenset(
    [
        "entity",
        "abstraction",
        "object",
        "whole",
        "thing",
        "physical entity",
        "matter",
        "unit",
        "group",
        "attribute",
        "state",
        "relation",
        "artifact",
        "instrumentality",
        "event",
        "act",
        "psychological feature",
        "cognition",
        "content",
        "property",
        "quality",
        "condition",
        "happening",
        "activity",
        "change",
        "move",
        "act",
        "be",
    ]
)
_COARSE = re.compile(
    r"slur|offensive|obscen|vulgar|disparag|derogatory|taboo|sexual|intercourse|genital|buttocks|"
    r"prostitut|excre|feces|urin|slang for|drug|rape"
)


@dataclass(frozen=True)
class Word:
    """A common word in its commonest meaning.

    ``other_parts``: whether it is also another part of speech. ``kind`` is the first word of what
    it is a kind of, ``roots`` are the offsets of all that it is a kind of.
    """

    text: str
    part_of_speech: str
    meaning: str
    examples: tuple[str, ...]
    synonyms: tuple[str, ...]
    opposite: str | None
    kind: str | None
    roots: frozenset[int]
    other_parts: bool
    document: str


def read_words(folder: Path, common: Callable[[str], bool]) -> list[Word]:
    """The common single words of a WordNet ``dict`` folder, each in its likeliest part of speech.

    A synset with examples belongs to the corpus document that holds it; another to one of its own.
    """
    synsets: dict[str, dict[int, Synset]] = {}
    documents: dict[tuple[str, int], str] = {}
    for part, file in FILES.items():
        found = {s.offset: s for s in wordnet_synsets(folder / f"data.{file}")}
        shown = [s.offset for s in found.values() if s.examples and s.meaning]
        synsets[part] = found
        documents |= {
            (part, offset): f"wordnet/{file}/{place // PER_DOCUMENT}"
            for place, offset in enumerate(shown)
        }
    indexes = {part: wordnet_index(folder / f"index.{file}") for part, file in FILES.items()}
    words = []
    for text in sorted({w for index in indexes.values() for w in index}):
        if not re.fullmatch(r"[a-z]{3,14}", text) or not common(text):
            continue
        parts = [part for part in FILES if text in indexes[part]]
        part = max(parts, key=lambda p: indexes[p][text].tagged)
        offset = indexes[part][text].offset
        synset = synsets[part][offset]
        meaning = short_meaning(synset.meaning)
        if text not in synset.words or not meaning or _COARSE.search(synset.meaning):
            continue
        words.append(
            Word(
                text,
                part,
                meaning,
                tuple(e for e in synset.examples if _shows(e, text)),
                tuple(w for w in synset.words if w != text and re.fullmatch(r"[a-z ]+", w)),
                _opposite(synset, text, synsets),
                _kind(synset, synsets[part]),
                _ancestors(synset, synsets[part]),
                len(parts) > 1,
                documents.get((part, offset), f"wordnet/{part}-{offset}"),
            )
        )
    return words


def short_meaning(meaning: str) -> str | None:
    """The first clause of a gloss without remarks; None where that is no definition."""
    first = re.sub(r"\s*\([^()]*\)", "", meaning).split(";")[0].strip(" ,:")
    if not 8 <= len(first) <= 120 or re.search(r"[()\[\]`]", first):
        return None
    return first


def _shows(example: str, word: str) -> bool:
    return bool(
        len(example) <= 120
        and example.count(" ") >= 4
        and re.search(rf"\b{word}\b", example)
        and not re.search(r"[()\[\]-]{2}|-\s*[A-Z]", example)
    )


def _opposite(synset: Synset, text: str, synsets: Mapping[str, dict[int, Synset]]) -> str | None:
    place = synset.words.index(text) + 1
    for symbol, offset, part, source, target in synset.pointers:
        if symbol == "!" and source == place:
            return synsets[part][offset].words[target - 1]
    return None


def _kind(synset: Synset, synsets: Mapping[int, Synset]) -> str | None:
    for symbol, offset, *_ in synset.pointers:
        if symbol == "@":
            word = synsets[offset].words[0]
            return word if word not in VAGUE and re.fullmatch(r"[a-z ]+", word) else None
    return None


def _ancestors(synset: Synset, synsets: Mapping[int, Synset]) -> frozenset[int]:
    found: set[int] = set()
    waiting = [synset.offset]
    while waiting:
        for symbol, offset, part, *_ in synsets[waiting.pop()].pointers:
            if symbol == "@" and part in ("noun", "verb") and offset not in found:
                found.add(offset)
                waiting.append(offset)
    return frozenset(found)


def frequencies(texts: Iterator[str]) -> Counter[str]:
    """How often each word occurs, in small letters."""
    found: Counter[str] = Counter()
    for text in texts:
        found.update(re.findall(r"[a-z]+", text.lower()))
    return found
