"""Checkpoints that are there whole or not at all.

The Trainer writes into a folder of its own; only when every byte is on the disk does that become
``checkpoint-N``, by a rename, and only then do older ones go. So whatever kills a run, the newest
``checkpoint-N`` is one to go on from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

_WRITING = ".checkpoint-being-written"
_REMOVING = ".checkpoint-being-removed"


def checkpoints(output: str | Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in Path(output).glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    ]
    return [path for _, path in sorted(found)]


class CheckpointWriter(_Base):
    """What a Trainer's checkpoints need to be atomic; mixed into it."""

    recipe: Any
    _writing_to: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._writing_to or str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        writing, final = output / _WRITING, output / name
        first = self.is_world_process_zero()
        if first:
            for stale in (writing, output / _REMOVING):
                shutil.rmtree(stale, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._writing_to = str(writing)
        try:
            super()._save_checkpoint(model, trial)
            if first:
                self._name_best(output, writing / name)
                _sync(writing / name)
        except Exception as error:
            if first:
                shutil.rmtree(writing, ignore_errors=True)
            if not _is_write_failure(error):
                raise
            kept = checkpoints(output)
            raise CheckpointError(
                final,
                f"could not be written ({str(error).splitlines()[0]}): free space or choose "
                "another run.output, then start the run again: it goes on from "
                f"{kept[-1].name if kept else 'its beginning'}",
            ) from error
        finally:
            self._writing_to = None
        self.accelerator.wait_for_everyone()
        if first:
            if final.exists():
                _remove(final)
            os.replace(writing / name, final)
            _sync_folder(output)
            writing.rmdir()
            self._drop_old(output)
        self.accelerator.wait_for_everyone()

    def _name_best(self, output: Path, written: Path) -> None:
        """The Trainer looked for the best checkpoint where it was writing this one."""
        best = self.state.best_global_step
        if not best:
            return
        folder = output / f"checkpoint-{best}"
        here = best == self.state.global_step or folder.is_dir()
        self.state.best_model_checkpoint = str(folder) if here else None
        self.state.save_to_json(str(written / "trainer_state.json"))

    def _drop_old(self, output: Path) -> None:
        best = self.state.best_model_checkpoint
        for path in checkpoints(output)[: -self.recipe.run.keep]:
            if best is None or path.name != Path(best).name:
                _remove(path)


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written, from its own record."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            checkpoint, f"no checkpoint of a run to go on from: {error}"
        ) from error


def _remove(folder: Path) -> None:
    """Out of sight first: a half-deleted checkpoint must not look like a whole one."""
    aside = folder.with_name(_REMOVING)
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    shutil.rmtree(aside)


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        elif path.is_dir():
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_write_failure(error: BaseException) -> bool:
    # Three libraries write here, and each has its own way to say that the disk is full.
    signs = (
        "No space left",
        "File too large",
        "I/O error",
        "failed writing file",
        "unexpected pos",
    )
    return isinstance(error, OSError) or any(sign in str(error) for sign in signs)
