"""Runs of several ranks: what `--ranks` and the launcher's variables mean, and the size flags of nccl-tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wattline.cli.options import Selection, literal
from wattline.errors import ParamError, UsageError

if TYPE_CHECKING:
    from wattline.suites.collectives.launch import Launch

_PANEL = "Runs of several ranks"
RanksOption = Annotated[
    int | None,
    typer.Option("--ranks", metavar="N", min=1, rich_help_panel=_PANEL, help="Ranks on this machine (torchrun)."),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option("--timeout", metavar="TIME", rich_help_panel=_PANEL, help="Wait for ranks to join. Default: 60s."),
]
BeginOption = Annotated[
    str | None,
    typer.Option("-b", "--minbytes", metavar="SIZE", rich_help_panel=_PANEL, help="Smallest size, as nccl-tests."),
]
EndOption = Annotated[
    str | None, typer.Option("-e", "--maxbytes", metavar="SIZE", rich_help_panel=_PANEL, help="Largest size.")
]
FactorOption = Annotated[
    int | None,
    typer.Option("-f", "--stepfactor", metavar="N", min=2, rich_help_panel=_PANEL, help="Size to size. Default: 2."),
]
IterationsOption = Annotated[
    int | None,
    typer.Option("-n", "--iters", metavar="N", min=1, rich_help_panel=_PANEL, help="Exactly N timed iterations."),
]
WarmupOption = Annotated[
    int | None,
    typer.Option("-w", "--warmup_iters", metavar="N", min=0, rich_help_panel=_PANEL, help="So many untimed ones."),
]
CheckOption = Annotated[
    int | None,
    typer.Option("-c", "--check", metavar="0|1", min=0, rich_help_panel=_PANEL, help="0: do not check results."),
]

_DEFAULT_END = "32M"  # nccl-tests' own, as is that of -b


@dataclass(frozen=True)
class SizeFlags:
    """The flags of nccl-tests as given; its README names them and their defaults.

    Attributes:
        begin, end: sizes in bytes; K, M and G are powers of 1024, as there.
        factor: from one size to the next.
        iterations, warmup: timed and untimed calls.
        check: 0 turns the check off.
    """

    begin: str | None = None
    end: str | None = None
    factor: int | None = None
    iterations: int | None = None
    warmup: int | None = None
    check: int | None = None

    @property
    def sizes(self) -> list[int]:
        """The sizes that they mean; none where no flag of sizes is given.

        Raises:
            ParamError: a size that cannot be read, or an end before the beginning.
        """
        if self.begin is None and self.end is None and self.factor is None:
            return []
        from wattline.nccl_tests import parse_size

        first = parse_size(self.begin or _DEFAULT_END)
        last = parse_size(self.end) if self.end is not None else max(first, parse_size(_DEFAULT_END))
        if first > last:
            raise ParamError(f"-b {self.begin} is larger than -e {self.end or _DEFAULT_END}", todo="turn them round")
        if first < 1:
            raise ParamError("-b must be above zero", todo="use collectives.barrier for calls without data")
        sizes = [first]
        while sizes[-1] * (self.factor or 2) <= last:
            sizes.append(sizes[-1] * (self.factor or 2))
        return sizes

    def applied(self, selection: Selection) -> Selection:
        """The selection with them in it.

        Sizes choose the collectives of nccl-tests where a whole suite is named, and the regime ``hot``, which is what
        nccl-tests measures.

        Raises:
            UsageError: a flag beside a ``--set`` or ``--measure`` that says the same.
        """
        sizes, measure = self.sizes, list(selection.measure or ())
        for flag, name, value in (
            ("-n", "iterations", self.iterations),
            ("-w", "warmup_iterations", self.warmup),
            ("-c", "check", None if self.check is None else bool(self.check)),
        ):
            if value is None:
                continue
            if any(item.partition("=")[0].strip() == name for item in measure):
                raise UsageError(f"{flag} and --measure {name} say the same", todo="give one of them")
            if literal(str(value)) or name != "warmup_iterations":
                measure.append(f"{name}={str(value).lower()}")
        changed = replace(selection, measure=measure or None)
        if not sizes:
            return changed
        if any(item.partition("=")[0].strip() == "bytes" for item in selection.set_ or ()):
            raise UsageError("-b, -e and -f say the sizes, and so does --set bytes", todo="give one of them")
        from wattline.suites.registry import members
        from wattline.workmodels.collectives import COLLECTIVES

        plain = [op for op in members("collectives") if op.removeprefix("collectives.") in COLLECTIVES]
        names: list[str] = []
        for name in selection.names or ("collectives",):
            names += [op for op in plain if op != "collectives.barrier"] if name == "collectives" else [name]
        set_ = [*(selection.set_ or ()), "bytes=" + ",".join(map(str, sizes))]
        return replace(changed, names=names, set_=set_, regimes=selection.regimes or ["hot"])


def find_launch(
    names: Sequence[str] | None, ranks: int | None, timeout: str | None, device: str, resumed: Path | None = None
) -> Launch | None:
    """How the ranks of a run are started; ``None`` where it is a run of one device.

    Args:
        names: suites and operations that were asked for.
        ranks: `--ranks`.
        timeout: `--timeout`.
        device: for each rank.
        resumed: the run that goes on.

    Raises:
        UsageError: ranks are asked for inside a launcher, or the launcher's variables contradict each other.
        ParamError: the timeout is no duration.
    """
    from wattline.suites.collectives.launch import Launch
    from wattline.suites.collectives.world import find_place, in_batch_script
    from wattline.units import parse_duration

    place = find_place()
    if ranks is None and not _together(names) and not (resumed and (place.launched or _ranks_of(resumed))):
        return None
    wait_s = parse_duration(timeout) if timeout is not None else 60.0
    if place.launched:
        if ranks is not None and ranks != place.world:
            raise UsageError(
                f"--ranks {ranks} inside {place.launcher}, which has started {place.world}",
                todo="leave --ranks out: the launcher says how many there are",
            )
        return Launch(place.world, place, device, wait_s)
    if ranks is None and in_batch_script():
        raise UsageError(
            "this is the one process of a Slurm batch script, not a rank",
            todo="start the ranks with `srun wattline bench collectives`, or give --ranks for this node alone",
        )
    return Launch(ranks or (_ranks_of(resumed) if resumed else 0) or 1, place, device, wait_s)


def _together(names: Sequence[str] | None) -> bool:
    from wattline.suites.registry import get, select

    return bool(names) and any(get(op).workload.distributed for op in select(list(names or ())))


def _ranks_of(folder: Path) -> int:
    """The ranks that a run was planned for; 0 where it is one of a single device, or cannot be read yet."""
    from wattline.errors import WattlineError
    from wattline.run import Run

    try:
        return int((Run(folder).manifest.get("plan") or {}).get("ranks", 0))
    except WattlineError:
        return 0


def be_member(launch: Launch) -> int:
    """Be one of the ranks beside rank 0, until it says that the run has ended; does not return."""
    from wattline.suites.collectives.member import main

    return main(["--device", launch.device, "--timeout", f"{launch.timeout_s:g}"])
