"""Errors as a person reads them: what, why and what to do, on stderr."""

from __future__ import annotations

import typer

from wattline.errors import WattlineError, storage_error


def show_error(error: Exception, *, debug: bool = False, command: str = "") -> int:
    """Print an error and return its exit code.

    A :class:`~wattline.errors.WattlineError` gives up to three lines (``error:``, its cause, ``do:``); a wrong
    use of a command names the command's help; anything else is a bug, told in one line with the way to see more.

    Args:
        error: what was raised.
        debug: the traceback has been printed, so the reader need not be told how to get it.
        command: that was called, for errors that do not say so themselves (a last option without its value).
    """
    if isinstance(error, WattlineError):
        return show(error)
    if isinstance(error, OSError):
        # One without a file's name comes from a stream that was open all along: our output, into a full disk.
        where = ("reading or writing", error.filename) if error.filename else ("writing", "the output")
        return show(storage_error(error, *where))
    message = getattr(error, "format_message", None)
    if callable(message):  # click's (or Typer's own) usage errors
        path = getattr(getattr(error, "ctx", None), "command_path", f"wattline {command}".strip())
        return show(WattlineError(_one_line(str(message())), todo=f"`{path} --help` shows what it takes"))
    what = f"{type(error).__name__}: {_one_line(str(error))}" if str(error) else type(error).__name__
    todo = "report it with the traceback above" if debug else "run again with --debug to see where"
    return show(WattlineError(f"unexpected {what}", todo=todo))


def show(error: WattlineError) -> int:
    """Print the lines of an error that says what, why and what to do; returns its exit code."""
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {_one_line(error.what)}", err=True)
    if error.why:
        typer.echo(f"  {_one_line(error.why)}", err=True)
    if error.todo:
        typer.echo(f"  do: {_one_line(error.todo)}", err=True)
    return error.exit_code


def _one_line(text: str) -> str:
    return " ".join(text.split())
