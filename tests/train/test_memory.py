import subprocess
import sys

import pytest

from wkv.train.memory import keep_freed_memory

PROGRAM = """
import resource, sys
import numpy as np
from wkv.train.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
counts = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(64 << 20, np.uint8)[::4096] = 1
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts[1:]), max(counts[1:]))
"""


def faults(how):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a switch of glibc")
def test_freed_blocks_are_found_again_without_the_kernel():
    assert faults("plain")[0] > 20  # 64 MiB, in pages of 4 KiB or 2 MiB
    assert faults("keep")[1] < 10


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
