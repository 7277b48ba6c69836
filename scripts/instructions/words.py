"""Tasks about words: meanings, synonyms, kinds, examples of use, lists.

A builder takes material and a random generator and returns one :class:`Example`, or None where the
material does not suit. What an answer says is what the dictionary says; only the wording is ours.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from corpus_readers import as_sentence, wordnet_index

from .example import Example, first_sentences
from .wordnet import FILES, Word

# Kinds that make lists, and their plurals; the word's first noun synset is the root.
KINDS = {
    "animal": "animals",
    "bird": "birds",
    "fish": "fish",
    "insect": "insects",
    "tree": "trees",
    "flower": "flowers",
    "fruit": "fruits",
    "vegetable": "vegetables",
    "beverage": "drinks",
    "food": "foods",
    "chromatic color": "colors",
    "tool": "tools",
    "vehicle": "vehicles",
    "ship": "ships",
    "musical instrument": "musical instruments",
    "body part": "parts of the body",
    "garment": "garments",
    "furniture": "pieces of furniture",
    "building": "buildings",
    "weapon": "weapons",
    "metallic element": "metals",
    "disease": "diseases",
    "sport": "sports",
    "worker": "people who work",
    "relative": "relatives",
    "emotion": "feelings",
    "container": "containers",
    "fabric": "fabrics",
    "meal": "meals",
    "weather": "kinds of weather",
    "game": "games",
    "gem": "gems",
}
# In the singular, where that is another word than the kind's.
_ONE = {"chromatic color": "color", "beverage": "drink", "body part": "part of the body"}
_ONE |= {"metallic element": "metal", "worker": "person who works", "emotion": "feeling"}
_ONE |= {"furniture": "piece of furniture", "weather": "kind of weather"}


# --- one word -------------------------------------------------------------------------------------


def quoted(text: str, rng: random.Random) -> str:
    """A word as people write it in a question."""
    return rng.choice((text, text, f'"{text}"', f"'{text}'"))


def define(word: Word, rng: random.Random) -> Example:
    """What does it mean?"""
    asked = rng.choice(
        (
            "What does {} mean?",
            "What does the word {} mean?",
            "What is the meaning of {}?",
            "What is the meaning of the word {}?",
            "Define {}.",
            "Define the word {}.",
            "Give a definition of {}.",
            "Explain the word {}.",
            "Explain what {} means.",
            "Tell me what {} means.",
            "Please define {}.",
            "What do people mean by {}?",
        )
    ).format(quoted(word.text, rng))
    to = "to " if word.part_of_speech == "verb" else ""
    return Example("define", word.document, asked, "", as_sentence(to + word.meaning))


def word_for(word: Word, rng: random.Random) -> Example:
    """Which word means this?"""
    meaning = word.meaning
    asked, given = rng.choice(
        (
            (f"Which word means: {meaning}?", ""),
            (f"What is a word for this: {meaning}?", ""),
            (f"Find {_a(word.part_of_speech)} that means: {meaning}.", ""),
            ("Which word has this meaning?", as_sentence(meaning)),
            ("Give a word for this definition.", as_sentence(meaning)),
        )
    )
    return Example("word for", word.document, asked, given, word.text)


def use(word: Word, rng: random.Random) -> Example | None:
    """Use it in a sentence."""
    if not word.examples:
        return None
    asked = rng.choice(
        (
            "Use {} in a sentence.",
            "Use the word {} in a sentence.",
            "Write a sentence with the word {}.",
            "Write a sentence that uses {}.",
            "Give an example of how {} is used.",
            "Make a sentence with {}.",
            "Show me the word {} in a sentence.",
        )
    ).format(quoted(word.text, rng))
    return Example("use", word.document, asked, "", as_sentence(rng.choice(word.examples)))


def part_of_speech(word: Word, rng: random.Random) -> Example | None:
    """Noun or verb?"""
    if word.other_parts:
        return None
    name, part = quoted(word.text, rng), word.part_of_speech
    other = rng.choice([p for p in FILES if p != part])
    a, b = rng.sample((part, other), 2)
    asked = rng.choice(
        (
            f"Is {name} {_a(a)} or {_a(b)}?",
            f"Is the word {name} {_a(a)} or {_a(b)}?",
            f"What part of speech is {name}?",
            f"Which part of speech is the word {name}?",
        )
    )
    return Example("part of speech", word.document, asked, "", f"{word.text} is {_a(part)}.")


def synonym(word: Word, rng: random.Random) -> Example | None:
    """Another word for it."""
    if not word.synonyms:
        return None
    asked = rng.choice(
        (
            "Give a synonym of {}.",
            "What is another word for {}?",
            "Name a word that means the same as {}.",
            "Which word means the same as {}?",
            "Find a synonym for the word {}.",
        )
    ).format(quoted(word.text, rng))
    return Example("synonym", word.document, asked, "", word.synonyms[0])


def opposite(word: Word, rng: random.Random) -> Example | None:
    """The opposite of it."""
    if word.opposite is None:
        return None
    asked = rng.choice(
        (
            "What is the opposite of {}?",
            "Give the opposite of {}.",
            "Name an antonym of {}.",
            "Which word means the opposite of {}?",
            "What is the opposite of the word {}?",
        )
    ).format(quoted(word.text, rng))
    return Example("opposite", word.document, asked, "", word.opposite.replace("_", " "))


def kind(word: Word, rng: random.Random) -> Example | None:
    """What kind of thing is it?"""
    if word.part_of_speech != "noun" or word.kind is None:
        return None
    asked = rng.choice(
        (
            f"What kind of thing is {_a(word.text)}?",
            f"What is {_a(word.text)} a kind of?",
            f"What sort of thing does the word {quoted(word.text, rng)} name?",
            f"Say what kind of thing {_a(word.text)} is.",
        )
    )
    return Example("kind", word.document, asked, "", f"A kind of {word.kind}.")


def _a(text: str) -> str:
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


# --- several words --------------------------------------------------------------------------------


def look_up(words: Sequence[Word], rng: random.Random) -> Example:
    """Find a meaning, or a word, in a few lines of a dictionary."""
    chosen = rng.sample(words, rng.choice((2, 3, 3, 4)))
    wanted = rng.choice(chosen)
    page = "\n".join(f"{w.text}: {w.meaning}" for w in chosen)
    if rng.random() < 0.7:
        asked = rng.choice(
            (
                "What does {} mean?",
                "What is the meaning of {}?",
                "Look up {} in this list.",
                "According to this list, what does {} mean?",
                "Find the definition of {}.",
            )
        ).format(quoted(wanted.text, rng))
        answer = as_sentence(wanted.meaning)
    else:
        asked = rng.choice(("Which word means: {}?", "Which of these words means: {}?"))
        asked, answer = asked.format(wanted.meaning), wanted.text
    return Example("look up", wanted.document, asked, page, answer)


def kinds_of(words: Sequence[Word], roots: Mapping[str, int]) -> dict[str, list[Word]]:
    """The words of each of :data:`KINDS`."""
    found = {
        name: [w for w in words if root in w.roots and w.part_of_speech == "noun"]
        for name, root in roots.items()
    }
    return {name: members for name, members in found.items() if len(members) >= 6}


def kind_roots(folder: Path) -> dict[str, int]:
    """The synsets of :data:`KINDS`."""
    index = wordnet_index(folder / "index.noun")
    return {name: index[name].offset for name in KINDS}


def choose(kinds: Mapping[str, Sequence[Word]], rng: random.Random) -> Example | None:
    """Which of two or three is of a kind?"""
    name, *others = rng.sample(sorted(kinds), 3)
    right = rng.choice(kinds[name])
    members = {w.text for w in kinds[name]}
    wrong = [rng.choice(kinds[o]).text for o in others][: rng.choice((1, 2))]
    if members.intersection(wrong) or len({right.text, *wrong}) <= len(wrong):
        return None
    listed = rng.sample([right.text, *wrong], len(wrong) + 1)
    options = f"{', '.join(listed[:-1])} or {listed[-1]}"
    one = _ONE.get(name, name)
    asked = rng.choice(
        (
            f"Which of these is {_a(one)}: {options}?",
            f"Which one is {_a(one)}: {options}?",
            f"Choose the {one}: {options}.",
        )
    )
    return Example("choose", right.document, asked, "", right.text)


_NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


def name_some(kinds: Mapping[str, Sequence[Word]], rng: random.Random) -> Example:
    """Name three trees."""
    name = rng.choice(sorted(kinds))
    count = rng.choice((1, 2, 3, 3, 3, 4, 5))
    chosen = [w.text for w in rng.sample(list(kinds[name]), count)]
    if count == 1:
        one = _ONE.get(name, name)
        asked = rng.choice(
            (
                f"Name {_a(one)}.",
                f"Give an example of {_a(one)}.",
                f"Tell me the name of {_a(one)}.",
            )
        )
        return Example("list", "list", asked, "", as_sentence(chosen[0]))
    many, number = KINDS[name], rng.choice((_NUMBERS[count], _NUMBERS[count], str(count)))
    if rng.random() < 0.75:
        asked = rng.choice(
            (
                f"Name {number} {many}.",
                f"List {number} {many}.",
                f"Give me {number} {many}.",
                f"Tell me {number} {many}.",
                f"Can you name {number} {many}?",
            )
        )
        answer = as_sentence(", ".join(chosen[:-1]) + f" and {chosen[-1]}")
    else:
        asked = rng.choice(
            (
                f"Make a list of {number} {many}.",
                f"Write a numbered list of {number} {many}.",
                f"Make a numbered list of {number} {many}.",
            )
        )
        answer = "\n".join(f"{i}. {word}" for i, word in enumerate(chosen, 1))
    return Example("list", "list", asked, "", answer)


# --- two other dictionaries -----------------------------------------------------------------------


def devil(document: str, entry: str, rng: random.Random) -> Example | None:
    """Bierce's definition."""
    found = re.match(r"([A-Z][A-Z' -]+), \w[\w.]*?\.\s+(.+)", " ".join(entry.split()))
    if not found:
        return None
    word, answer = found[1].lower(), first_sentences(found[2], 200)
    if not answer:
        return None
    asked = rng.choice(
        (
            "How does the Devil's Dictionary define {}?",
            "Define {} as the Devil's Dictionary does.",
            "Give a witty definition of {}.",
            "Give a cynical definition of {}.",
        )
    ).format(quoted(word, rng))
    return Example("devil's dictionary", document, asked, "", answer)


def hacker(document: str, entry: str, rng: random.Random) -> Example | None:
    """What a word of the Jargon File means."""
    word, _, body = entry.partition(": ")
    body = re.sub(r"^(?:/[^/]+/,? ?|\w+\. ?|\d\. ?|\[[^\]]*\] ?|,? ?\w+\.,? )*", "", body)
    body = re.split(r" (?:2\. |See(?: also)? |Compare |Oppose |Syn\. )", body)[0]
    answer = first_sentences(body, 220)
    if (
        not answer
        or answer.startswith(("Also ", "Syn", "See "))
        or not re.fullmatch(r"[\w' -]{2,24}", word)
        or not answer[0].isupper()
    ):
        return None
    asked = rng.choice(
        (
            "What do hackers mean by {}?",
            "What does {} mean among hackers?",
            "Explain the hacker term {}.",
            "What is {} in hacker slang?",
        )
    ).format(quoted(word, rng))
    return Example("hacker slang", document, asked, "", answer)
