"""Readers of the formats in which public-domain English is packaged: R, SWORD, dictd, WordNet.

Each reader yields plain paragraphs and knows nothing of where the files came from.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple


class RData:
    """Character vectors in R's binary (XDR) serialisation, versions 2 and 3.

    Only what a package of texts holds is understood: lists, strings, numbers and their attributes.
    Anything else raises ValueError. R Internals, section 1.8, defines the format.
    """

    def __init__(self, data: bytes) -> None:
        if data[:2] != b"X\n":
            raise ValueError(f"not an R serialisation in XDR form: it begins {data[:2]!r}")
        self._data, self._at = data, 2
        self._symbols: list[Any] = []
        version, _, _ = self._ints(3)
        if version == 3:
            self._take(self._ints(1)[0])  # the name of the native encoding
        self.value = self._item()

    def _take(self, count: int) -> bytes:
        chunk = self._data[self._at : self._at + count]
        if len(chunk) != count:
            raise ValueError(f"truncated R data: {count} bytes wanted at {self._at}")
        self._at += count
        return chunk

    def _ints(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}i", self._take(4 * count))

    def _item(self) -> Any:
        (flags,) = self._ints(1)
        kind = flags & 0xFF
        if kind == 254:  # NULL
            return None
        if kind == 255:  # reference to an earlier symbol
            return self._symbols[(flags >> 8) - 1]
        if kind == 1:  # symbol
            self._symbols.append(self._item())
            return self._symbols[-1]
        if kind == 2:  # pairlist: attributes
            pairs = {}
            while kind == 2:
                if flags & 0x200:
                    self._item()
                tag = self._item() if flags & 0x400 else None
                pairs[tag] = self._item()
                (flags,) = self._ints(1)
                kind = flags & 0xFF
            return pairs
        if kind == 9:  # one string
            (length,) = self._ints(1)
            return None if length < 0 else self._take(length).decode("utf-8", "replace")
        (length,) = self._ints(1)
        value: Any
        if kind in (10, 13):
            value = list(self._ints(length))
        elif kind == 14:
            value = list(struct.unpack(f">{length}d", self._take(8 * length)))
        elif kind in (16, 19):
            value = [self._item() for _ in range(length)]
        else:
            raise ValueError(f"R data of kind {kind}: only lists, strings and numbers are read")
        if flags & 0x200:
            attributes = self._item() or {}
            if kind == 19 and attributes.get("names"):
                value = dict(zip(attributes["names"], value))
        return value


def r_lazy_data(base: Path) -> dict[str, Any]:
    """Every variable of an R package's lazy-load database (``base``.rdx and ``base``.rdb)."""
    index = RData(zlib.decompress(base.with_suffix(".rdx").read_bytes(), 47)).value
    blob = base.with_suffix(".rdb").read_bytes()
    values = {}
    for name, (offset, length) in index["variables"].items():
        chunk = blob[offset : offset + length][4:]  # after the unpacked length
        if chunk[:1] == b"2":
            unpacked = bz2.decompress(chunk[1:])
        elif chunk[:1] == b"Z":
            unpacked = lzma.decompress(
                chunk[1:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]
            )
        else:
            unpacked = zlib.decompress(chunk)
        values[name] = RData(unpacked).value
    return values


def paragraphs(text: str) -> list[str]:
    """Blocks between blank lines, each joined into one line of single-spaced text."""
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [block for block in blocks if block]


def sword_chapters(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(chapter name, paragraphs) of a SWORD zText module in OSIS markup, without its notes."""
    for part in ("ot", "nt"):
        index = (folder / f"{part}.bzs").read_bytes()
        blob = (folder / f"{part}.bzz").read_bytes()
        for at in range(0, len(index), 12):
            offset, length, _ = struct.unpack_from("<III", index, at)
            osis = zlib.decompress(blob[offset : offset + length]).decode("utf-8")
            osis = re.sub(r"<note\b.*?</note>", "", osis, flags=re.S)
            osis = re.sub(r"<title\b.*?</title>", "", osis, flags=re.S)
            pieces = re.split(r'<chapter [^>]*osisID="([^"]+)"[^>]*sID=[^>]*/>', osis)
            for name, body in zip(pieces[1::2], pieces[2::2]):
                body = re.sub(r'<(?:div|lg|l)\b[^>]*type="(?:x-p|x-q1?|x-m)"[^>]*/?>', "\n\n", body)
                body = re.sub(r"</?(?:lg|l|p)\b[^>]*>", "\n", body)
                found = paragraphs(re.sub(r"<[^>]+>", "", body))
                if found:
                    yield name, found


def dictd_text(path: Path) -> str:
    """The whole text of a dictd database (``.dict.dz`` is gzip with an index)."""
    return gzip.decompress(path.read_bytes()).decode("utf-8", "replace")


PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}


class Synset(NamedTuple):
    """A meaning and the words that have it.

    ``pointers`` are (symbol, offset, part of speech, from word, to word), words counting from 1 and
    0 standing for the synset as a whole; wninput(5) lists the symbols.
    """

    offset: int
    part_of_speech: str
    words: tuple[str, ...]
    meaning: str
    examples: tuple[str, ...]
    pointers: tuple[tuple[str, int, str, int, int], ...]

    @property
    def entry(self) -> str:
        """As a paragraph of a dictionary: words, class, meaning, examples."""
        shown = " ".join(map(as_sentence, self.examples))
        return f"{', '.join(self.words[:4])} ({self.part_of_speech}): {self.meaning}. {shown}"


def as_sentence(text: str) -> str:
    """With a capital in front and a full stop (or what stands for one) at the end."""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def wordnet_synsets(path: Path) -> Iterator[Synset]:
    """Every synset of a ``data.*`` file."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(" ") or "|" not in line:
            continue
        fields, gloss = line.split("|", 1)
        columns = fields.split()
        count = int(columns[3], 16)
        words = (
            re.sub(r"\(\w+\)$", "", columns[4 + 2 * i]).replace("_", " ") for i in range(count)
        )
        at = 5 + 2 * count
        pointers = (columns[i : i + 4] for i in range(at, at + 4 * int(columns[at - 1]), 4))
        yield Synset(
            int(columns[0]),
            PARTS_OF_SPEECH[columns[2]],
            tuple(words),
            re.split(r'[;:]?\s*"', gloss, maxsplit=1)[0].strip(),
            tuple(re.findall(r'"([^"]+)"', gloss)),
            tuple(
                (symbol, int(offset), PARTS_OF_SPEECH[part], int(ends[:2], 16), int(ends[2:], 16))
                for symbol, offset, part, ends in pointers
            ),
        )


def wordnet_entries(path: Path) -> Iterator[str]:
    """One paragraph for each synset that has an example sentence."""
    for synset in wordnet_synsets(path):
        if synset.examples and synset.meaning:
            yield synset.entry


class IndexEntry(NamedTuple):
    """A word in one part of speech: the offset of its commonest synset, and how many it has."""

    offset: int
    senses: int
    tagged: int  # how many of them occur in the texts that WordNet's makers counted


def wordnet_index(path: Path) -> dict[str, IndexEntry]:
    """The words of an ``index.*`` file."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            columns = line.split()
            senses = int(columns[2])
            offsets = columns[-senses:]
            tagged = int(columns[-senses - 1])
            found[columns[0].replace("_", " ")] = IndexEntry(int(offsets[0]), senses, tagged)
    return found
