"""Models by repository name, from a hub on this machine."""

from __future__ import annotations

import numpy as np
import pytest

import wkv
from tests.engine.conftest import write_checkpoint
from wkv.checkpoint import convert
from wkv.errors import CheckpointError
from wkv.hub import is_repository_name


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same model in every format that repositories hold."""
    folder = tmp_path_factory.mktemp("formats")
    config = wkv.ModelConfig(vocab_size=257, hidden_size=32, num_hidden_layers=2)
    write_checkpoint(folder, config)
    convert(folder, folder / "RWKV-4-tiny.pth")
    found = {p.name: p.read_bytes() for p in folder.iterdir()}
    # transformers' own pickles are .pth files under the hub's names.
    import torch

    from wkv.checkpoint import load_state_dict

    torch.save(load_state_dict(folder), folder / "pytorch_model.bin")
    found["pytorch_model.bin"] = (folder / "pytorch_model.bin").read_bytes()
    return found


def only(files, *names):
    return {name: files[name] for name in names}


def logits(name, **options):
    return wkv.load(name, engine="torch", **options).forward([1, 2, 3])[0]


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes(files[name])
    return logits(folder)


def fetched(hub, suffix):
    return [path for _, path in hub.requests if "/resolve/" in path and path.endswith(suffix)]


def test_safetensors_are_taken_and_nothing_else_is_fetched(fake_hub, files, expected):
    fake_hub.add("tester/all", files)
    model = wkv.load("tester/all", engine="torch")
    assert model.name == "tester/all"
    np.testing.assert_array_equal(model.forward([1, 2, 3])[0], expected)
    assert fetched(fake_hub, "model.safetensors")
    assert not fetched(fake_hub, ".bin")
    assert not fetched(fake_hub, ".pth")


def test_pickled_weights_are_read_where_there_are_no_others(fake_hub, files, expected):
    fake_hub.add("tester/old", only(files, "config.json", "pytorch_model.bin"))
    np.testing.assert_array_equal(logits("tester/old"), expected)


def test_the_one_original_file_is_found_and_of_several_one_must_be_named(fake_hub, files, expected):
    original = files["RWKV-4-tiny.pth"]
    fake_hub.add("tester/one", {"RWKV-4-tiny.pth": original, "README.md": b"hello"})
    np.testing.assert_array_equal(logits("tester/one"), expected)
    fake_hub.add("tester/many", {"a.pth": original, "more/b.pth": original})
    before = len(fetched(fake_hub, ".pth"))
    with pytest.raises(CheckpointError, match=r"2 models: name one as tester/many/FILE\.pth"):
        logits("tester/many")
    assert len(fetched(fake_hub, ".pth")) == before
    np.testing.assert_array_equal(logits("tester/many/more/b.pth"), expected)
    with pytest.raises(CheckpointError, match="no such file"):
        logits("tester/many/c.pth")


def test_a_revision_is_what_was_there_then(fake_hub, files, expected, tmp_path):
    first = fake_hub.add("tester/twice", only(files, "config.json", "model.safetensors"))
    other = write_checkpoint(tmp_path, wkv.ModelConfig(257, 32, 2), seed=5)
    fake_hub.add("tester/twice", {p.name: p.read_bytes() for p in other.iterdir()})
    assert not np.array_equal(logits("tester/twice"), expected)
    np.testing.assert_array_equal(logits("tester/twice", revision=first), expected)
    with pytest.raises(CheckpointError, match="no revision 'nineteen'"):
        logits("tester/twice", revision="nineteen")


def test_what_was_loaded_once_loads_offline(fake_hub, files, expected, monkeypatch):
    fake_hub.add("tester/all", files)
    logits("tester/all")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    count = len(fake_hub.requests)
    np.testing.assert_array_equal(logits("tester/all"), expected)
    assert len(fake_hub.requests) == count
    with pytest.raises(CheckpointError, match="not in the Hugging Face cache"):
        logits("tester/other")


@pytest.mark.parametrize(
    ("name", "word"),
    [("tester/nothing", "no such repository"), ("tester/empty", "holds no weights")],
)
def test_what_cannot_be_loaded_is_one_line_that_names_the_repository(fake_hub, name, word):
    fake_hub.add("tester/empty", {"README.md": b"hello"})
    with pytest.raises(CheckpointError, match=word) as caught:
        logits(name)
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["RWKV/rwkv-4-169m-pile", "a/b", "BlinkDL/rwkv-4/x-1.pth"])
def test_repository_names_are_recognised(name):
    assert is_repository_name(name)


@pytest.mark.parametrize("name", ["model.pth", "./a/b", "/a/b", "a/../b", "a/b/c", "~/x", "a", ""])
def test_paths_are_not_taken_for_repository_names(name):
    assert not is_repository_name(name)
