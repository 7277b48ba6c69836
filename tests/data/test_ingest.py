import json

import numpy as np
import pytest

from wkv.data import Binidx, Blocks, Ingest, ingest, loss_mask
from wkv.errors import ConfigError, CorpusError
from wkv.tokenizer import ByteTokenizer


def write_lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return str(path)


def documents(corpus):
    return [text(corpus.document(i)) for i in range(len(corpus))]


def text(tokens):
    """Byte tokens as text, the end of a document as ``|``."""
    return "".join("|" if t == 0 else ByteTokenizer().decode([int(t)]) for t in tokens)


@pytest.fixture
def source(tmp_path):
    return write_lines(tmp_path / "x.jsonl", [{"text": f"document {i}"} for i in range(300)])


def test_every_document_is_on_one_side_of_the_split(tmp_path, source):
    train, held = ingest(Ingest(source, "bytes", holdout=0.2), tmp_path / "c")
    assert sorted(documents(train) + documents(held)) == sorted(
        f"document {i}|" for i in range(300)
    )
    assert 30 < len(held) < 90


def test_copies_of_a_document_never_fall_on_both_sides(tmp_path):
    texts = [{"text": f"document {i % 20}"} for i in range(100)]
    path = write_lines(tmp_path / "x.jsonl", texts)
    train, held = ingest(Ingest(path, "bytes", holdout=0.4), tmp_path / "c")
    # The very first document is always learnt, so that a tiny corpus is not empty.
    assert not set(documents(train)) & set(documents(held)) - {"document 0|"}
    assert len(held) > 0


def test_several_processes_write_the_bytes_that_one_does(tmp_path, source):
    one, _ = ingest(Ingest(source, "bytes"), tmp_path / "one")
    seen = []
    ingest(
        Ingest(source, "bytes"),
        tmp_path / "two",
        workers=2,
        progress=lambda *counts: seen.append(counts),
    )
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"two.{suffix}").read_bytes() == (
            tmp_path / f"one.{suffix}"
        ).read_bytes()
    assert seen[-1] == (300, len(one.tokens))
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)


def test_a_corpus_is_made_once_and_again_when_its_source_changes(tmp_path, source):
    ingest(Ingest(source, "bytes"), tmp_path / "c")
    stamp = (tmp_path / "c.bin").stat().st_mtime_ns
    ingest(Ingest(source, "bytes"), tmp_path / "c")
    assert (tmp_path / "c.bin").stat().st_mtime_ns == stamp
    write_lines(tmp_path / "x.jsonl", [{"text": "another"}])
    changed, _ = ingest(Ingest(source, "bytes"), tmp_path / "c")
    assert documents(changed) == ["another|"]


def test_one_tiny_document_is_a_corpus_whatever_is_held_out(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"text": "hi"}])
    train, held = ingest(Ingest(path, "bytes", holdout=0.99), tmp_path / "c")
    assert documents(train) == ["hi|"]
    assert held is None
    (block,) = Blocks(train, 8)
    assert (block["labels"] >= 0).sum() == 2


def test_a_source_without_text_is_refused_and_leaves_no_corpus(tmp_path):
    path = write_lines(tmp_path / "x.jsonl", [{"text": ""}])
    with pytest.raises(CorpusError, match="0 documents, 0 tokens: too few"):
        ingest(Ingest(path, "bytes"), tmp_path / "c")
    with pytest.raises(CorpusError, match="no such file"):
        Binidx(tmp_path / "c")


def test_a_template_s_mask_lies_beside_the_corpus_and_reaches_the_labels(tmp_path):
    records = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(5)]
    path = write_lines(tmp_path / "x.jsonl", records)
    train, _ = ingest(Ingest(path, "bytes", template="qa"), tmp_path / "c")
    mask = loss_mask(train)
    assert text(train.tokens[mask == 1]) == "".join(f" a{i}\n|" for i in range(5))
    (block,) = Blocks(train, 1024, seed=None)
    counted = block["labels"][block["labels"] >= 0]
    assert text(counted) == text(train.tokens[mask == 1])


def test_of_several_templates_each_record_takes_one_and_copies_the_same(tmp_path):
    records = [{"question": f"q{i % 20}", "answer": "a"} for i in range(40)]
    path = write_lines(tmp_path / "x.jsonl", [*records, {"text": "plain"}])
    train, _ = ingest(Ingest(path, "bytes", template="qa+world"), tmp_path / "c")
    documents = [text(train.document(i)) for i in range(41)]
    assert documents[:20] == documents[20:40]
    kinds = [d.split("q")[0] for d in documents[:20]]
    assert set(kinds) == {"\nQ: ", "User: "}
    assert documents[40] == "plain|"
    with pytest.raises(ConfigError, match="unknown template 'none'"):
        Ingest(path, "bytes", template="qa+none")


def test_a_mask_of_another_corpus_is_refused(tmp_path, source):
    train, _ = ingest(Ingest(source, "bytes"), tmp_path / "c")
    other = write_lines(tmp_path / "y.jsonl", [{"question": "q", "answer": "a"}])
    ingest(Ingest(other, "bytes", template="qa"), tmp_path / "d")
    for suffix in ("idx", "bin"):
        (tmp_path / f"d.mask.{suffix}").rename(tmp_path / f"c.mask.{suffix}")
    with pytest.raises(CorpusError, match="not those of the corpus"):
        loss_mask(train)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_record_that_is_no_example_is_named_with_its_number(tmp_path, workers):
    records = [{"question": "q", "answer": "a"}, {"body": "x"}]
    path = write_lines(tmp_path / "x.jsonl", records)
    with pytest.raises(CorpusError, match="record 2"):
        ingest(Ingest(path, "bytes", template="qa"), tmp_path / "c", workers=workers)


def test_a_share_outside_its_bounds_and_an_unknown_template_are_refused():
    with pytest.raises(ConfigError, match=r"holdout is 1\.0"):
        Ingest("x", "bytes", holdout=1.0)
    with pytest.raises(ConfigError, match="unknown template"):
        Ingest("x", "bytes", template="none")


def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, source):
    train, _ = ingest(Ingest(source, "world"), tmp_path / "c")
    assert train.tokens.dtype == np.uint16
