"""What users install: the source distribution, and the wheel that is built from nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONG = 900  # seconds; compiling on two busy cores takes minutes


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, folder, cwd=ROOT)
    (archive,) = folder.glob("wkv-*.tar.gz")
    return archive


def test_the_source_distribution_has_what_a_build_needs_and_no_more(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for wanted in (
        "LICENSE",
        "README.md",
        "CMakeLists.txt",
        "native/CMakeLists.txt",
        "native/engine/kernels_avx512.cpp",
        "src/wkv/__init__.py",
        "src/wkv/models/bundled/config.json",
    ):
        assert wanted in names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {"tests", "benchmarks", "build", "runs", ".venv"}
    assert sdist.stat().st_size < 40e6


def test_a_wheel_built_from_it_runs_without_the_repository(sdist, tmp_path):
    shutil.unpack_archive(sdist, tmp_path / "source")
    (source,) = (tmp_path / "source").iterdir()
    options = ("--no-build-isolation", "--no-deps", "--quiet", "--wheel-dir", tmp_path)
    run(sys.executable, "-m", "pip", "wheel", *options, source, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert any(name.startswith("wkv/_native.") for name in names)
    assert not [n for n in names if n.endswith((".cpp", ".hpp", ".inc"))]
    # Without site, the editable installation of this repository is not found, only what is named.
    packages = Path(pytest.__file__).parents[1]
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import wkv; assert wkv.__file__.startswith("
        "sys.argv[1]); print(wkv.load().generate('Once', max_tokens=4, seed=1).text)"
    )
    out = run(sys.executable, "-S", "-c", code, tmp_path / "installed", packages, cwd=tmp_path)
    assert out.strip()

    pytest.importorskip("auditwheel")
    report = run(sys.executable, "-m", "auditwheel", "show", wheel, cwd=tmp_path)
    assert '"manylinux_2_' in report, report
