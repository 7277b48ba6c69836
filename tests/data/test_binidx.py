import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkv.data import Binidx, BinidxWriter
from wkv.errors import CorpusError


def write(base, documents, dtype=np.uint16):
    with BinidxWriter(base, dtype) as writer:
        for document in documents:
            writer.append(document)
    return Binidx(base)


@settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 65535), max_size=20), max_size=8),
    dtype=st.sampled_from(["<u2", "<i4", "<i8"]),
)
def test_documents_come_back_as_they_were_written(tmp_path_factory, documents, dtype):
    corpus = write(tmp_path_factory.mktemp("corpus") / "c", documents, dtype)
    assert len(corpus) == len(documents)
    assert [corpus.document(i).tolist() for i in range(len(corpus))] == documents
    assert corpus.tokens.dtype == np.dtype(dtype)
    assert corpus.tokens.tolist() == [t for d in documents for t in d]


def test_the_index_has_the_megatron_layout(tmp_path):
    write(tmp_path / "c", [[5, 6, 0], [7, 0]])
    assert (tmp_path / "c.bin").read_bytes() == struct.pack("<5H", 5, 6, 0, 7, 0)
    assert (tmp_path / "c.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 2, 3)
        + struct.pack("<2i", 3, 2)
        + struct.pack("<2q", 0, 6)
        + struct.pack("<3q", 0, 1, 2)
    )


def test_a_document_of_several_sequences_is_one_document(tmp_path):
    (tmp_path / "c.bin").write_bytes(struct.pack("<4H", 1, 2, 3, 0))
    (tmp_path / "c.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 8, 2, 2)
        + struct.pack("<2i", 1, 3)
        + struct.pack("<2q", 0, 2)
        + struct.pack("<2q", 0, 2)
    )
    corpus = Binidx(tmp_path / "c.idx")
    assert len(corpus) == 1
    assert corpus.document(0).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize("token", [-1, 65536])
def test_an_id_that_does_not_fit_is_refused_and_nothing_is_left(tmp_path, token):
    with pytest.raises(CorpusError, match="outside uint16"):
        write(tmp_path / "c", [[1, 2], [token]])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_rewrite_leaves_the_old_corpus(tmp_path):
    write(tmp_path / "c", [[1, 2]])
    with pytest.raises(CorpusError):
        write(tmp_path / "c", [[3], [-1]])
    assert Binidx(tmp_path / "c").document(0).tolist() == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.bin", "c.idx"]


def damage_truncate_index(bin_file, idx_file):
    idx_file.write_bytes(idx_file.read_bytes()[:-3])


def damage_magic(bin_file, idx_file):
    idx_file.write_bytes(b"X" + idx_file.read_bytes()[1:])


def damage_dtype(bin_file, idx_file):
    raw = bytearray(idx_file.read_bytes())
    raw[17] = 99
    idx_file.write_bytes(raw)


def damage_version(bin_file, idx_file):
    raw = bytearray(idx_file.read_bytes())
    raw[9] = 7
    idx_file.write_bytes(raw)


def damage_count(bin_file, idx_file):
    raw = bytearray(idx_file.read_bytes())
    raw[18:26] = struct.pack("<Q", 1 << 60)
    idx_file.write_bytes(raw)


def damage_offset(bin_file, idx_file):
    raw = bytearray(idx_file.read_bytes())
    raw[34 + 8 + 8 : 34 + 8 + 16] = struct.pack("<q", 2)
    idx_file.write_bytes(raw)


def damage_boundaries(bin_file, idx_file):
    raw = bytearray(idx_file.read_bytes())
    raw[-8:] = struct.pack("<q", 9)
    idx_file.write_bytes(raw)


def damage_truncate_tokens(bin_file, idx_file):
    bin_file.write_bytes(bin_file.read_bytes()[:-2])


def damage_delete_tokens(bin_file, idx_file):
    bin_file.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate_index,
        damage_magic,
        damage_dtype,
        damage_version,
        damage_count,
        damage_offset,
        damage_boundaries,
        damage_truncate_tokens,
        damage_delete_tokens,
    ],
)
def test_a_damaged_corpus_is_named_and_refused(tmp_path, damage):
    write(tmp_path / "c", [[1, 2, 0], [3, 0]])
    damage(tmp_path / "c.bin", tmp_path / "c.idx")
    with pytest.raises(CorpusError, match=r"c\.(bin|idx): "):
        Binidx(tmp_path / "c")
