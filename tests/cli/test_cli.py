from __future__ import annotations

import errno
import importlib.util
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wkv import cli
from wkv.errors import StateError

ROOT = Path(__file__).parents[2]


def run(*arguments: str):
    return CliRunner().invoke(cli.app, arguments, prog_name="wkv")


def test_help_lists_every_installed_command_without_importing_it():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom wkv.cli import app\n"
            "try: app(['--help'])\nexcept SystemExit: pass\n"
            "heavy = {'numpy', 'torch', 'transformers', 'rich', 'tokenizers', 'wkv.cli.generate'}\n"
            "print(heavy & set(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("set()")
    for name in cli.installed_commands():
        assert f"\n  {name} " in done.stdout


def test_help_takes_less_than_a_fifth_of_a_second():
    """Processor time, so that a busy machine does not matter; the best of a few."""
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "wkv", "--help"], stdout=subprocess.DEVNULL, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.2


@pytest.mark.parametrize("name", cli.installed_commands())
def test_every_command_has_a_help_page(name):
    done = run(name, "--help")
    assert done.exit_code == 0, done.output
    assert f"Usage: wkv {name}" in done.output


def test_a_command_that_is_not_installed_is_not_offered(monkeypatch):
    monkeypatch.setitem(cli.COMMANDS, "dream", cli._Command("dream", "dream", "Not written yet."))
    assert "dream" not in cli.installed_commands()
    assert "dream" not in run("--help").output
    done = run("dream")
    assert done.exit_code == 2
    assert "no command 'dream'" in done.output


def test_a_command_that_is_misspelt_is_guessed():
    done = run("generat")
    assert done.exit_code == 2
    assert "did you mean 'generate'?" in done.output


def test_the_version_is_shown():
    from wkv import __version__

    assert run("--version").output == f"wkv {__version__}\n"


def failing(monkeypatch, error):
    """Put a command that fails into the table."""
    module = type(sys)("wkv.cli.failing")
    module.__spec__ = importlib.util.spec_from_loader("wkv.cli.failing", None)

    def command() -> None:
        raise error

    module.command = command
    monkeypatch.setitem(sys.modules, "wkv.cli.failing", module)
    monkeypatch.setitem(cli.COMMANDS, "failing", cli._Command("failing", "command", ""))


def test_an_error_is_one_line_and_debug_shows_where_it_came_from(monkeypatch):
    failing(monkeypatch, StateError("this state\nbelongs elsewhere"))
    done = run("failing")
    assert done.exit_code == 1
    assert done.stderr == "wkv: this state belongs elsewhere\n"
    assert done.stdout == ""
    done = run("--debug", "failing")
    assert isinstance(done.exception, StateError)


def test_a_failure_of_the_system_is_one_line_too(monkeypatch):
    failing(monkeypatch, PermissionError(errno.EACCES, "Permission denied", "/x/y"))
    done = run("failing")
    assert (done.exit_code, done.stderr) == (1, "wkv: /x/y: Permission denied\n")
    assert isinstance(run("--debug", "failing").exception, PermissionError)


def test_an_interrupt_is_quiet_and_exits_as_shells_expect(monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    done = run("failing")
    assert done.exit_code == 130
    assert done.output == ""


def test_the_reference_in_docs_is_current():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts/cli_reference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text(encoding="utf-8") == script.reference(), (
        "run: python scripts/cli_reference.py"
    )
