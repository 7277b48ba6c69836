"""The readers of ``scripts/corpus_readers.py``, on files made by hand."""

import gzip
import lzma
import struct
import zlib

import pytest


@pytest.fixture
def readers(script):
    return script("corpus_readers")


def char(text):
    if text is None:
        return struct.pack(">ii", 9, -1)
    raw = text.encode()
    return struct.pack(">ii", 9 | 8 << 12, len(raw)) + raw


def strings(*texts):
    return struct.pack(">ii", 16, len(texts)) + b"".join(map(char, texts))


def integers(*values):
    return struct.pack(f">ii{len(values)}i", 13, len(values), *values)


def named_list(**items):
    names = struct.pack(">i", 2 | 0x400) + struct.pack(">i", 1) + char("names")
    names += strings(*items) + struct.pack(">i", 254)
    return struct.pack(">ii", 19 | 0x200, len(items)) + b"".join(items.values()) + names


def stream(item, version=3):
    head = b"X\n" + struct.pack(">iii", version, 0x40000, 0x20300)
    return head + (struct.pack(">i", 5) + b"UTF-8" if version == 3 else b"") + item


@pytest.mark.parametrize("version", [2, 3])
def test_r_strings_with_missing_ones_are_read(readers, version):
    assert readers.RData(stream(strings("a", None, "ü"), version)).value == ["a", None, "ü"]


def test_r_lists_become_dictionaries_by_their_names(readers):
    data = stream(named_list(x=strings("a"), y=integers(1, -2)))
    assert readers.RData(data).value == {"x": ["a"], "y": [1, -2]}


def test_truncated_and_foreign_r_data_are_refused(readers):
    with pytest.raises(ValueError, match="truncated"):
        readers.RData(stream(strings("abc"))[:-2])
    with pytest.raises(ValueError, match="not an R serialisation"):
        readers.RData(b"A\n3\n")
    with pytest.raises(ValueError, match="kind 3"):
        readers.RData(stream(struct.pack(">ii", 3, 0)))


def test_every_variable_of_a_lazy_database_is_unpacked(readers, tmp_path):
    chunks, variables, blob = {}, {}, b""
    for name, tag, pack in (
        ("emma", b"", zlib.compress),
        ("persuasion", b"Z", None),
    ):
        raw = stream(strings(name, "text"))
        if pack is None:
            filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
            packed = tag + lzma.compress(raw, lzma.FORMAT_RAW, filters=filters)
        else:
            packed = pack(raw)
        chunk = struct.pack(">i", len(raw)) + packed
        variables[name] = integers(len(blob), len(chunk))
        chunks[name] = chunk
        blob += chunk
    (tmp_path / "Rdata.rdb").write_bytes(blob)
    index = stream(named_list(variables=named_list(**variables)))
    (tmp_path / "Rdata.rdx").write_bytes(gzip.compress(index))
    assert readers.r_lazy_data(tmp_path / "Rdata") == {
        "emma": ["emma", "text"],
        "persuasion": ["persuasion", "text"],
    }


def test_sword_chapters_lose_markup_titles_and_notes(readers, tmp_path):
    osis = (
        b'<title type="main">Matthew</title>'
        b'<chapter n="1" osisID="Matt.1" sID="Matt.1"/><div sID="g1" type="x-p"/>'
        b'<w lemma="strong:G1">The</w> book<note placement="foot">a note</note> of'
        b'<div eID="g1" type="x-p"/><div sID="g2" type="x-p"/>Abraham.'
        b'<chapter eID="Matt.1" n="1"/>'
        b'<chapter n="2" osisID="Matt.2" sID="Matt.2"/>Now.'
    )
    packed = zlib.compress(osis)
    (tmp_path / "nt.bzz").write_bytes(packed)
    (tmp_path / "nt.bzs").write_bytes(struct.pack("<III", 0, len(packed), len(osis)))
    for suffix in ("bzz", "bzs"):
        (tmp_path / f"ot.{suffix}").write_bytes(b"")
    assert list(readers.sword_chapters(tmp_path)) == [
        ("Matt.1", ["The book of", "Abraham."]),
        ("Matt.2", ["Now."]),
    ]


def test_wordnet_synsets_with_examples_become_paragraphs(readers, tmp_path):
    path = tmp_path / "data.noun"
    path.write_text(
        "  1 This is the licence.\n"
        "00002684 03 n 02 object 0 physical_object 0 001 @ 00001930 n 0000 | a tangible entity; "
        '"it was full of rackets and other objects"; "look!"  \n'
        "00001740 03 n 01 entity 0 000 | that which is perceived  \n"
    )
    assert list(readers.wordnet_entries(path)) == [
        "object, physical object (noun): a tangible entity. "
        "It was full of rackets and other objects. Look!"
    ]


def test_a_synset_s_pointers_and_the_index_s_commonest_sense_are_read(readers, tmp_path):
    (tmp_path / "data.adj").write_text(
        "00001740 00 a 02 able(p) 0 fit 0 002 + 05200169 n 0101 ! 00002098 a 0102 | having skill\n"
    )
    (synset,) = readers.wordnet_synsets(tmp_path / "data.adj")
    assert synset.words == ("able", "fit")
    assert synset.pointers == (("+", 5200169, "noun", 1, 1), ("!", 2098, "adjective", 1, 2))
    (tmp_path / "index.noun").write_text("  1 x\nice_cream n 2 2 @ ~ 2 1 00000009 00000004  \n")
    assert readers.wordnet_index(tmp_path / "index.noun") == {"ice cream": (9, 2, 1)}
