"""The program ``wattline``: global options, exit codes and the shape of errors.

Exit codes: 0 done; 1 a regression or failed cases; 2 wrong use or an error; 130 interrupted (and resumable);
141 the reader of our output went away (as if SIGPIPE had ended us).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from wattline.cli.lazy import COMMANDS, HELP_FLAGS, LazyGroup

USAGE = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

EXAMPLES = "Start with: wattline doctor, wattline plan, wattline bench --preset quick"


def _version(wanted: bool) -> None:
    if wanted:
        from wattline import __version__

        typer.echo(f"wattline {__version__}")
        raise typer.Exit


def _start(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure what kernels cost in seconds and in joules, learn from it, and predict it."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


def build() -> Any:
    """The whole command line as one click group."""
    # Boxes and colours where a person reads; plain text into pipes, files and logs (and no import of Rich there).
    markup: Any = "rich" if sys.stdout.isatty() else None
    app = typer.Typer(cls=LazyGroup, invoke_without_command=True, rich_markup_mode=markup, epilog=EXAMPLES)
    app.callback(cls=LazyGroup, invoke_without_command=True, epilog=EXAMPLES, context_settings=HELP_FLAGS)(_start)
    return typer.main.get_command(app)


def open_streams() -> None:
    """Give standard streams that the caller closed (``wattline list >&-``) to /dev/null.

    Python has ``None`` in their place, and the next file that is opened gets their descriptor: a record would
    then stand where a library prints.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for good


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; ``None`` takes those of the process.

    Returns:
        The exit code.
    """
    open_streams()
    args = list(sys.argv[1:] if argv is None else argv)
    # Taken out here, so that it works before and after the command's name.
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    code = _run(args, debug)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = BROKEN_PIPE
    except OSError as error:  # a full disk behind the output
        if code == 0:
            from wattline.cli.failures import show_error

            code = show_error(error, debug=debug)
    else:
        if code != BROKEN_PIPE:
            return code
    # What is left in the buffer cannot be written: let the flush at exit go nowhere, quietly.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(args: list[str], debug: bool) -> int:
    try:
        result = build().main(args, prog_name="wattline", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # click's way with it: exit 1, which means failed cases here
            return BROKEN_PIPE
        return stop.code if isinstance(stop.code, int) else USAGE if stop.code else 0
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:  # noqa: BLE001 - the outermost caller: every error ends as three lines
        if debug:
            import traceback

            traceback.print_exception(error)
        from wattline.cli.failures import show_error

        return show_error(error, debug=debug, command=next((word for word in args if word in COMMANDS), ""))
