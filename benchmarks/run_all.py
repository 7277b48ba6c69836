"""The benchmarks behind the README's figures that need nothing beside `make setup`, as Markdown.

    python benchmarks/run_all.py > report.md

Close other programs first; it takes an hour and more. The others need a build of rwkv.cpp
(engine_vs_rwkv_cpp.py with --library, quantization_quality.py) or the bundled model's corpus
(scaling.py).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUNS = (
    ("wkv_operator.py",),
    ("training_step.py", "--context", "512", "--rounds", "3"),
    ("training_contexts.py",),
    ("long_context.py",),
    ("parity.py",),
    ("parity_formats.py",),
    ("convert_memory.py", "--size", "3b"),
    ("engine_vs_rwkv_cpp.py", "169m", "--peers", "rwkv,transformers"),
    ("engine_vs_rwkv_cpp.py", "1b5"),
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
