"""Keeping freed memory for the next step, on a CPU."""

from __future__ import annotations

import ctypes
import sys

# Numbers of malloc.h's mallopt().
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep what this process frees, so that each step finds its pages again.

    By default every block above some megabytes is a mapping of its own: a step of the 169M shape
    then has the kernel clear a quarter of a million pages, a seventh of its time. Call it before
    the first thread allocates; it holds for the whole process, whose memory stays at its peak.

    Returns:
        False where there is no such switch (another C library); nothing is changed then.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER))
    done = [mallopt(name, value) for name, value in settings]
    return all(done)
