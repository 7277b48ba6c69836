import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkv.data import IGNORED, BinidxWriter, Blocks, PackedDocuments
from wkv.data import Binidx as Corpus
from wkv.errors import CorpusError

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=12)


def corpus_of(folder, lengths):
    """Each document counts up from its own hundred, so that a token tells where it is from."""
    with BinidxWriter(folder / "c", np.int32) as writer:
        for n, length in enumerate(lengths):
            writer.append([100 * (n + 1) + i for i in range(length)])
    return Corpus(folder / "c")


def pairs(items):
    """(input, label) of every place that counts, and a check that resets lie at the seams."""
    found = []
    for item in items:
        at = np.flatnonzero(item["labels"] != IGNORED)
        found += list(zip(item["input_ids"][at].tolist(), item["labels"][at].tolist()))
    return found


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 30))
def test_packing_serves_every_step_inside_a_document_once_an_epoch(
    tmp_path_factory, lengths, context
):
    corpus = corpus_of(tmp_path_factory.mktemp("c"), lengths)
    expected = sorted(
        (100 * (n + 1) + i, 100 * (n + 1) + i + 1)
        for n, length in enumerate(lengths)
        for i in range(length - 1)
    )
    if not expected:
        with pytest.raises(CorpusError, match="no document has 2 tokens"):
            PackedDocuments(corpus, context)
        return
    rows = PackedDocuments(corpus, context)
    second = PackedDocuments(corpus, context, 2 * rows.per_epoch)
    assert sorted(pairs(rows)) == expected
    assert sorted(pairs(second[i] for i in range(rows.per_epoch, 2 * rows.per_epoch))) == expected
    for row in rows:
        seams = np.flatnonzero(np.diff(row["input_ids"] // 100)) + 1
        assert row["resets"][0]
        assert row["resets"][seams].all()


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, context=st.integers(1, 30), seed=st.one_of(st.none(), st.just(3)))
def test_blocks_with_resets_serve_every_step_inside_a_document_once(
    tmp_path_factory, lengths, context, seed
):
    if sum(lengths) < 2:
        return
    corpus = corpus_of(tmp_path_factory.mktemp("c"), lengths)
    blocks = list(Blocks(corpus, context, seed=seed, resets=True))
    assert sorted(pairs(blocks)) == sorted(
        (100 * (n + 1) + i, 100 * (n + 1) + i + 1)
        for n, length in enumerate(lengths)
        for i in range(length - 1)
    )
    for block in blocks:
        real = block["input_ids"] >= 100
        begins = real & (block["input_ids"] % 100 == 0)
        assert (block["resets"] == begins).all()


def test_short_documents_share_rows_so_that_little_is_wasted(tmp_path):
    rng = np.random.default_rng(0)
    corpus = corpus_of(tmp_path, rng.integers(2, 60, 200).tolist())
    rows = PackedDocuments(corpus, 64)
    places = sum(len(d) - 1 for d in map(corpus.document, range(len(corpus))))
    assert places / (len(rows) * 64) > 0.94


def test_an_item_depends_on_nothing_but_its_number(tmp_path):
    corpus = corpus_of(tmp_path, [9, 5, 30, 2, 17])
    one = PackedDocuments(corpus, 8, 40)
    other = PackedDocuments(corpus, 8, 40)
    for i in (37, 3, 20):
        assert (one[i]["input_ids"] == other[i]["input_ids"]).all()
    orders = [
        [one[e * one.per_epoch + i]["input_ids"].tolist() for i in range(one.per_epoch)]
        for e in (0, 1)
    ]
    assert sorted(orders[0]) == sorted(orders[1])
    assert orders[0] != orders[1]
