"""PyTorch ``.pth`` files, read and written without PyTorch.

Reading follows the rule of ``torch.load(..., weights_only=True)`` and is stricter: the pickle may
name nothing but tensors, their storages and ordered dictionaries, and even these stand for inert
objects of this module, so nothing of the file is ever executed. Values are mapped, not loaded.

Two containers exist: a zip archive (PyTorch 1.6 and later; ``data.pkl`` beside one uncompressed
entry a storage) and, before that, a sequence of pickles followed by the storages.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np

from ..errors import CheckpointError, UnsafeFileError
from . import dtypes
from .tensors import Mapping, Planned, StoredTensor

ZIP_MAGIC = b"PK\x03\x04"
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_MAX_PICKLE = 256 << 20
_MAX_TUPLES = 50_000  # a tensor takes four; hashing a deeper nest would overflow the C stack
_MAX_NUMBER = 1 << 62
_VERIFY_STEP = 1 << 24

_STORAGES = {
    "FloatStorage": ("float32", 4),
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "DoubleStorage": ("float64", 8),
    "LongStorage": ("int64", 8),
    "IntStorage": ("int32", 4),
    "ShortStorage": ("int16", 2),
    "CharStorage": ("int8", 1),
    "ByteStorage": ("uint8", 1),
    "BoolStorage": ("bool", 1),
}
_STORAGE_CLASSES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
}
# What a pickle of a state dict is made of; BUILD is for the attributes of an OrderedDict.
# fmt: off
_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_DICT", "DICT", "SETITEM",
    "SETITEMS", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET", "MEMOIZE",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
})
# fmt: on


def looks_like_pickle(head: bytes) -> bool:
    """Whether a file begins as a pickle of protocol 2 or later does."""
    return len(head) > 2 and head[0] == 0x80 and 2 <= head[1] <= 5


# --- reading ----------------------------------------------------------------------------------


def read_pth(mapping: Mapping) -> dict[str, StoredTensor]:
    """All tensors of a state dict by name. Every bound is checked; no weight is read."""
    tree, place = _open_zip(mapping) if mapping.read(0, 4) == ZIP_MAGIC else _open_legacy(mapping)
    return {
        name: _stored(mapping, name, value, place)
        for name, value in _state_dict(mapping, tree).items()
    }


# Named tuples: a pickle cannot give them attributes, as it can any object with a __dict__.
class _Storage(NamedTuple):
    key: str
    dtype: str
    itemsize: int
    values: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class _Place:
    """Where a storage's bytes lie, and the checksum that the container has of them."""

    start: int
    size: int
    crc: int | None = None

    def verify(self, mapping: Mapping, name: str) -> None:
        """Compare the checksum, the first time that the storage is read."""
        if self.crc is None:
            return
        crc = 0
        for at in range(self.start, self.start + self.size, _VERIFY_STEP):
            stop = min(at + _VERIFY_STEP, self.start + self.size)
            crc = zlib.crc32(mapping.bytes[at:stop].data, crc)
            mapping.release(at, stop)
        if crc != self.crc:
            raise CheckpointError(
                mapping.path, "checksum differs: damaged, download it again", tensor=name
            )
        self.crc = None


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor is not made of a storage")
    if len(shape) != len(strides) or len(shape) > 8 or not _sizes(*numbers):
        raise ValueError("a tensor of impossible shape, strides or offset")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _sizes(*numbers: Any) -> bool:
    return all(type(n) is int and 0 <= n < _MAX_NUMBER for n in numbers)


def _rebuild_parameter(data: Any, *_: Any) -> _Tensor:
    if not isinstance(data, _Tensor):
        raise ValueError("a parameter is not made of a tensor")
    return data


class _Dict(dict[Any, Any]):
    """What an OrderedDict becomes: without attributes that could hide its methods."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Ignore attributes (torch keeps ``_metadata`` there)."""


class _Callable:
    """A function that a pickle may call, without attributes that it could change."""

    __slots__ = ("_call",)
    _call: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_call", call)

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError(f"the pickle tries to set {name!r}")

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("torch._utils", "_rebuild_tensor"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Callable(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Callable(_rebuild_parameter),
    **{("torch", name): name for name in _STORAGES},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, blob: bytes) -> None:
        super().__init__(io.BytesIO(blob))
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, count = pid[:5]
        if kind != "storage" or storage not in _STORAGES or not isinstance(key, str):
            raise ValueError("an unknown persistent object")
        if not _sizes(count):
            raise ValueError(f"storage {key!r:.20} of an impossible size")
        return self.storages.setdefault(key, _Storage(key, *_STORAGES[storage], count))


class _Forbidden(Exception):
    pass


def _unpickle(mapping: Mapping, start: int) -> tuple[Any, int, dict[str, _Storage]]:
    """The object pickled at a byte offset, the offset after it, and the storages that it names."""
    try:
        end = _scan(mapping, start)
        unpickler = _Unpickler(mapping.read(start, end))
        return unpickler.load(), end, unpickler.storages
    except _Forbidden as error:
        raise UnsafeFileError(
            mapping.path,
            f"asks to run {error}, which no weight file needs: nothing was executed; "
            "get the weights from a source that you trust",
        ) from None
    except Exception as error:  # a hostile pickle can raise anything; all of it means "damaged"
        text = str(error) or type(error).__name__
        raise CheckpointError(mapping.path, f"damaged pickle: {text:.200}") from error


def _scan(mapping: Mapping, start: int) -> int:
    """Refuse what no state dict has before a single opcode is run; give the pickle's end."""
    end, tuples, strings = start, 0, ["", "something"]
    stream = cast(IO[bytes], mapping.stream(start))
    for opcode, arg, at in pickletools.genops(stream):
        end = cast(int, at)
        text = arg if isinstance(arg, str) else ""
        tuples += "TUPLE" in opcode.name
        if end - start > _MAX_PICKLE or tuples > _MAX_TUPLES:
            raise ValueError("far more than a state dict needs")
        if opcode.name == "GLOBAL" and tuple(text.split(" ", 1)) not in _GLOBALS:
            raise _Forbidden(text.replace(" ", "."))
        if opcode.name not in _OPCODES:
            made = text.replace(" ", ".") if opcode.name == "INST" else ".".join(strings)
            raise _Forbidden(f"{made} (pickle opcode {opcode.name})")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and (arg or 0) > end:
            raise ValueError(f"memo index {arg}")  # the unpickler would allocate that many
        if "UNICODE" in opcode.name:
            strings = [strings[-1], text]
    return end + 1


def _open_zip(mapping: Mapping) -> tuple[Any, Callable[[_Storage], _Place]]:
    places = _zip_entries(mapping)
    pickles = [name for name in places if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(mapping.path, "a zip archive, but not one that PyTorch wrote")
    prefix = pickles[0][: -len("data.pkl")]
    order = places.get(f"{prefix}byteorder")
    if order and mapping.read(order.start, order.start + order.size) != b"little":
        raise CheckpointError(mapping.path, "big-endian weights: save them on a usual machine")

    def place(storage: _Storage) -> _Place:
        found = places.get(f"{prefix}data/{storage.key}")
        if found is None:
            raise ValueError(f"the archive has no storage {storage.key!r:.20}")
        return found

    entry = places[pickles[0]]
    entry.verify(mapping, pickles[0])
    tree, end, _ = _unpickle(mapping, entry.start)
    if end > entry.start + entry.size:
        raise CheckpointError(mapping.path, "damaged: the pickle is cut short")
    return tree, place


def _zip_entries(mapping: Mapping) -> dict[str, _Place]:
    """Entries by name: uncompressed, inside the file, none over another."""
    path = mapping.path
    try:
        with path.open("rb") as f, zipfile.ZipFile(f) as archive:
            infos = archive.infolist()
            end = archive.start_dir
    except Exception as error:  # zipfile raises a dozen kinds on damaged archives
        raise CheckpointError(path, f"damaged or cut short: {error}: download it again") from error
    places: dict[str, _Place] = {}
    at = 0
    for info in sorted(infos, key=lambda i: i.header_offset):
        head = mapping.read(info.header_offset, info.header_offset + 30)
        if info.header_offset < at or len(head) < 30 or head[:4] != ZIP_MAGIC:
            raise CheckpointError(path, f"entry {info.filename!r:.50} overlaps or is damaged")
        start = info.header_offset + 30 + sum(struct.unpack_from("<HH", head, 26))
        at = start + info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(
                path, f"entry {info.filename!r:.50} is compressed, which PyTorch never does"
            )
        if at > end or info.filename in places:
            raise CheckpointError(path, f"entry {info.filename!r:.50} is cut short or given twice")
        # PyTorch can be told not to compute checksums, and then writes 0.
        places[info.filename] = _Place(start, info.file_size, info.CRC or None)
    return places


def _open_legacy(mapping: Mapping) -> tuple[Any, Callable[[_Storage], _Place]]:
    magic, at, _ = _unpickle(mapping, 0)
    if magic != _LEGACY_MAGIC:
        return magic, _nowhere  # a plain pickle without tensors: the caller says so
    _, at, _ = _unpickle(mapping, at)  # protocol version
    system, at, _ = _unpickle(mapping, at)
    tree, at, storages = _unpickle(mapping, at)
    keys, at, _ = _unpickle(mapping, at)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(mapping.path, "big-endian weights: save them on a usual machine")
    if not isinstance(keys, list) or not all(isinstance(k, str) for k in keys):
        raise CheckpointError(mapping.path, "damaged: the list of storages is unreadable")
    places = {}
    for key in keys:
        count = struct.unpack("<q", mapping.read(at, at + 8).ljust(8, b"\xff"))[0]
        at += 8
        size = count * storages[key].itemsize if key in storages else -1
        if count < 0 or size < 0 or at + size > len(mapping):
            raise CheckpointError(mapping.path, f"storage {key!r:.20} is damaged or cut short")
        places[key] = _Place(at, size)
        at += size

    def place(storage: _Storage) -> _Place:
        if storage.key not in places:
            raise ValueError(f"the file has no storage {storage.key!r:.20}")
        return places[storage.key]

    return tree, place


def _nowhere(storage: _Storage) -> _Place:
    raise ValueError(f"the file has no storage {storage.key!r:.20}")


def _state_dict(mapping: Mapping, tree: Any) -> dict[str, _Tensor]:
    for key in ("state_dict", "module", "model"):  # what trainers wrap a state dict in
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
    if not isinstance(tree, dict) or not any(isinstance(v, _Tensor) for v in tree.values()):
        raise CheckpointError(mapping.path, "holds no tensors by name: not a weight file")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise CheckpointError(
                mapping.path,
                f"entry {name if isinstance(name, str) else type(name).__name__!r:.60} is "
                f"{type(value).__name__}, not a tensor: give the original weights, not those "
                "prepared for another program",
            )
    return tree


def _stored(
    mapping: Mapping, name: str, tensor: _Tensor, find: Callable[[_Storage], _Place]
) -> StoredTensor:
    storage, shape = tensor.storage, tensor.shape
    try:
        place = find(storage)
    except ValueError as error:
        raise CheckpointError(mapping.path, str(error), tensor=name) from None
    if storage.values * storage.itemsize != place.size:
        raise CheckpointError(
            mapping.path,
            f"its storage has {place.size} bytes, not {storage.values} {storage.dtype} values",
            tensor=name,
        )
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, tensor.strides))
    if prod(shape) and (last >= storage.values or prod(shape) > storage.values):
        raise CheckpointError(
            mapping.path,
            f"of shape {list(shape)} overlaps itself or leaves its storage of "
            f"{storage.values} values",
            tensor=name,
        )
    columns = shape[-1] if shape else 1
    step = columns * storage.itemsize
    start = place.start + tensor.offset * storage.itemsize
    contiguous = tensor.strides == tuple(prod(shape[i + 1 :]) for i in range(len(shape)))

    def rows(first: int, stop: int) -> np.ndarray:
        place.verify(mapping, name)
        dtype = dtypes.STORAGE[storage.dtype]
        if contiguous:
            raw = mapping.bytes[start + first * step : start + stop * step]
            return raw.view(dtype).reshape(stop - first, columns)
        values = mapping.bytes[place.start : place.start + place.size].view(dtype)[tensor.offset :]
        strides = [s * storage.itemsize for s in tensor.strides]
        view = np.lib.stride_tricks.as_strided(values, shape, strides)
        return np.ascontiguousarray(view.reshape(-1, columns)[first:stop])

    def release(first: int, stop: int) -> None:
        if contiguous:
            mapping.release(start + first * step, start + stop * step)

    return StoredTensor(mapping.path, name, storage.dtype, shape, rows, release)


# --- writing ----------------------------------------------------------------------------------


def write_pth(
    out: BinaryIO,
    planned: Iterable[Planned],
    chunks: Callable[[Planned], Iterable[np.ndarray]],
) -> None:
    """Write a zip-format ``.pth`` that ``torch.load`` reads, tensor by tensor."""
    planned = list(planned)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:

        def write(name: str, size: int, parts: Iterable[Any]) -> None:
            info = zipfile.ZipInfo(f"archive/{name}")
            info.file_size = size
            # Storages begin at multiples of 64 bytes, as PyTorch's do, for mapping.
            head = 30 + len(info.filename) + 4 + (20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0)
            padding = -(out.tell() + head) % 64
            info.extra = b"FB" + struct.pack("<H", padding) + b"\0" * padding
            with archive.open(info, "w") as entry:
                for part in parts:
                    entry.write(part)

        blob = _pickle(planned)
        write("data.pkl", len(blob), [blob])
        write("byteorder", 6, [b"little"])
        for index, p in enumerate(planned):
            write(
                f"data/{index}",
                p.nbytes,
                (np.ascontiguousarray(chunk).data.cast("B") for chunk in chunks(p)),
            )
        write("version", 2, [b"3\n"])


def _pickle(planned: list[Planned]) -> bytes:
    """The pickle of ``{name: tensor}`` that ``torch.save`` would write, in protocol 2."""

    def text(value: str) -> bytes:
        blob = value.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(blob)) + blob

    def numbers(values: Iterable[int]) -> bytes:
        return pickle.MARK + b"".join(map(number, values)) + pickle.TUPLE

    def number(value: int) -> bytes:
        return pickle.dumps(value, 2)[2:-1]

    ordered_dict = (
        pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
    )
    parts = [pickle.PROTO + b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    for index, p in enumerate(planned):
        storage = _STORAGE_CLASSES[p.dtype].encode()
        strides = [prod(p.shape[i + 1 :]) for i in range(len(p.shape))]
        parts += [
            text(p.name),
            pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n" + pickle.MARK,
            pickle.MARK + text("storage") + pickle.GLOBAL + b"torch\n" + storage + b"\n",
            text(str(index)) + text("cpu") + number(prod(p.shape)),
            pickle.TUPLE + pickle.BINPERSID,
            number(0) + numbers(p.shape) + numbers(strides) + pickle.NEWFALSE + ordered_dict,
            pickle.TUPLE + pickle.REDUCE,
        ]
    return b"".join([*parts, pickle.SETITEMS, pickle.STOP])
