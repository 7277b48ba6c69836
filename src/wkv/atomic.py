"""Write beside, then rename: a destination is either the old one or the whole new one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError, WkvError

# Makes the error to raise from a destination and what is wrong with it.
Failure = Callable[[Path, str], WkvError]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def new_file(
    path: Path, *, overwrite: bool, size: int, failure: Failure = CheckpointError
) -> Iterator[BinaryIO]:
    """A file to write about ``size`` bytes to, which becomes ``path`` when all went well."""
    path = Path(os.path.realpath(path))  # a link stays a link
    if path.is_dir():
        raise failure(path, "is a folder: name a file")
    if path.exists() and not path.is_file():
        # A rename would put a file in the place of /dev/null for every program of this machine.
        raise failure(path, "is a device or a pipe, which cannot be replaced: name a file")
    if path.exists() and not overwrite:
        raise failure(path, "exists: pass --force (overwrite=True) to replace it")
    with _explained(path, failure):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path, size)
        handle, temporary = tempfile.mkstemp(".part", _hidden(path), path.parent)
        try:
            with os.fdopen(handle, "w+b") as out:
                yield out
                out.flush()
                # A rename can reach the disk before the bytes do; a power cut would then leave
                # an empty file in place of the old one.
                os.fsync(out.fileno())
            os.chmod(temporary, _mode(0o666))
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def new_folder(
    path: Path, *, overwrite: bool, size: int, replaces: Callable[[str], bool]
) -> Iterator[Path]:
    """A folder to write about ``size`` bytes into, which becomes ``path`` when all went well.

    An old folder that is overwritten loses its files for which ``replaces(name)`` is true, and
    those that the new one has too; everything else in it is carried over.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise CheckpointError(path, "is a file: name a folder")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise CheckpointError(path, "is not empty: pass --force (overwrite=True) to replace it")
    with _explained(path, CheckpointError):
        path.parent.mkdir(parents=True, exist_ok=True)
        _check_space(path, size)
        new = Path(tempfile.mkdtemp(prefix=_hidden(path), suffix=".part", dir=path.parent))
        try:
            yield new
            for file in new.iterdir():
                with file.open("rb") as f:
                    os.fsync(f.fileno())
            os.chmod(new, _mode(0o777))
            _swap(new, path, replaces)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise


def _swap(new: Path, path: Path, replaces: Callable[[str], bool]) -> None:
    if not path.exists():
        os.rename(new, path)
        return
    old = Path(tempfile.mkdtemp(prefix=_hidden(path), suffix=".old", dir=path.parent))
    old.rmdir()  # only its name was wanted
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    for entry in list(old.iterdir()):
        if not replaces(entry.name) and not (path / entry.name).exists():
            os.rename(entry, path / entry.name)
    shutil.rmtree(old)


def _hidden(path: Path) -> str:
    return f".{path.name[:100]}."  # a name may already be as long as the system allows


def _check_space(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(errno.ENOSPC, f"{size:,} bytes needed, {free:,} free")


@contextlib.contextmanager
def _explained(path: Path, failure: Failure) -> Iterator[None]:
    """Failures of the system as errors that name the destination."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            problem = f"the disk is full ({error.strerror}): free space or choose another place"
        else:
            problem = f"cannot be written: {error.strerror or error}"
        raise failure(path, f"{problem}; nothing was changed there") from error


def _mode(wanted: int) -> int:
    mask = os.umask(0)
    os.umask(mask)
    return wanted & ~mask
