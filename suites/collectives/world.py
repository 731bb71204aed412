"""Where a process stands among others: rank, world and meeting point, as torchrun or Slurm's srun say it.

Nothing here starts a process or loads torch; see ``docs/collectives.md`` for the three ways of starting.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from wattline.errors import UsageError

DEFAULT_PORT = 29500
"""Port of the meeting point where nothing names one: torchrun's own default (torch.distributed.run)."""
_FIRST_JOB_PORT, _JOB_PORTS = 20000, 12000  # below the ports that Linux gives away by itself (32768 and above)


@dataclass(frozen=True)
class Place:
    """Where this process stands.

    Attributes:
        rank: its number, from 0.
        world: number of ranks.
        local_rank: its number on its host: which device it takes.
        local_world: ranks on its host; 0: unknown.
        address: host of the meeting point.
        port: its port.
        launcher: ``"torchrun"``, ``"slurm"`` or ``"alone"``.
        store_kept: the launcher itself holds the store that ranks meet at (torchrun's agent does).
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    address: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    launcher: str = "alone"
    store_kept: bool = False

    @property
    def launched(self) -> bool:
        """Whether a launcher started this process as one of its ranks."""
        return self.launcher != "alone"

    def describe(self) -> str:
        """``rank 1 of 4 on host n2``."""
        return f"rank {self.rank} of {self.world} on host {socket.gethostname()}"


def find_place(environ: Mapping[str, str] | None = None) -> Place:
    """The place that the launcher's variables give; alone without any.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT (torch.distributed.run,
    "Environment Variables"); srun sets SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID and the list of nodes (srun(1),
    "OUTPUT ENVIRONMENT VARIABLES"). torchrun's win: it may have been started by srun, one agent per node.

    Args:
        environ: the variables; ``None``: those of the process.

    Raises:
        UsageError: they contradict each other, or one of them is no number.
    """
    env = os.environ if environ is None else environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return _torchrun(env)
    tasks = "SLURM_STEP_NUM_TASKS" in env or "SLURM_NTASKS" in env
    if "SLURM_PROCID" in env and tasks and not in_batch_script(env):
        return _slurm(env)
    return Place()


def in_batch_script(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this is the one process of a Slurm batch script, outside of srun: it has the variables of rank 0, but
    nobody started the others (srun alone sets SLURM_STEP_ID and SLURM_STEP_NUM_TASKS).
    """
    env = os.environ if environ is None else environ
    inside = "SLURM_JOB_ID" in env and "SLURM_PROCID" in env and "RANK" not in env
    return inside and not ("SLURM_STEP_ID" in env or "SLURM_STEP_NUM_TASKS" in env)


def _torchrun(env: Mapping[str, str]) -> Place:
    rank, world = _number(env, "RANK"), _number(env, "WORLD_SIZE")
    place = Place(
        rank=rank,
        world=world,
        local_rank=_number(env, "LOCAL_RANK", rank),
        local_world=_number(env, "LOCAL_WORLD_SIZE", 0),
        address=env.get("MASTER_ADDR", "127.0.0.1"),
        port=_number(env, "MASTER_PORT", DEFAULT_PORT),
        launcher="torchrun",
        store_kept=env.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )
    return _sound(place, "RANK", "WORLD_SIZE")


def _slurm(env: Mapping[str, str]) -> Place:
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
    rank, world = _number(env, "SLURM_PROCID"), _number(env, tasks)
    nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", env.get("SLURM_NODELIST", "")))
    job = env.get("SLURM_JOB_ID", "")
    # One port per job and step, so that two jobs that share a node do not meet each other.
    step = env.get("SLURM_STEP_ID", "0")
    number = (int(job) * 7 + (int(step) if step.isdigit() else 0)) if job.isdigit() else 0
    place = Place(
        rank=rank,
        world=world,
        local_rank=_number(env, "SLURM_LOCALID", 0),
        local_world=_tasks_here(env, world),
        address=env.get("MASTER_ADDR") or (first_host(nodes) if nodes else "127.0.0.1"),
        port=_number(env, "MASTER_PORT", _FIRST_JOB_PORT + number % _JOB_PORTS),
        launcher="slurm",
    )
    return _sound(place, "SLURM_PROCID", "SLURM_NTASKS")


def _tasks_here(env: Mapping[str, str], world: int) -> int:
    """Ranks on this host from ``2(x3),1`` (twos on three nodes, then a one); 0 where it does not say."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", ""))
    counts: list[int] = []
    for part in text.split(",") if text else ():
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            return 0
        counts += [int(found[1])] * int(found[2] or 1)
    node = env.get("SLURM_NODEID", "0")
    if not counts:
        return world if "SLURM_JOB_ID" not in env else 0
    return counts[int(node)] if node.isdigit() and int(node) < len(counts) else 0


def first_host(nodes: str) -> str:
    """The first host of a Slurm list: ``n[008-011,20],m1`` begins with ``n008``.

    Raises:
        UsageError: it cannot be read.
    """
    found = re.match(r"([^\[\],]+)(?:\[(\d+)[^\]]*\]([^\[\],]*))?", nodes.strip())
    if found is None:
        raise UsageError(
            f"cannot read Slurm's list of nodes {nodes!r}", todo="set MASTER_ADDR to the host of rank 0"
        )
    return found[1] + (found[2] or "") + (found[3] or "")


def _number(env: Mapping[str, str], name: str, otherwise: int | None = None) -> int:
    text = env.get(name)
    if text is None and otherwise is not None:
        return otherwise
    try:
        return int(text or "")
    except ValueError:
        raise UsageError(
            f"the variable {name} is no whole number", why=f"it is {text!r}",
            todo="start with torchrun or srun, which set it; or unset it",
        ) from None  # fmt: skip


def _sound(place: Place, rank: str, world: str) -> Place:
    if not 0 <= place.rank < place.world:
        raise UsageError(
            f"the launcher's variables contradict each other: {rank}={place.rank}, {world}={place.world}",
            todo="start with torchrun or srun, which set both; or unset them",
        )
    if not 0 < place.port < 65536:
        raise UsageError(f"the port {place.port} of the meeting point is none", todo="set MASTER_PORT to a free port")
    return place
