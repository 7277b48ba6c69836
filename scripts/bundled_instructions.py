"""Builds instruction-tuning data for the bundled model from the packages of its corpus.

    python scripts/bundled_instructions.py OUT --corpus DIR [--downloads DIR] [--seed 0]

reads the corpus that ``bundled_corpus.py`` wrote and the packages it unpacked, and writes
OUT/train.jsonl and OUT/validation.jsonl, a line each: ``{"instruction": …, "input": …, "output": …,
"task": …}``, with plain pieces of the corpus (``{"text": …}``) among them; and how many of what in
OUT/tasks.json and OUT/tasks.md. What is asked about a held-out document is held out. The same
corpus and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bundled_corpus import SOURCES, VALIDATION_SHARE, fetch, held_out
from instructions import continuations, facts, passages, wordnet, words
from instructions.example import Example

COMMON = 5  # a word is common if it occurs as often in the corpus without its dictionary
EVERYDAY = 12  # and one to put on a list if it occurs as often as this
TRIES = 60  # draws of material for each example wanted, before a task is taken as exhausted
PLAIN_CHARACTERS = 5000  # of a piece of plain text at most: under 2,048 tokens
PLAIN_BYTES = 2_600_000  # of plain text in all: a ninth of the tokens, half of what is learnt

# How many examples of a builder are wanted for training; fewer where its material ends.
WORD_TASKS: tuple[tuple[Callable[[wordnet.Word, random.Random], Example | None], int], ...] = (
    (words.define, 6000),
    (words.word_for, 2000),
    (words.use, 4000),
    (words.part_of_speech, 1500),
    (words.synonym, 2000),
    (words.opposite, 2000),
    (words.kind, 2000),
)
SCENE_TASKS = (
    (continuations.speaker, 1200),
    (continuations.scene_on, 1100),
    (continuations.scene_between, 800),
)


@dataclass
class Material:
    """What the tasks of one side of the split are made from."""

    words: list[wordnet.Word] = field(default_factory=list)
    paragraphs: list[passages.Paragraph] = field(default_factory=list)
    scenes: list[continuations.Scene] = field(default_factory=list)
    entries: list[tuple[str, str, str]] = field(default_factory=list)  # source, document, text
    countries: dict[str, dict[str, str]] = field(default_factory=dict)
    profiles: list[tuple[str, str, str]] = field(default_factory=list)  # document, text, name


@dataclass(frozen=True)
class Shared:
    """What both sides of the split know: names, kinds of things, words to be wrong with."""

    names: frozenset[str]
    kinds: dict[str, list[wordnet.Word]]
    wrong: Sequence[str]
    topics: frozenset[str]


def drawn(
    build: Callable[[random.Random], Example | None], wanted: int, seed: str
) -> Iterator[Example]:
    """Up to ``wanted`` different examples; each draw has a random generator of its own."""
    seen: set[tuple[str, str, str]] = set()
    for number in range(wanted * TRIES):
        if len(seen) == wanted:
            return
        example = build(random.Random(f"{seed}/{number}"))
        if example and example[2:] not in seen:
            seen.add(example[2:])
            yield example


def each(
    build: Callable[[wordnet.Word, random.Random], Example | None],
    material: Sequence[wordnet.Word],
    wanted: int,
    seed: str,
) -> Iterator[Example]:
    """One example for each word that allows it, at most ``wanted``, in random order."""
    rng, count = random.Random(seed), 0
    for word in rng.sample(material, len(material)):
        if count < wanted and (example := build(word, rng)):
            count += 1
            yield example


def examples(material: Material, shared: Shared, share: float, seed: int) -> Iterator[Example]:
    """All tasks on one side of the split; ``share`` scales how many are wanted."""

    def wanted(count: int) -> int:
        return max(1, round(count * share))

    for build, count in WORD_TASKS:
        yield from each(build, material.words, wanted(count), f"{seed}/{build.__name__}")
    m, s = material, shared
    several: list[tuple[str, Callable[[random.Random], Example | None], int]] = [
        ("look up", lambda rng: words.look_up(m.words, rng), 2500),
    ]

    def on(build: Callable[..., Example | None], *known: object) -> Callable[..., Example | None]:
        return lambda rng: build(rng.choice(m.paragraphs), rng, *known)

    several += [
        ("place", on(passages.place), 2000),
        ("count", on(passages.count), 600),
        ("rewrite", on(passages.rewrite), 2000),
        ("contains", on(passages.contains, s.wrong), 1000),
        ("blank", on(passages.blank, s.wrong), 1500),
        ("sort of", on(passages.sort_of), 700),
        ("names", on(passages.names, s.names), 1000),
        ("who", on(passages.who, s.names), 3000),
        ("said", on(passages.said), 2600),
        ("find", on(passages.find), 1200),
        ("source", on(passages.source), 1000),
        ("go on", on(continuations.go_on), 3200),
        ("finish", on(continuations.finish), 1500),
        ("manner", on(continuations.manner), 2000),
        ("about", on(continuations.about, s.topics), 1800),
    ]
    for build, count in SCENE_TASKS:
        on_scene = (lambda b: lambda rng: b(rng.choice(m.scenes), rng))(build)
        several.append((build.__name__, on_scene, count))
    if m.countries:
        sheets = sorted(m.countries.items())
        several.append(
            ("sheet", lambda rng: facts.from_sheet(*rng.choice(sheets), rng), 1000),
        )
    for name, build, count in several:
        yield from drawn(build, wanted(count), f"{seed}/{name}")
    rng = random.Random(f"{seed}/entries")
    for source, document, entry in m.entries:
        found = (words.hacker if source == "jargon" else words.devil)(document, entry, rng)
        if found:
            yield found
    for profile in m.profiles:
        if found := facts.tell(*profile, rng):
            yield found


def plain(records: Sequence[dict[str, str]], most: int, seed: str) -> Iterator[dict[str, str]]:
    """Pieces of whole paragraphs, ``most`` bytes in all; a longer document comes likelier first."""
    rng, size = random.Random(seed), 0
    order = [(rng.random() ** (1 / len(r["text"])), n) for n, r in enumerate(records)]
    for _, number in sorted(order, reverse=True):
        record = records[number]
        blocks = record["text"].split("\n\n")
        start = rng.randrange(len(blocks)) if len(record["text"]) > 2 * PLAIN_CHARACTERS else 0
        text = ""
        for block in blocks[start:]:
            if len(text) + len(block) > PLAIN_CHARACTERS:
                break
            text += ("\n\n" if text else "") + block
        if len(text) >= 200:
            size += len(text.encode())
            if size > most:
                return
            yield {"text": text}


def wording_held_out(example: Example) -> bool:
    """For tasks whose material is on both sides: whether this wording is in the validation set."""
    digest = hashlib.sha256("\n".join(example[2:4]).encode()).hexdigest()
    return int(digest, 16) % VALIDATION_SHARE == 0


def gather(corpus: Path, downloads: Path) -> tuple[dict[str, Material], Shared, dict[str, list]]:
    """The material of both sides, what they share, and the corpus's records."""
    records = {
        part: [json.loads(line) for line in (corpus / f"{part}.jsonl").open(encoding="utf-8")]
        for part in ("train", "validation")
    }
    texts = (r["text"] for rows in records.values() for r in rows if r["source"] != "wordnet")
    often = wordnet.frequencies(texts)
    folder = fetch(SOURCES["wordnet"], downloads) / "usr/share/wordnet"
    common = wordnet.read_words(folder, lambda word: often[word] >= COMMON)
    countries = facts.read_countries(fetch(SOURCES["factbook"], downloads) / "package")
    found = {}
    for part, rows in records.items():
        found[part] = material = Material()
        material.words = [w for w in common if held_out(w.document) == (part == "validation")]
        known = {r["id"]: r["text"] for r in rows if r["source"] == "factbook"}
        material.countries = {d: countries[d] for d in countries if d in known}
        for row in rows:
            if row["source"] == "shakespeare":
                material.scenes += continuations.scenes_of(row)
            elif row["source"] in ("jargon", "devils-dictionary"):
                material.entries += [
                    (row["source"], row["id"], entry) for entry in row["text"].split("\n\n")
                ]
            elif row["source"] in passages.MANNERS:
                material.paragraphs += [p for p in passages.paragraphs_of(row) if p.sentences]
            if row["id"] in countries:
                material.profiles.append((row["id"], row["text"], countries[row["id"]]["name"]))
    names = passages.names_in(p for m in found.values() for p in m.paragraphs)
    things = [w for w in common if w.part_of_speech == "noun" and _is_thing(w)]
    everyday = [w for w in found["train"].words if often[w.text] >= EVERYDAY]
    shared = Shared(
        names,
        words.kinds_of(everyday, words.kind_roots(folder)),
        sorted(w.text for w in common if often[w.text] >= 60),
        names | {w.text for w in things if often[w.text] >= 60},
    )
    return found, shared, records


_PHYSICAL_ENTITY = 1930  # WordNet 3.0's synset of all that can be touched


def _is_thing(word: wordnet.Word) -> bool:
    return _PHYSICAL_ENTITY in word.roots


def build(out: Path, corpus: Path, downloads: Path, seed: int) -> None:
    """Write the data; the files appear complete or not at all."""
    materials, shared, records = gather(corpus, downloads)
    chosen: dict[str, list[Example]] = {
        "train": list(examples(materials["train"], shared, 1.0, seed)),
        "validation": list(examples(materials["validation"], shared, 1.5 / VALIDATION_SHARE, seed)),
    }
    rng = random.Random(f"{seed}/both")
    kinds = shared.kinds
    both: Iterable[Example] = [
        *drawn(lambda rng: words.choose(kinds, rng), 2000, f"{seed}/choose"),
        *drawn(lambda rng: words.name_some(kinds, rng), 2500, f"{seed}/list"),
        *facts.about_itself(),
        *(
            example
            for part in materials.values()
            for _, country in sorted(part.countries.items())
            for example in facts.by_heart(country, rng)
        ),
    ]
    for example in both:
        chosen["validation" if wording_held_out(example) else "train"].append(example)
    out.mkdir(parents=True, exist_ok=True)
    seen: set[tuple[str, str, str]] = set()
    rows: dict[str, list[dict[str, str]]] = {}
    for part in ("train", "validation"):
        kept = []
        for example in chosen[part]:
            if example[2:] not in seen:
                seen.add(example[2:])
                kept.append(example)
        most = PLAIN_BYTES if part == "train" else PLAIN_BYTES // VALIDATION_SHARE
        rows[part] = [
            {"instruction": e.instruction, "input": e.input, "output": e.output, "task": e.task}
            for e in kept
        ]
        rows[part] += plain(records[part], most, f"{seed}/plain")
        random.Random(f"{seed}/order").shuffle(rows[part])
        partial = out / f"{part}.jsonl.part"
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[part])
        partial.replace(out / f"{part}.jsonl")
    report(out, rows)


def report(out: Path, rows: dict[str, list[dict[str, str]]]) -> None:
    """Counts, sizes and one example of each task, as JSON and as a table."""
    counts = {part: Counter(r.get("task", "plain text") for r in rows[part]) for part in rows}
    size: Counter[str] = Counter()
    shown: dict[str, dict[str, str]] = {}
    for row in rows["train"]:
        task = row.get("task", "plain text")
        size[task] += sum(len(v.encode()) for k, v in row.items() if k != "task")
        short = len(row.get("input", "")) + len(row.get("output", "")) < 110
        if "text" not in row and short:
            shown.setdefault(task, row)
    summary = {
        task: {"train": n, "validation": counts["validation"][task], "bytes": size[task]}
        for task, n in counts["train"].most_common()
    }
    (out / "tasks.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    lines = ["| task | examples | held out | kB | for instance |", "|---|---|---|---|---|"]
    for task, row in summary.items():
        example = shown.get(task, {})
        parts = [example.get(k, "") for k in ("instruction", "input", "output")]
        text = " ⟶ ".join(p.replace("\n", " / ").replace("|", "\\|") for p in parts if p)
        lines.append(
            f"| {task} | {row['train']:,} | {row['validation']} | {row['bytes'] // 1000} | {text} |"
        )
    total = sum(n for task, n in counts["train"].items() if task != "plain text")
    lines.append(
        f"| all tasks | {total:,} | "
        f"{counts['validation'].total() - counts['validation']['plain text']} "
        f"| {(size.total() - size['plain text']) // 1000} | |"
    )
    (out / "tasks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--downloads", type=Path, help="of packages (CORPUS/downloads)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    packages = options.downloads or options.corpus / "downloads"
    build(options.out, options.corpus, packages, options.seed)
