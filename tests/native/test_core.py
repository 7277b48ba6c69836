"""The C++ core's own tests: under sanitizers, and under emulation of another processor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LONG = 1500  # seconds; a build on two busy cores takes minutes


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}")


def build(name: str, target: str, *options: str) -> Path:
    """A target of native/tests, built in a folder that stays, so that later runs only rebuild."""
    folder = ROOT / "build" / "tests" / name
    for command in (
        ["cmake", "-S", str(ROOT / "native" / "tests"), "-B", str(folder), *options],
        ["cmake", "--build", str(folder), "--target", target, "--parallel", "2"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / target


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


def sanitized(sanitizers: str) -> list[str]:
    return ["-DCMAKE_BUILD_TYPE=None", f"-DWKV_SANITIZE={sanitizers}"]


def test_kernels_and_engine_are_clean_under_address_and_undefined_behaviour_sanitizers():
    need("cmake", "c++")
    program = build("asan", "engine_test", *sanitized("address,undefined"))
    assert "all good" in run([str(program)], ASAN_OPTIONS="detect_leaks=0")


def test_threads_are_clean_under_the_thread_sanitizer():
    need("cmake", "c++")
    program = build("tsan", "engine_test", *sanitized("thread"), "-DWKV_PORTABLE_ONLY=ON")
    assert "all good" in run([str(program)], TSAN_OPTIONS="halt_on_error=1")


def test_neon_kernels_equal_the_reference_under_emulation():
    need("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
    program = build(
        "neon",
        "engine_test",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
        "-DCMAKE_CXX_FLAGS=-O1",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    out = run(["qemu-aarch64", str(program)])
    assert "neon: good" in out
    assert "all good" in out


def test_a_fuzzer_finds_nothing_in_the_kernels(tmp_path):
    need("cmake", "clang++")
    program = build(
        "fuzz",
        "fuzz_kernels",
        "-DCMAKE_CXX_COMPILER=clang++",
        "-DWKV_FUZZ=ON",
        *sanitized("address,undefined,fuzzer-no-link"),
        "-DWKV_PORTABLE_ONLY=ON",
    )
    run([str(program), "-runs=3000", "-seed=1", "-max_len=600", str(tmp_path)])
