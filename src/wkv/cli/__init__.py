"""The ``wkv`` command. A command's module is imported when the command is used, not before."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import WkvError

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
CLOSED_PIPE = 141  # 128 + SIGPIPE


class _Command(NamedTuple):
    module: str
    function: str
    help: str  # one line for the list of commands, so that listing imports nothing


# In the order of the list. Each module has a plain function with typer's annotations.
COMMANDS = {
    "generate": _Command("generate", "generate", "Write text that continues a prompt."),
    "info": _Command("info", "info", "Say what a model or state file holds."),
    "convert": _Command("convert", "convert", "Convert weights from one format into another."),
    "quantize": _Command("quantize", "quantize", "Store a model in 8 or 4 bits a weight."),
    "train": _Command("train", "train", "Train or fine-tune a model."),
    "bench": _Command("bench", "bench", "Measure speed and memory on this machine."),
}


class _LazyGroup(TyperGroup):
    """Lists the commands that are installed, and imports the one that is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        return installed_commands()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in installed_commands():
            return None
        entry = COMMANDS[cmd_name]
        module = importlib.import_module(f".{entry.module}", __name__)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name)(getattr(module, entry.function))
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in installed_commands()])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = installed_commands()
        if args and args[0] not in names and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(names)}"
            ctx.fail(f"no command {args[0]!r}; {hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run, and turn what may go wrong into one line and an exit code."""
        try:
            return super().invoke(ctx)
        except WkvError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo("wkv: " + " ".join(str(error).splitlines()), err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # Whoever read our output has enough of it.
            _drop_output()
            raise typer.Exit(CLOSED_PIPE) from None
        except OSError as error:
            # Not foreseen by the command, such as a full disk under its output.
            if ctx.params.get("debug"):
                raise
            where = f"{str(error.filename)[:200]}: " if error.filename is not None else ""
            typer.echo(f"wkv: {where}{error.strerror or error}", err=True)
            _drop_output()
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wkv {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the program an error came from.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """RWKV language models: trained like a transformer, run like an RNN."""


def main() -> None:
    """Entry point of the ``wkv`` script."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    app(prog_name="wkv")


def _drop_output() -> None:
    """Lead what is left in the buffer nowhere: Python would complain when it flushes at its end."""
    with contextlib.suppress(OSError, ValueError):  # an output without a descriptor
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def installed_commands() -> list[str]:
    """The commands that this installation has, in the order in which they are listed."""
    return [
        name
        for name, command in COMMANDS.items()
        if importlib.util.find_spec(f"{__name__}.{command.module}") is not None
    ]
