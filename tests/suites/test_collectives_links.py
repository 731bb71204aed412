"""Two hosts on one machine: network namespaces with a link whose bandwidth (and latency) is set, and found again.

They are made and removed here; where that is not allowed, or the kernel cannot shape a link, the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from wattline.predictors.links import fit_links
from wattline.run import Run

RATE = 50e6 / 8 * 1448 / 1514
"""Bytes/s of data: of each 1514 bytes on the link 1448 are (Ethernet, IP and TCP with time stamps)."""
DELAY_S = 10e-3
ADDRESSES = ("10.213.77.1", "10.213.77.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """The names of two namespaces with a link between them, `veth0` in each."""
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("ip and tc (iproute2) are not installed")
    names = (f"wl{os.getpid()}a", f"wl{os.getpid()}b")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("-n", names[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", names[1])
            for name, address in zip(names, ADDRESSES, strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", "veth0")
                ip("-n", name, "link", "set", "veth0", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces may not be made here: {error.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def shaped(names: tuple[str, str], *how: str) -> str:
    """Shape both directions of the link; returns what the kernel says against it."""
    for name in names:
        done = subprocess.run(
            ["ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "veth0", "root", *how],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.stderr.strip()
    return ""


def measured(names: tuple[str, str], out: Path) -> Run:
    """Messages of 64 KiB to 1 MiB (above what the limiter lets through in one go) from one host to the other, by a rank
    on each, started as srun starts them."""
    line = [
        sys.executable, "-m", "wattline.cli", "bench", "collectives.broadcast", "-b", "64K", "-e", "1M", "-f", "2",
        "-n", "7", "-w", "1", "--device", "cpu", "--no-fit", "--no-report", "--timeout", "60s", "--out", str(out),
    ]  # fmt: skip
    started = []
    for rank, name in enumerate(names):
        env = os.environ | {
            "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NTASKS": "2",
            "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
            "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "veth0",
        }  # fmt: skip
        there = ["ip", "netns", "exec", name, *line]
        started.append(subprocess.Popen(there, stderr=subprocess.PIPE, text=True, env=env))
    try:
        for process in started:
            _, errors = process.communicate(timeout=150)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
    run = Run(out)
    assert [record.status for record in run.records()] == ["ok"] * 5
    return run


def test_the_bandwidth_of_a_link_is_found(hosts: tuple[str, str], tmp_path: Path) -> None:
    refused = shaped(hosts, "tbf", "rate", "50mbit", "burst", "16kb", "latency", "1000ms")
    if refused:
        pytest.skip(f"this kernel cannot limit the rate of a link: {refused}")
    (fitted,) = fit_links(measured(hosts, tmp_path / "run"))
    assert fitted.model is not None
    assert fitted.model.segments[-1].bandwidth.value == pytest.approx(RATE, rel=0.1)


def test_latency_and_bandwidth_of_a_link_are_found(hosts: tuple[str, str], tmp_path: Path) -> None:
    refused = shaped(hosts, "netem", "delay", f"{DELAY_S * 1e3:g}ms", "rate", "50mbit")
    if refused:
        pytest.skip(f"this kernel cannot delay packets (netem): {refused}")
    (fitted,) = fit_links(measured(hosts, tmp_path / "run"))
    assert fitted.model is not None
    segment = fitted.model.segments[-1]
    assert segment.bandwidth.value == pytest.approx(RATE, rel=0.1)
    assert segment.alpha_s.value == pytest.approx(DELAY_S, rel=0.1)
