"""The same job by fio (https://github.com/axboe/fio), where it is installed: how far two programs agree."""

from __future__ import annotations

import json
import os
import subprocess

from wattline.errors import UnsupportedError
from wattline.suites.host.buffers import HUGE
from wattline.suites.storage.jobs import Job
from wattline.suites.workload import ParamValues

SECONDS = 2


def fio_command(p: ParamValues, filename: str, *, direct: bool, writes: bool, seconds: float = SECONDS) -> list[str]:
    """The command line of the job that a case describes.

    Args:
        p: the case.
        filename: the file.
        direct: past the page cache.
        writes: into the file.
        seconds: for how long.
    """
    kind = ("rand" if p["pattern"] == "random" else "") + ("write" if writes else "read")
    threads = int(p["threads"])
    share = int(p["bytes"]) // threads
    engine = "mmap" if p["access"] == "mmap" else "libaio" if int(p["depth"]) > 1 else "psync"
    command = [
        "fio", "--name=wattline", f"--filename={filename}", f"--rw={kind}", f"--bs={int(p['block'])}",
        f"--ioengine={engine}", f"--iodepth={int(p['depth'])}", f"--direct={int(direct)}", f"--numjobs={threads}",
        f"--size={share}", f"--offset_increment={share}", "--thread", "--group_reporting", "--time_based",
        f"--runtime={seconds * 1000:.0f}ms", f"--invalidate={int(p['cache'] == 'cold')}", "--output-format=json",
        "--allow_file_create=0",
        # What is written was made before on our side too: fio would change its buffer anew for every block.
        "--scramble_buffers=0",
    ]  # fmt: skip
    if p["pages"] == "huge":
        command.append(f"--iomem_align={HUGE}")  # see fio_environment
    sync = str(p.get("sync", "none"))
    if writes and sync == "block":
        command.append("--fdatasync=1")
    elif writes and sync == "call":
        from wattline.workmodels.storage import span_of

        command.append(f"--fdatasync={int(span_of(p)) // int(p['block']) // threads}")
    return command


def fio_environment(p: ParamValues) -> dict[str, str]:
    """The environment that gives fio memory of the kind that a case asks for.

    Small pages lie where the kernel finds them, and each is a piece of its own for the device: the same large blocks
    go several times as fast into huge ones. fio's own huge pages are those that an administrator sets aside, so its
    allocator is asked for transparent ones, as ours (glibc.malloc.hugetlb; source: the GNU C library's manual, "Memory
    Allocation Tunables").
    """
    found = dict(os.environ)
    if p["pages"] == "huge":
        given = found.get("GLIBC_TUNABLES")
        found["GLIBC_TUNABLES"] = f"{given + ':' if given else ''}glibc.malloc.hugetlb=1"
    return found


def fio_speed(p: ParamValues, job: Job, *, writes: bool, seconds: float = SECONDS) -> float:
    """Bytes per second that fio reaches on the file of a job in so many seconds.

    Raises:
        UnsupportedError: fio failed, with its own words.
    """
    filename = f"/proc/{os.getpid()}/fd/{job.access.scratch.descriptor}"
    command = fio_command(p, filename, direct=job.access.bypasses, writes=writes, seconds=seconds)
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60 + seconds, check=False, env=fio_environment(p)
    )
    try:
        found = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["write" if writes else "read"]
        speed = float(found["bw_bytes"])
    except (ValueError, LookupError):
        speed = 0.0
    if done.returncode != 0 or speed <= 0:
        why = (done.stderr or done.stdout).strip().splitlines()
        raise UnsupportedError("fio could not run the same job", why=why[-1] if why else "", code="fio_failed")
    return speed
