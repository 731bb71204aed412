"""A command group that imports a command's module only when that command is called.

`--help` lists names and one-line helps from the static table :data:`COMMANDS`; calling (or completing) a command
imports ``wattline.cli.<name>`` and reads its function ``command`` and its text ``EXAMPLES``.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS: dict[str, str] = {
    "doctor": "What this machine has, lacks, and how to get it.",
    "list": "List operations, presets, devices or number formats.",
    "plan": "Show the cases that bench would run; touches nothing.",
    "calibrate": "Find how the power sensor of this machine reads.",
    "bench": "Measure, learn and report.",
    "import": "Import measurements that other programs wrote.",
    "fit": "Fit a predictor on runs and imported data.",
    "predict": "Predict the time and energy of an operation.",
    "links": "Fit latency and bandwidth of collectives.",
    "report": "Write the report of one or several runs: one HTML file.",
    "compare": "What changed between two runs, beyond the noise.",
    "export": "Write a run: csv, json, nccl-tests, parquet, perfetto.",
}
"""Every command with its one-line help, in the order of `--help`."""

HELP_FLAGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}
"""Settings of a command that shows its help on either."""


def load_command(name: str, markup: Any) -> Any:
    """Import the module of a command and make the command.

    Args:
        name: a key of :data:`COMMANDS`.
        markup: Typer's markup mode, ``None`` for plain help.
    """
    module = import_module(f"wattline.cli.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=markup)
    app.command(name, short_help=COMMANDS[name], epilog=module.EXAMPLES, context_settings=HELP_FLAGS)(module.command)
    return typer.main.get_command(app)


def refuse_empty(args: Sequence[str]) -> None:
    """Refuse a value without a character.

    No command means anything by one, and a path would silently become the current folder. It comes from a variable of
    the shell that is not set: ``--out "$RUN"``.

    Args:
        args: the command's name and what follows it.

    Raises:
        UsageError: one of them is empty, or an option is (``--out=``).
    """
    for before, word in pairwise(args):
        flag, equals, value = word.partition("=")
        if word and not (flag.startswith("--") and equals and not value):
            continue
        from wattline.errors import UsageError

        raise UsageError(
            f"the value of {flag} is empty" if flag else f"the value behind {before!r} is empty",
            why="nothing is called that; a shell variable that is not set looks so",
            todo="write the value, or leave the option out",
        )


class LazyGroup(TyperGroup):
    """Holds a stand-in per command, and puts the real one in its place when it is resolved."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, text in COMMANDS.items():
            self.add_command(TyperCommand(name, help=text, rich_markup_mode=self.rich_markup_mode))
        self._loaded: set[str] = set()

    def invoke(self, ctx: Any) -> Any:
        """Run the command; Ctrl-C becomes Typer's abort, which its caller sees (Typer itself would say nothing)."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that ``args`` begin with, importing it first.

        Raises:
            UnknownNameError: there is no such command.
        """
        if args and args[0] not in COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from wattline.errors import unknown_name

            raise unknown_name("command", args[0], COMMANDS, listing="wattline --help")
        if not ctx.resilient_parsing:
            refuse_empty(args)
        if args and args[0] in COMMANDS and args[0] not in self._loaded:
            self.add_command(load_command(args[0], self.rich_markup_mode), args[0])
            self._loaded.add(args[0])
        return super().resolve_command(ctx, args)
