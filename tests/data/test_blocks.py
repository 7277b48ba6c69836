import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wkv.data import IGNORED, Binidx, BinidxWriter, Blocks
from wkv.errors import ConfigError, CorpusError


def corpus_of(path, tokens):
    with BinidxWriter(path) as writer:
        writer.append(tokens)
    return Binidx(path)


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 90),
    context=st.integers(1, 40),
    seed=st.one_of(st.none(), st.integers(0, 5)),
)
def test_every_token_is_a_label_exactly_once_an_epoch(tmp_path_factory, size, context, seed):
    tokens = np.arange(1, size + 1)
    corpus = corpus_of(tmp_path_factory.mktemp("corpus") / "c", tokens)
    blocks = Blocks(corpus, context, length=3 * -(-(size - 1) // context), seed=seed)
    for epoch in range(3):
        seen = []
        for place in range(blocks.per_epoch):
            block = blocks[epoch * blocks.per_epoch + place]
            counts = block["labels"] != IGNORED
            assert counts.any()
            # The corpus counts upwards, so a label is the input's successor.
            assert (block["labels"][counts] == block["input_ids"][counts] + 1).all()
            seen += block["labels"][counts].tolist()
        assert sorted(seen) == tokens[1:].tolist()


def test_an_item_depends_on_seed_and_number_alone(tmp_path):
    corpus = corpus_of(tmp_path / "c", np.arange(1000))
    first, again = Blocks(corpus, 16, 200), Blocks(corpus, 16, 200)
    forward = [first[i]["input_ids"].tolist() for i in range(200)]
    backward = [again[i]["input_ids"].tolist() for i in reversed(range(200))][::-1]
    assert forward == backward
    other = Blocks(corpus, 16, 200, seed=1)
    assert forward != [other[i]["input_ids"].tolist() for i in range(200)]


def test_epochs_differ_in_order(tmp_path):
    blocks = Blocks(corpus_of(tmp_path / "c", np.arange(1000)), 16, 200)
    one = [blocks[i]["labels"].max() for i in range(blocks.per_epoch)]
    two = [blocks[blocks.per_epoch + i]["labels"].max() for i in range(blocks.per_epoch)]
    assert one != two


def test_without_a_seed_blocks_come_in_file_order(tmp_path):
    blocks = Blocks(corpus_of(tmp_path / "c", np.arange(10)), 4, seed=None)
    assert [b["labels"].tolist() for b in (blocks[0], blocks[1], blocks[2])] == [
        [1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, IGNORED, IGNORED, IGNORED],
    ]


def test_one_short_document_is_one_padded_block(tmp_path):
    blocks = Blocks(corpus_of(tmp_path / "c", [7, 8, 0]), 512)
    assert len(blocks) == 1
    labels = blocks[0]["labels"]
    assert labels[labels != IGNORED].tolist() == [8, 0]


def test_a_corpus_without_a_label_is_refused(tmp_path):
    with pytest.raises(CorpusError, match="at least 2"):
        Blocks(corpus_of(tmp_path / "c", [7]), 512)


def test_a_context_of_zero_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="context is 0"):
        Blocks(corpus_of(tmp_path / "c", [7, 8]), 0)


def test_an_item_past_the_end_is_an_index_error(tmp_path):
    blocks = Blocks(corpus_of(tmp_path / "c", [7, 8]), 1)
    with pytest.raises(IndexError):
        blocks[1]
