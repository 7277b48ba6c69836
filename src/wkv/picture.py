"""Pictures of measurements, as PNG files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .atomic import new_file
from .errors import ConfigError, UnavailableError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def need_matplotlib(what: str) -> None:
    """Raise at once where ``what`` could not be drawn after all the work that goes into it.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UnavailableError(f"{what} needs matplotlib: pip install 'wkv[train]'")


@contextlib.contextmanager
def picture(path: str | Path, width: float, height: float, *, dpi: int = 120) -> Iterator[Figure]:
    """An empty figure of that many inches, which becomes a PNG file at ``path`` when drawn.

    Raises:
        ConfigError: the file cannot be written.
    """
    # Not pyplot: it would keep figures and pick a window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    yield figure

    def failure(path: Path, what: str) -> ConfigError:
        return ConfigError(f"{path} {what}")

    with new_file(Path(path), overwrite=True, size=1 << 16, failure=failure) as out:
        figure.savefig(out, format="png", dpi=dpi)
