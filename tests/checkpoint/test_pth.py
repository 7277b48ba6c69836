from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoint.weights import CONFIG, WEIGHTS, save_pth
from wkv.checkpoint import convert, open_checkpoint
from wkv.checkpoint.pth import read_pth
from wkv.checkpoint.tensors import Mapping, read
from wkv.errors import CheckpointError, UnsafeFileError

CONTAINERS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {n: read(t, "float32") for n, t in read_pth(Mapping(path)).items()}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_values_are_those_that_torch_reads(tmp_path, container, dtype):
    path = save_pth(tmp_path / "m.pth", WEIGHTS, dtype, **CONTAINERS[container])
    theirs = torch.load(path, weights_only=True)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.config == CONFIG
        assert checkpoint.format == "pth"
        assert set(checkpoint.dtypes.values()) == {dtype}
        for name in checkpoint.names():
            np.testing.assert_array_equal(checkpoint.tensor(name), theirs[name].float().numpy())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol_of_torch_is_read(tmp_path, container, protocol):
    path = save_pth(tmp_path / "m.pth", WEIGHTS, pickle_protocol=protocol, **CONTAINERS[container])
    assert set(read_all(path)) == set(WEIGHTS)


@pytest.mark.parametrize("container", CONTAINERS)
def test_views_parameters_and_shared_storages_are_read(tmp_path, container):
    base = torch.arange(24.0).reshape(4, 6)
    tensors = collections.OrderedDict(
        transposed=base.t(),
        part=base[1:3, 2:5],
        tail=base[3],
        parameter=torch.nn.Parameter(base.clone()),
        scalar=torch.tensor(5.0),
        cube=torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        empty=torch.zeros(0, 3),
    )
    tensors._metadata = {"": {"version": 1}}
    path = tmp_path / "m.pth"
    torch.save(tensors, path, **CONTAINERS[container])
    found = read_all(path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(
            found[name].reshape(tensor.shape), tensor.detach().numpy(), err_msg=name
        )


@pytest.mark.parametrize("wrap", ["state_dict", "module", "model"])
def test_the_state_dict_of_a_training_checkpoint_is_found(tmp_path, wrap):
    path = tmp_path / "m.pth"
    torch.save({wrap: {"a": torch.ones(2)}, "epoch": 3, "lr": 0.1}, path)
    assert list(read_all(path)) == ["a"]


@pytest.mark.parametrize("prefix", ["_forward_module.", "model.", "module."])
def test_a_prefix_on_every_name_is_dropped(tmp_path, prefix):
    path = save_pth(tmp_path / "m.pth", {prefix + n: w for n, w in WEIGHTS.items()})
    with open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.tensor("ln_out.bias"), WEIGHTS["ln_out.bias"])


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = save_pth(tmp_path / "m.pth", WEIGHTS)
    finally:
        torch.serialization.set_crc32_options(True)
    assert set(read_all(path)) == set(WEIGHTS)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_written_torch_reads_and_maps(tmp_path, dtype):
    path = save_pth(tmp_path / "m.pth", WEIGHTS, dtype)
    convert(path, tmp_path / "copy.pth")
    want = torch.load(path, weights_only=True)
    for mmap in (False, True):
        got = torch.load(tmp_path / "copy.pth", weights_only=True, mmap=mmap)
        assert set(got) == set(want)
        for name, tensor in want.items():
            assert got[name].dtype == tensor.dtype
            assert torch.equal(got[name], tensor)
            assert got[name].data_ptr() % 64 == 0 or not mmap
    assert zipfile.ZipFile(tmp_path / "copy.pth").testzip() is None


# --- hostile pickles --------------------------------------------------------------------------


class Evil:
    """Leaves a file behind if anyone executes it."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_a_pickle_that_would_execute_code_is_refused_and_named(tmp_path, how, protocol):
    target = tmp_path / "executed"
    path = tmp_path / "m.pth"
    content = {"emb.weight": torch.ones(2, 2), "x": Evil(target)}
    if how == "bare":
        path.write_bytes(pickle.dumps({"x": Evil(target)}, protocol=protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, **CONTAINERS[how])
    with pytest.raises(UnsafeFileError, match=r"posix\.mkdir|nt\.mkdir"):
        open_checkpoint(path)
    assert not target.exists()


def state_dict_zip(path: Path, blob: bytes, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", blob)
        for name, data in entries.items():
            archive.writestr(f"a/data/{name}", data)
    return path


def tensor_pickle(shape=(2, 2), strides=(2, 1), offset=0, count=4, storage="FloatStorage") -> bytes:
    """The pickle of {"emb.weight": tensor} with any numbers."""
    number = lambda n: pickle.dumps(n, 2)[2:-1]  # noqa: E731
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()  # noqa: E731
    numbers = lambda values: b"(" + b"".join(map(number, values)) + b"t"  # noqa: E731
    return (
        b"\x80\x02}"
        + text("emb.weight")
        + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        + text("storage")
        + f"ctorch\n{storage}\n".encode()
        + text("0")
        + text("cpu")
        + number(count)
        + b"tQ"
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89}tRs."
    )


def test_the_hand_made_pickle_is_sound(tmp_path):
    values = np.arange(4, dtype=np.float32)
    path = state_dict_zip(tmp_path / "m.pth", tensor_pickle(), **{"0": values.tobytes()})
    np.testing.assert_array_equal(read_all(path)["emb.weight"], values.reshape(2, 2))


@pytest.mark.parametrize(
    "numbers",
    [
        {"shape": (2, 3)},
        {"shape": (-2, 2)},
        {"shape": (1 << 62, 1 << 62)},
        {"strides": (0, 0), "shape": (1000, 1000)},
        {"strides": (1, 1), "shape": (2, 4)},
        {"strides": (-2, 1)},
        {"strides": (2,)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 1 << 70},
        {"count": 5},
        {"count": -4},
        {"count": 1 << 62},
        {"count": 10**5000},
        {"shape": (10**5000, 2)},
        {"shape": (2.0, 2)},
        {"shape": (True, 4), "strides": (1, 1)},
        {"storage": "DoubleStorage"},
    ],
)
def test_a_tensor_that_lies_about_its_storage_is_refused(tmp_path, numbers):
    path = state_dict_zip(tmp_path / "m.pth", tensor_pickle(**numbers), **{"0": bytes(16)})
    with pytest.raises(CheckpointError):
        read_all(path)


@pytest.mark.parametrize(
    "blob",
    [
        b"\x80\x02r\xff\xff\xff\xff.",  # a memo index that would be allocated
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
        b"\x80\x02(icollections\nOrderedDict\n.",  # INST
        b"\x80\x02\x82\x01.",  # EXT1
        b"\x80\x04\x8c\x05torch\x8c\x04load\x93)R.",  # STACK_GLOBAL
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x05\x00\x00\x00_callK\x01sb.",  # BUILD
        b"\x80\x02N}X\x01\x00\x00\x00aK\x01s\x86.",
        b"\x80\x02(((((((((.",
        b"\x80\x02}",
        b"\x80\x02.",
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02" + b"(" * 5000 + b"t" * 5000 + b".",
        b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s.",  # hashed, it would end the process
        b"\x80\x02})" + b"\x85" * 3000 + b"K\x01s.",
        # An OrderedDict whose methods are hidden by attributes.
        b"\x80\x02ccollections\nOrderedDict\n)R}(X\x06\x00\x00\x00valuesK\x01X\x03\x00\x00\x00getK"
        b"\x01X\x05\x00\x00\x00itemsK\x01ub.",
        b"",
    ],
)
def test_pickles_that_no_state_dict_has_are_refused(tmp_path, blob):
    with pytest.raises(CheckpointError):
        open_checkpoint(state_dict_zip(tmp_path / "m.pth", blob))
    (tmp_path / "bare.pth").write_bytes(blob)
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path / "bare.pth")


def test_a_pickle_cannot_change_the_reader(tmp_path):
    # BUILD with slot state sets attributes on whatever is on the stack.
    blob = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}}X\x05\x00\x00\x00_callK\x01s\x86b."
    with pytest.raises(CheckpointError):
        open_checkpoint(state_dict_zip(tmp_path / "m.pth", blob))
    test_the_hand_made_pickle_is_sound(tmp_path)


# --- damaged containers -----------------------------------------------------------------------


def test_one_flipped_byte_of_a_weight_is_found_by_its_checksum(tmp_path):
    path = save_pth(tmp_path / "m.pth", WEIGHTS)
    blob = bytearray(path.read_bytes())
    at = blob.find(WEIGHTS["blocks.1.ffn.key.weight"].tobytes())
    blob[at + 100] ^= 1
    path.write_bytes(blob)
    with open_checkpoint(path) as checkpoint:
        checkpoint.tensor("blocks.0.ffn.key.weight")
        with pytest.raises(CheckpointError, match=r"blocks\.1\.ffn\.key\.weight.*checksum"):
            checkpoint.tensor("blocks.1.ffn.key.weight")


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_truncated_file_is_refused(tmp_path, container):
    path = save_pth(tmp_path / "m.pth", WEIGHTS, **CONTAINERS[container])
    blob = path.read_bytes()
    for keep in (len(blob) - 1, len(blob) // 2, 700, 60, 5):
        path.write_bytes(blob[:keep])
        with pytest.raises(CheckpointError, match=str(path)):
            open_checkpoint(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", tensor_pickle())
        archive.writestr("a/data/0", bytes(16))
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(path)


def test_entries_that_share_bytes_are_refused(tmp_path):
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w") as archive:
        archive.writestr("a/data.pkl", tensor_pickle())
        archive.writestr("a/data/0", bytes(16))
        archive.writestr("a/data/1", bytes(16))
        archive.infolist()[2].header_offset = archive.infolist()[1].header_offset
    (tmp_path / "m.pth").write_bytes(blob.getvalue())
    with pytest.raises(CheckpointError, match=r"overlap|damaged"):
        open_checkpoint(tmp_path / "m.pth")


def test_an_archive_that_torch_did_not_write_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="not one that PyTorch wrote"):
        open_checkpoint(tmp_path / "m.pth")


def test_weights_prepared_for_another_program_are_refused(tmp_path):
    torch.save({"emb.weight": torch.ones(2, 2), "_strategy": "cuda fp16i8"}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="_strategy"):
        open_checkpoint(tmp_path / "m.pth")
