"""Checkpoints from the Hugging Face Hub, by repository name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError

_NAME = re.compile(r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:/(?P<file>.+))?")
_BESIDE = ["*.json", "*.txt"]  # configuration, index and tokenizer


def is_repository_name(name: str) -> bool:
    """Whether this looks like ``org/name`` or ``org/name/file.pth``, and not like a path."""
    match = _NAME.fullmatch(name)
    if match is None or ".." in name:
        return False
    file = match["file"]
    return file is None or file.endswith((".pth", ".bin", ".safetensors"))


def download(name: str, revision: str | None = None) -> Path:
    """A repository's model in the Hugging Face cache, downloaded where needed.

    ``org/name`` is a folder with safetensors or else ``pytorch_model*.bin``, or the one ``.pth``
    file that the repository holds; ``org/name/file.pth`` is that file. Without a network a copy in
    the cache is used.

    Raises:
        CheckpointError: no such repository, revision or file, no access, no network and no copy,
            no weights or several models; names the repository.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    match = _NAME.fullmatch(name)
    assert match is not None
    repository, file = match["repository"], match["file"]

    def fetch(*patterns: str) -> Path:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=[*_BESIDE, *patterns])
        )

    with _explained(name, revision):
        if file is None:
            for pattern in ("*.safetensors", "pytorch_model*.bin"):
                folder = fetch(pattern)
                if any(folder.glob(pattern)):
                    return folder
            # Original repositories hold many models of many gigabytes: never fetch them all.
            found = [str(p.relative_to(folder)) for p in folder.rglob("*.pth")]
            found = found or [
                f
                for f in HfApi().list_repo_files(repository, revision=revision)
                if f.endswith(".pth")
            ]
            if not found:
                raise _failed(name, "holds no weights (*.safetensors, pytorch_model*.bin or *.pth)")
            if len(found) > 1:
                some = ", ".join(found[:5]) + (" …" if len(found) > 5 else "")
                raise _failed(
                    name,
                    f"holds {len(found)} models: name one as {repository}/FILE.pth, of {some}",
                )
            file = found[0]
        fetch()
        return Path(hf_hub_download(repository, file, revision=revision))


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise _failed(name, "asks for a login: run 'hf auth login'") from error
    except RepositoryNotFoundError as error:
        raise _failed(name, "no such file here, and no such repository on the Hub") from error
    except RevisionNotFoundError as error:
        raise _failed(name, f"the repository has no revision {revision!r}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise _failed(
            name,
            "no such file here, not in the Hugging Face cache, and the Hub cannot be reached: "
            "connect, or give a path",
        ) from error
    except EntryNotFoundError as error:
        raise _failed(name, "the repository has no such file") from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _failed(name, f"could not be downloaded: {error}") from error


def _failed(name: str, problem: str) -> CheckpointError:
    # One line: the Hub's own messages run over several.
    return CheckpointError(name, " ".join(problem.split()))
