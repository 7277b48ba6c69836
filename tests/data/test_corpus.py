import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from wkv.data import Binidx, read_documents, tokenize
from wkv.errors import CorpusError


@pytest.fixture
def words():
    vocabulary = {"<end>": 0, "a": 1, "b": 2, "c": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_each_document_is_encoded_and_ended_by_zero(tmp_path, words):
    seen = []
    texts = ["a b", "", "c"]
    corpus = tokenize(
        texts, tmp_path / "c", words, batch=2, progress=lambda *counts: seen.append(counts)
    )
    assert [corpus.document(i).tolist() for i in range(len(corpus))] == [[1, 2, 0], [3, 0]]
    assert seen == [(1, 3), (2, 5)]


def test_a_failing_text_leaves_no_corpus(tmp_path, words):
    def texts():
        yield "a"
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        tokenize(texts(), tmp_path / "c", words, batch=1)
    with pytest.raises(CorpusError, match="no such file"):
        Binidx(tmp_path / "c")


def test_json_lines_are_read_by_field(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": "zwei ü"}\n', encoding="utf-8")
    assert list(read_documents(path)) == ["one", "zwei ü"]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "x.txt").write_text("one\n\ntwo")
    assert list(read_documents(tmp_path / "x.txt")) == ["one\n\ntwo"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        (json.dumps({"body": "a"}).encode(), r"line 1 has no text under 'text': it has \['body'\]"),
        (b'{"text": 3}', "line 1 has no text"),
        (b"[1]", "line 1 has no text under 'text': it has list"),
        (b'{"text": "\xff"}', "not UTF-8 at byte"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, problem):
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(CorpusError, match=problem):
        list(read_documents(path))


def test_an_unknown_suffix_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "x.doc").write_text("a")
    with pytest.raises(CorpusError, match=r"x\.doc: \.doc suffix"):
        list(read_documents(tmp_path / "x.doc"))
    with pytest.raises(CorpusError, match="no such file"):
        list(read_documents(tmp_path / "y.txt"))
