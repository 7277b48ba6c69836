"""Write docs/cli.md from the --help pages: ``python scripts/cli_reference.py``."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from wkv.cli import app, installed_commands

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"
INTRODUCTION = """# The `wkv` command

Generated from the `--help` pages by `scripts/cli_reference.py`.

An error is one line on standard error and exit code 1; wrong usage is exit code 2; a text ended
with Ctrl-C is 130, one whose reader closed the pipe 141. `wkv --debug COMMAND …` shows where in the
program an error came from.
"""


def page(*command: str) -> str:
    """The help page of a command, as a section."""
    shown = CliRunner().invoke(
        app, [*command, "--help"], prog_name="wkv", terminal_width=100, color=False
    )
    if shown.exit_code != 0:
        raise RuntimeError(f"wkv {' '.join(command)} --help failed: {shown.output}")
    text = "\n".join(line.rstrip() for line in shown.output.strip().splitlines())
    return f"## {' '.join(('wkv', *command))}\n\n```text\n{text}\n```\n"


def reference() -> str:
    """The whole of docs/cli.md."""
    return "\n".join([INTRODUCTION, page(), *(page(name) for name in installed_commands())])


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
    print(f"wrote {TARGET}")
