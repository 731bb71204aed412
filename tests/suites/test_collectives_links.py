"""Several hosts on one machine: network namespaces with links whose bandwidth (and latency) is set, and found again.

They are made and removed here; where that is not allowed, or the kernel cannot shape a link, the tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from wattline.predictors.links import fit_links
from wattline.run import Run

RATE = 50e6 / 8 * 1448 / 1514
"""Bytes/s of data: of each 1514 bytes on the link 1448 are (Ethernet, IP and TCP with time stamps)."""
DELAY_S = 10e-3
Network = Callable[[int], list[str]]
NET = "10.213.77."


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def network() -> Iterator[Network]:
    """Makes namespaces that stand for hosts, each with `veth0`: two on one cable, or more on a switch."""
    if not (shutil.which("ip") and shutil.which("tc")):
        pytest.skip("ip and tc (iproute2) are not installed")
    made: list[str] = []

    def space(name: str) -> str:
        ip("netns", "add", name)
        made.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    def make(count: int) -> list[str]:
        try:
            names = [space(f"wl{os.getpid()}-{i}") for i in range(count)]
            if count == 2:
                ip("-n", names[0], "link", "add", "veth0", "type", "veth", "peer", "name", "veth0", "netns", names[1])
            else:
                switch = space(f"wl{os.getpid()}-switch")
                ip("-n", switch, "link", "add", "br0", "type", "bridge")
                ip("-n", switch, "link", "set", "br0", "up")
                for i, name in enumerate(names):
                    ip("-n", name, "link", "add", "veth0", "type", "veth", "peer", "name", f"port{i}", "netns", switch)
                    ip("-n", switch, "link", "set", f"port{i}", "master", "br0", "up")
            for i, name in enumerate(names):
                ip("-n", name, "addr", "add", f"{NET}{i + 1}/24", "dev", "veth0")
                ip("-n", name, "link", "set", "veth0", "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces may not be made here: {error.stderr.strip()}")
        return names

    try:
        yield make
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def shaped(names: Sequence[str], *how: str) -> str:
    """Shape what these hosts send; returns what the kernel says against it."""
    for name in names:
        done = subprocess.run(
            ["ip", "netns", "exec", name, "tc", "qdisc", "replace", "dev", "veth0", "root", *how],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return done.stderr.strip()
    return ""


MESSAGES = ("collectives.broadcast", "-b", "64K", "-e", "1M", "-f", "2")
"""Above what the limiter lets through in one go."""


def measured(names: Sequence[str], out: Path, *what: str) -> Run:
    """A run with a rank on each host, started as srun starts them."""
    line = [
        sys.executable, "-m", "wattline.cli", "bench", *what, "-n", "7", "-w", "1", "--device", "cpu", "--no-fit",
        "--no-report", "--timeout", "60s", "--out", str(out),
    ]  # fmt: skip
    started = []
    for rank, name in enumerate(names):
        env = os.environ | {
            "SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(len(names)),
            "SLURM_NODEID": str(rank), "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": f"1(x{len(names)})",
            "MASTER_ADDR": f"{NET}1", "MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "veth0",
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
    assert {record.status for record in run.records()} == {"ok"}
    return run


def test_the_bandwidth_of_a_link_is_found(network: Network, tmp_path: Path) -> None:
    hosts = network(2)
    refused = shaped(hosts, "tbf", "rate", "50mbit", "burst", "16kb", "latency", "1000ms")
    if refused:
        pytest.skip(f"this kernel cannot limit the rate of a link: {refused}")
    (fitted,) = fit_links(measured(hosts, tmp_path / "run", *MESSAGES))
    assert fitted.model is not None
    assert fitted.model.segments[-1].bandwidth.value == pytest.approx(RATE, rel=0.1)


def test_latency_and_bandwidth_of_a_link_are_found(network: Network, tmp_path: Path) -> None:
    hosts = network(2)
    refused = shaped(hosts, "netem", "delay", f"{DELAY_S * 1e3:g}ms", "rate", "50mbit")
    if refused:
        pytest.skip(f"this kernel cannot delay packets (netem): {refused}")
    (fitted,) = fit_links(measured(hosts, tmp_path / "run", *MESSAGES))
    assert fitted.model is not None
    segment = fitted.model.segments[-1]
    assert segment.bandwidth.value == pytest.approx(RATE, rel=0.1)
    assert segment.alpha_s.value == pytest.approx(DELAY_S, rel=0.1)


def test_a_host_behind_a_slow_link_shows_in_the_matrix(network: Network, tmp_path: Path) -> None:
    hosts = network(4)
    refused = shaped(hosts[3:], "tbf", "rate", "50mbit", "burst", "16kb", "latency", "1000ms")
    if refused:
        pytest.skip(f"this kernel cannot limit the rate of a link: {refused}")
    slow: list[set[tuple[int, int]]] = []
    for turn in range(3):
        what = ("collectives.p2p_matrix", "--set", "bytes=524288", "--set", "way=one")
        (record,) = measured(hosts, tmp_path / f"run{turn}", *what).records()
        assert record.measurement is not None
        facts = record.measurement.facts
        slow.append({(i, j) for i, j in facts["slow_pairs"]})
        if len(slow[-1]) == 3:
            break  # other tests may hold up another pair for a moment, but not the same one every time
    # What host 3 sends goes through the slow link; what it receives does not.
    assert set.intersection(*slow) == {(3, 0), (3, 1), (3, 2)}
    for pair in facts["matrix_bytes_per_s"][3][:3]:
        assert pair == pytest.approx(RATE, rel=0.25)
    assert facts["slowest_pair"][0] == 3
