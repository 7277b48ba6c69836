import pytest

from wkv.data import read_documents, read_records
from wkv.errors import CorpusError


def test_parquet_gives_a_record_a_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": f"document {i}", "n": i} for i in range(3000)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert list(read_records(tmp_path / "x.parquet")) == rows


def test_a_damaged_parquet_file_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(CorpusError, match=r"x\.parquet: damaged Parquet"):
        list(read_records(tmp_path / "x.parquet"))


def test_a_folder_is_read_in_the_order_of_its_files(tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "notes.md").write_text("not a document")
    assert list(read_documents(tmp_path)) == ["one", "two"]


def test_a_folder_without_documents_is_named(tmp_path):
    with pytest.raises(CorpusError, match="a folder without any"):
        list(read_records(tmp_path))


def test_a_saved_dataset_is_read_and_a_missing_split_named(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    data.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    assert list(read_documents(tmp_path / "plain")) == ["one", "two"]
    assert [r["text"] for r in read_records(tmp_path / "splits")] == ["one", "two"]
    with pytest.raises(CorpusError, match="has no split 'test': choose from train"):
        list(read_records(tmp_path / "splits", "test"))


def test_a_name_that_is_no_dataset_is_a_clear_error(monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CorpusError, match="neither a file nor a dataset"):
        list(read_records("nobody/nothing-of-this-name"))
