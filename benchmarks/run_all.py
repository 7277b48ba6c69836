"""Every benchmark behind a figure of the README, one after the other, as Markdown.

    python benchmarks/run_all.py > report.md

Close other programs first. The peers that a script needs are named in its own head; one that is not
installed leaves its rows out, and the script says so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("wkv_operator.py",),
    ("training_step.py", "--context", "512", "--rounds", "3"),
    ("long_context.py",),
    ("parity.py",),
    ("parity_formats.py",),
    ("convert_memory.py", "--size", "3b"),
)


def main() -> None:
    failed = []
    for name, *arguments in RUNS:
        print(f"<!-- python benchmarks/{' '.join([name, *arguments])} -->", flush=True)
        if subprocess.run([sys.executable, str(HERE / name), *arguments]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
