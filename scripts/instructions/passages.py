"""Tasks about given sentences, and continuations: from novels, scripture, speeches, plays.

Questions are built only where a pattern makes the answer certain; all answers stand in the text.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .example import Example, as_name

# Who wrote what, as a question asks for it.
MANNERS = {
    "austen": ("Jane Austen", "a novel by Jane Austen"),
    "moby-dick": ("Herman Melville", "a novel by Herman Melville"),
    "tom-sawyer": ("Mark Twain", "a novel by Mark Twain"),
    "addresses": ("a President", "a speech to Congress"),
    "bible": ("the Bible", "the Bible"),
    "factbook": ("an almanac", "a description of a country"),
    "shakespeare": ("Shakespeare", "a play by Shakespeare"),
}
NOVELS = ("austen", "moby-dick", "tom-sawyer")
_ABBREVIATED = r"(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bCapt\.)(?<!\b[A-Z]\.)"
_SENTENCE_END = re.compile(rf"[.!?]{_ABBREVIATED}[\"')]*(?=\s+[\"'(]*[A-Z])")
ENDED = r"[.!?][\"')]*$"
_TITLE = r"(?:Mr\.|Mrs\.|Miss|Captain|Lady|Sir|Aunt|Lord|Colonel|King)"
_PAST = frozenset(
    [
        "was",
        "had",
        "said",
        "went",
        "came",
        "took",
        "gave",
        "made",
        "saw",
        "knew",
        "felt",
        "thought",
        "began",
        "found",
        "stood",
        "sat",
        "ran",
        "told",
        "spoke",
        "could",
        "would",
        "did",
        "left",
        "kept",
        "heard",
        "brought",
        "sent",
        "laid",
        "put",
        "rose",
        "fell",
        "lost",
        "met",
        "wrote",
        "held",
        "drew",
        "led",
        "built",
        "bore",
        "ate",
        "drank",
        "slept",
        "wept",
        "fled",
        "fought",
        "forgot",
        "got",
        "grew",
    ]
)


@dataclass(frozen=True)
class Paragraph:
    """Sentences that follow each other; ``document`` is the corpus document they are from."""

    document: str
    source: str
    sentences: tuple[str, ...]

    def run(self, most: int, rng: random.Random, least: int = 1) -> list[str] | None:
        """Neighbouring sentences of at most ``most`` characters, at least ``least`` of them."""
        if len(self.sentences) < least:
            return None
        start = rng.randrange(len(self.sentences) - least + 1)
        found: list[str] = []
        for sentence in self.sentences[start:]:
            if sum(map(len, found)) + len(found) + len(sentence) > most:
                break
            found.append(sentence)
        whole = len(found) >= least and even(" ".join(found)) and re.search(ENDED, found[-1])
        return found if whole else None


def sentences(text: str) -> list[str]:
    """A paragraph cut at the ends of sentences; titles and initials are none."""
    ends = [0, *(m.end() for m in _SENTENCE_END.finditer(text)), len(text)]
    return [text[a:b].strip() for a, b in pairwise(ends) if text[a:b].strip()]


def paragraphs_of(record: dict[str, str]) -> Iterator[Paragraph]:
    """The prose of a corpus document."""
    for block in record["text"].split("\n\n"):
        if "\n" not in block and not re.match(r"CHAPTER|ACT|SCENE|PROLOGUE", block):
            yield Paragraph(record["id"], record["source"], tuple(sentences(block)))


def even(text: str) -> bool:
    """Whether quotation marks and brackets are closed."""
    return text.count('"') % 2 == 0 and text.count("(") == text.count(")")


def plain(sentence: str, least: int = 4, most: int = 18) -> bool:
    """A whole sentence of few words that can stand alone."""
    return bool(
        least <= len(sentence.split()) <= most
        and re.fullmatch(r"[A-Z][A-Za-z ,;:'.!?-]*[.!?]", sentence)
        and "--" not in sentence
    )


def bare(word: str) -> str:
    """A word without the punctuation around it."""
    return word.strip(".,;:!?\"'()-")


def names_in(paragraphs: Iterable[Paragraph]) -> frozenset[str]:
    """Words that have a capital nearly always where no sentence begins."""
    capital: Counter[str] = Counter()
    small: Counter[str] = Counter()
    for paragraph in paragraphs:
        for sentence in paragraph.sentences:
            for before, word in pairwise(sentence.split()):
                text = bare(word)
                if before[-1].isalnum() or before[-1] == ",":
                    if re.fullmatch(r"[A-Z][a-z]{2,}", text):
                        capital[text] += 1
                    else:
                        small[text] += 1
    common = {
        "Mr",
        "Mrs",
        "Miss",
        "God",
        "Lord",
        "English",
        "American",
        "Christian",
        "Sunday",
        "Monday",
        "Hast",
    }
    return frozenset(
        w for w, n in capital.items() if n >= 4 and small[w.lower()] * 20 < n and w not in common
    )


# --- about one sentence ---------------------------------------------------------------------------


def place(p: Paragraph, rng: random.Random) -> Example | None:
    """The first or last word, or the one before or after another."""
    s = rng.choice(p.sentences)
    if not plain(s):
        return None
    words = [bare(w) for w in s.split()]
    which = rng.choice(("first", "last", "after", "before", "after"))
    if which in ("first", "last"):
        asked = rng.choice(
            (
                "What is the {} word of this sentence?",
                "What is the {} word?",
                "Give the {} word of the sentence.",
                "Write only the {} word of this sentence.",
            )
        ).format(which)
        return Example(f"{which} word", p.document, asked, s, words[0 if which == "first" else -1])
    i = rng.randrange(len(words) - 1)
    given, wanted = (i, i + 1) if which == "after" else (i + 1, i)
    if words.count(words[given]) > 1 or not words[wanted] or not words[given]:
        return None
    asked = rng.choice(
        (
            f'Which word comes {which} "{words[given]}"?',
            f'What word stands {which} "{words[given]}" in this sentence?',
            f"Which word comes {which} {words[given]}?",
        )
    )
    return Example("next word", p.document, asked, s, words[wanted])


def count(p: Paragraph, rng: random.Random) -> Example | None:
    """How many words?"""
    s = rng.choice(p.sentences)
    if not plain(s, 2, 9):
        return None
    asked = rng.choice(
        (
            "How many words are in this sentence?",
            "How many words does this sentence have?",
            "Count the words.",
            "Count the words of this sentence.",
        )
    )
    return Example("count", p.document, asked, s, str(len(s.split())))


def rewrite(p: Paragraph, rng: random.Random) -> Example | None:
    """Repeat, in capitals, in small letters, a word a line, without the first word."""
    s = rng.choice(p.sentences)
    if not plain(s, 3, 11):
        return None
    asked, answer = rng.choice(
        (
            (("Repeat this sentence.", "Copy the sentence.", "Repeat after me.", "Say this:"), s),
            (("Repeat this.", "Write this sentence again.", "Copy this text."), s),
            (("Write this in capital letters.", "Put this sentence in upper case."), s.upper()),
            (("Write this in small letters.", "Put this sentence in lower case."), s.lower()),
            (
                ("Write each word on a line of its own.", "List the words of this sentence."),
                "\n".join(bare(w) for w in s.split()),
            ),
            (("Put this sentence in quotation marks.", "Quote this sentence."), f'"{s}"'),
        )
    )
    return Example("rewrite", p.document, rng.choice(asked), s, answer)


def contains(p: Paragraph, rng: random.Random, words: Sequence[str]) -> Example | None:
    """Does it contain the word?"""
    s = rng.choice(p.sentences)
    if not plain(s):
        return None
    inside = [bare(w) for w in s.split()]
    yes = rng.random() < 0.5
    word = rng.choice(inside[1:]) if yes else rng.choice(words)
    if (not yes and word in {w.lower() for w in inside}) or len(word) < 3:
        return None
    asked = rng.choice(
        (
            f'Does this sentence contain the word "{word}"?',
            f'Is the word "{word}" in this sentence?',
            f"Does the word {word} occur here? Answer yes or no.",
        )
    )
    return Example("contains", p.document, asked, s, "Yes." if yes else "No.")


def blank(p: Paragraph, rng: random.Random, words: Sequence[str]) -> Example | None:
    """Which of two words fills the blank?"""
    s = rng.choice(p.sentences)
    if not plain(s, 6):
        return None
    found = [w for w in s.split()[1:] if re.fullmatch(r"[a-z]{4,}[,.;!?]?", w)]
    if not found:
        return None
    word = bare(rng.choice(found))
    other = rng.choice(words)
    if other == word or len(re.findall(rf"\b{word}\b", s)) != 1:
        return None
    a, b = rng.sample((word, other), 2)
    asked = rng.choice(
        (
            f"Which word fills the blank, {a} or {b}?",
            f'Fill the blank with "{a}" or "{b}".',
            f"Which word is missing: {a} or {b}?",
        )
    )
    return Example("blank", p.document, asked, re.sub(rf"\b{word}\b", "____", s), word)


def sort_of(p: Paragraph, rng: random.Random) -> Example | None:
    """A statement, a question or an exclamation?"""
    s = rng.choice(p.sentences)
    if not plain(s):
        return None
    asked = rng.choice(
        (
            "Is this a statement, a question or an exclamation?",
            "What sort of sentence is this: a statement, a question or an exclamation?",
            "Say whether this is a statement, a question or an exclamation.",
        )
    )
    answer = {".": "A statement.", "?": "A question.", "!": "An exclamation."}[s[-1]]
    if answer == "A statement." and rng.random() < 0.8:
        return None  # nearly all sentences are
    return Example("sort of sentence", p.document, asked, s, answer)


def names(p: Paragraph, rng: random.Random, known: frozenset[str]) -> Example | None:
    """Which names?"""
    run = p.run(200, rng)
    if not run:
        return None
    text = " ".join(run)
    found = list(dict.fromkeys(re.findall(r"\b[A-Z][a-z]{2,}\b", text)))
    inside = [w for w in found if w in known]
    if not inside or len(inside) > 4:
        return None
    asked = rng.choice(
        (
            "Which names are in this text?",
            "List the names in this text.",
            "Write down every name that you find here.",
            "What names does this passage mention?",
        )
    )
    return Example("names", p.document, asked, text, ", ".join(inside))


def who(p: Paragraph, rng: random.Random, known: frozenset[str]) -> Example | None:
    """Who did it?"""
    s = rng.choice(p.sentences)
    if len(s) > 200 or not even(s):
        return None
    found = re.match(rf"((?:{_TITLE} )?([A-Z][a-z]+)) ([a-z]+)( [^,;:.!?\"]+)", s)
    if not found or found[2] not in known:
        return None
    verb, rest = found[3], found[4]
    if (verb not in _PAST and not verb.endswith("ed")) or not 2 <= len(rest.split()) <= 12:
        return None
    if re.search(r"--| and [A-Z]| (?:and|but|or|that|who|which|as|to|of)$", rest):
        return None
    asked = f"Who {verb}{rest}?"
    if rng.random() < 0.25:
        asked = f"Answer with a name. {asked}"
    return Example("who", p.document, asked, s, as_name(found[1]))


_SPEAKER = rf"(?:the [a-z]+|(?:{_TITLE} )?[A-Z][a-z]+)"


def said(p: Paragraph, rng: random.Random) -> Example | None:
    """What did somebody say, or who said it?"""
    text = " ".join(p.sentences)
    spoken = re.search(
        rf"(?:^|(?<=[.!?] ))((?:The [a-z]+|(?:{_TITLE} )?[A-Z][a-z]+)) "
        rf"(?:said|answered|replied|cried)(?: to ({_SPEAKER}|him|her|them))?, "
        r'"([^"]{6,120}[.!?])"',
        text,
    )
    after = re.search(
        rf'"([^"]{{6,120}}[,!?])" (?:said|cried|replied|answered) ({_SPEAKER})(?=[.,;])', text
    )
    if spoken and spoken[1] not in ("The", "He", "She", "They", "Then", "And"):
        speaker = spoken[1][0].lower() + spoken[1][1:] if spoken[1][:4] == "The " else spoken[1]
        given, words = spoken[0], spoken[3]
    elif after:
        speaker, given, words = after[2], after[0] + ".", after[1]
    else:
        return None
    if rng.random() < 0.5:
        asked = rng.choice((f"What did {speaker} say?", f"What were the words of {speaker}?"))
        return Example("what was said", p.document, asked, given, re.sub(r",$", ".", words))
    asked = rng.choice(("Who is speaking?", "Who said this?", "Who speaks here?"))
    return Example(
        "who speaks", p.document, asked, given, as_name(speaker[0].upper() + speaker[1:])
    )


def find(p: Paragraph, rng: random.Random) -> Example | None:
    """Which sentence has the word?"""
    run = p.run(260, rng, 2)
    if not run or not all(plain(s, 3, 20) for s in run):
        return None
    wanted = rng.choice(run)
    once = [
        w
        for w in map(bare, wanted.split()[1:])
        if len(w) > 4 and len(re.findall(rf"\b{w}\b", " ".join(run))) == 1
    ]
    if not once:
        return None
    asked = rng.choice(
        (
            'Which sentence contains the word "{}"?',
            'Copy the sentence with the word "{}".',
            "Find the sentence that mentions {}.",
        )
    ).format(rng.choice(once))
    return Example("find", p.document, asked, " ".join(run), wanted)


def source(p: Paragraph, rng: random.Random) -> Example | None:
    """What is it from?"""
    run = p.run(220, rng)
    if not run or len(" ".join(run)) < 60 or p.source not in MANNERS:
        return None
    author, work = MANNERS[p.source]
    if author[0].isupper() and rng.random() < 0.4:
        asked, answer = rng.choice(("Who wrote this?", "Who is the author of this?")), author
    else:
        asked = rng.choice(("Where is this from?", "What kind of text is this?", "What is this?"))
        answer = f"It is from {work}"
    return Example("source", p.document, asked, " ".join(run), f"{answer}.")
