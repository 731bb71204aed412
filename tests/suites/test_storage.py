"""Storage: right blocks in the right places, checkpoints, content, wrong questions, and fio beside it."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wattline.errors import UnsupportedError, UsageError
from wattline.params import Value
from wattline.stats import summarize
from wattline.suites.fills import Builder
from wattline.suites.registry import get, get_implementation
from wattline.suites.storage import place
from wattline.suites.workload import Kernel, Machine

pytest.importorskip("torch")
pytest.importorskip("numba")
if not hasattr(os, "O_TMPFILE"):
    pytest.skip("storage is measured on Linux", allow_module_level=True)
CPU = Machine(kind="cpu", torch_version=(2, 13))
Built = Callable[..., tuple[dict[str, Value], Kernel]]


@pytest.fixture
def built(disk: str) -> Iterator[Built]:
    contexts = []

    def make(op: str, **given: Value) -> tuple[dict[str, Value], Kernel]:
        p = get(op).workload.params.parse({"path": disk, **given}, op=op)
        implementation = get_implementation(op, "posix")
        assert implementation.unmet(p, CPU) is None
        contexts.append(Builder("cpu", CPU, seed=3))
        return p, implementation.build(p, contexts[-1])

    yield make
    for context in contexts:
        context.close()


def run(kernel: Kernel) -> None:
    if kernel.prepare is not None:
        kernel.prepare()
    kernel.call()


WAYS: list[dict[str, Value]] = [
    {"bytes": 1 << 20, "block": 4096},
    {"bytes": 1 << 20, "block": 4096, "depth": 7, "pattern": "random", "span": 1 << 18},
    {"bytes": 3 << 18, "block": 1 << 16, "threads": 3, "depth": 2, "pattern": "random"},
    {"bytes": 1 << 20, "block": 1 << 18, "pages": "huge"},
    {"bytes": 1 << 20, "block": 4096, "access": "buffered", "pattern": "random", "span": 3 << 12},
    {"bytes": 1001 * 999, "block": 999, "access": "buffered", "cache": "warm"},
    {"bytes": 1001 * 999, "block": 1001, "access": "mmap", "threads": 1, "span": 1001 * 333},
    {"bytes": 1 << 20, "block": 1 << 14, "access": "mmap", "threads": 2, "pattern": "random", "cache": "warm"},
]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("op", ["storage.read", "storage.write"])
def test_every_block_is_moved_and_a_wrong_byte_is_found(built: Built, op: str, way: dict[str, Value]) -> None:
    p, kernel = built(op, **way)
    workload = get(op).workload
    job = kernel.inputs["job"]
    visited: list[int] = []
    calls = 2 * int(p["bytes"]) // max(1, int(p["span"]) or int(p["bytes"]))
    for _ in range(calls):
        run(kernel)
        visited += np.concatenate(job.offsets).tolist()
        assert workload.check(p, kernel, None)[0] == 0
    # Round and round: every block of the file once before any of them twice.
    assert sorted(set(visited)) == list(range(0, int(p["bytes"]), int(p["block"])))
    counts = np.unique(visited, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    place_of = int(job.offsets[0][-1]) + int(p["block"]) - 1
    if op == "storage.read":
        job.memory[job.places(0)[-1] + int(p["block"]) - 1] ^= 1
    else:
        before = os.pread(job.access.scratch.descriptor, 1, place_of)
        os.pwrite(job.access.scratch.descriptor, bytes([before[0] ^ 1]), place_of)
    error, allowed, _ = workload.check(p, kernel, None)
    assert error > allowed
    found = workload.findings(p, [kernel], summarize([0.5, 0.5, 0.5]))
    span = int(p["span"]) or int(p["bytes"])
    assert found["bytes_per_s"] == 2 * span
    assert found["requests_per_s"] == pytest.approx(2 * span / int(p["block"]))
    assert 0 < found["block_p50_s"] <= found["block_p99_s"] <= found["block_max_s"]
    assert workload.footprint(p) == span


@pytest.mark.parametrize(("sync", "access"), [("none", "buffered"), ("block", "buffered"), ("block", "direct")])
def test_writes_are_synced_as_asked(built: Built, sync: str, access: str, monkeypatch: pytest.MonkeyPatch) -> None:
    p, kernel = built("storage.write", bytes=1 << 16, block=4096, sync=sync, access=access)
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(fd) or real(fd))
    kernel.call()
    assert not synced  # not after the call: after every block, inside the compiled loop, or never
    assert get("storage.write").workload.check(p, kernel, None)[0] == 0


def test_the_page_cache_is_dropped_and_the_record_says_so(built: Built) -> None:
    for access in ("buffered", "mmap"):
        _, kernel = built("storage.read", bytes=1 << 22, access=access)
        assert kernel.facts["page_cache"].startswith("dropped")
        job = kernel.inputs["job"]
        run(kernel)
        assert job.access.cached_share() > 0.9
        assert kernel.prepare is not None
        kernel.prepare()
        # Other file systems than those of Linux's own may keep pages; the fact tells.
        assert job.access.cached_share() == pytest.approx(kernel.facts["cached_after_drop"], abs=0.05)
        _, warm = built("storage.read", bytes=1 << 22, access=access, cache="warm")
        assert warm.prepare is None
        assert warm.inputs["job"].access.cached_share() == 1.0


def test_a_file_system_without_direct_access_is_named(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: place.Scratch, flags: int) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(place.Scratch, "again", refuse)
    p, kernel = built("storage.read", bytes=1 << 20, block=1 << 16, depth=4)
    assert kernel.facts["access_used"] == "buffered"
    assert "refuses O_DIRECT" in kernel.facts["direct_refused"]
    assert kernel.facts["page_cache"].startswith("dropped")
    run(kernel)
    assert get("storage.read").workload.check(p, kernel, None)[0] == 0
    _, saved = built("storage.checkpoint", bytes=1 << 16, access="direct", step_s=0)
    assert saved.facts["access_used"] == "buffered"


def test_blocks_that_the_device_refuses_are_unsupported(disk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "preadv", refuse)
    p = get("storage.read").workload.params.parse({"path": disk, "bytes": 1 << 16, "block": 512})
    context = Builder("cpu", CPU)
    with pytest.raises(UnsupportedError, match="blocks of 512 bytes") as error:
        get_implementation("storage.read", "posix").build(p, context)
    context.close()
    assert error.value.code == "unaligned"


def test_a_block_that_does_not_move_is_an_error(built: Built) -> None:
    _, kernel = built("storage.read", bytes=1 << 20, block=1 << 16, access="buffered", cache="warm")
    os.ftruncate(kernel.inputs["job"].access.scratch.descriptor, 1 << 19)
    with pytest.raises(OSError, match="not all were moved"):
        kernel.call()


@pytest.mark.parametrize("more", [{}, {"shards": 5, "writers": 3}, {"access": "direct", "shards": 2}], ids=str)
@pytest.mark.parametrize("mode", ["blocking", "snapshot"])
def test_checkpoints_hold_the_state_of_their_moment(built: Built, mode: str, more: dict[str, Value]) -> None:
    p, kernel = built("storage.checkpoint", bytes=40 * 4096, mode=mode, steps=3, step_s=1e-4, **more)
    workload, training = get("storage.checkpoint").workload, kernel.inputs["training"]
    for _ in range(3):
        kernel.call()
        assert workload.check(p, kernel, None)[0] == 0
    assert training.version < training.state[0] - training.start[0]  # the state went on
    found = workload.findings(p, [kernel], summarize([0.5, 0.5, 0.5]))
    assert found["stall_s"] == pytest.approx(0.5 - found["compute_alone_s"])
    assert found["write_bytes_per_s"] == pytest.approx(40 * 4096 / found["write_s"])
    assert ("snapshot_s" in found) == (mode == "snapshot")
    os.pwrite(training.files[-1].descriptor, b"\x55\xaa\x55", 17)
    assert workload.check(p, kernel, None)[0] > 0


def test_a_checkpoint_of_a_state_that_changes_meanwhile_is_found(built: Built) -> None:
    p, kernel = built("storage.checkpoint", bytes=64 * 4096, mode="snapshot", step_s=0)
    training = kernel.inputs["training"]
    training.staging = training.state[:]  # no copy: the writer sees the steps' changes
    kernel.call()
    training.state[::512] += 1
    view = memoryview(training.state).cast("B")
    training._save(0, view)
    assert get("storage.checkpoint").workload.check(p, kernel, None)[0] > 0


def test_a_writer_that_fails_fails_the_call(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    _, kernel = built("storage.checkpoint", bytes=1 << 16, mode="snapshot", step_s=0)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        kernel.call()


@pytest.mark.parametrize(
    ("op", "wrong", "says"),
    [
        ("storage.read", {"bytes": 0}, "bytes"),
        ("storage.read", {"bytes": 1000 << 10, "block": 1000}, "multiples of 512"),
        ("storage.read", {"bytes": 1 << 20, "block": 3000, "access": "buffered"}, "multiples of block"),
        ("storage.read", {"bytes": 1 << 20, "span": 1 << 21}, "no more than bytes"),
        ("storage.read", {"bytes": 1 << 20, "depth": 2, "access": "mmap", "block": 4096}, "depth above 1"),
        ("storage.write", {"bytes": 1 << 20, "sync": "block", "depth": 2, "block": 4096}, "sync = block"),
        ("storage.checkpoint", {"bytes": 4096, "shards": 2}, "for each shard"),
        ("storage.checkpoint", {"bytes": 5000}, "multiple of it"),
        ("storage.read", {"bytes": 1 << 20, "path": "a\nb"}, "printable"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused(op: str, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        get(op).workload.params.parse(wrong, op=op)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 1 << 16), st.integers(1, 1 << 14), st.integers(0, 9))
def test_content_follows_from_its_position(size: int, block: int, seed: int) -> None:
    from wattline.suites.storage.content import Content

    content = Content(size, block, seed)
    whole = content.expected(0, size)
    assert len(whole) == size
    begin = size // 3
    assert np.array_equal(content.expected(begin, size - begin), whole[begin:])
    if size > 64:
        assert not np.array_equal(Content(size, block, seed + 1).expected(0, size), whole)


def test_content_repeats_after_its_period_only(disk: str) -> None:
    from wattline.suites.storage.content import PERIOD, Content, period_of

    assert period_of(1 << 30, 3 << 20) == PERIOD // (3 << 20) * (3 << 20)
    scratch = place.Scratch(disk, PERIOD + 4096)
    content = Content(scratch.size, 4096, 5)
    content.write_to(scratch.descriptor)
    found = np.frombuffer(os.pread(scratch.descriptor, scratch.size, 0), np.uint8)
    assert np.array_equal(found, content.expected(0, scratch.size))
    assert np.array_equal(found[:4096], found[PERIOD:])  # begun anew
    assert len({found[at : at + 64].tobytes() for at in range(0, PERIOD, 4096)}) == PERIOD // 4096  # all blocks differ
    scratch.close()


def fake_fio(folder: Path, body: str) -> None:
    program = folder / "fio"
    program.write_text(f"#!{sys.executable}\nimport sys, json, os\n{body}\n")
    program.chmod(0o755)


def test_fio_is_asked_for_the_same_job(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wattline.suites.storage.fio import fio_environment, fio_speed

    workload = get("storage.write").workload
    monkeypatch.setenv("PATH", str(tmp_path))
    p = workload.params.parse({"bytes": 1 << 20, "fio": True})
    reason = get_implementation("storage.write", "posix").unmet({**p, "path": str(tmp_path)}, CPU)
    assert reason is not None
    assert reason.code == "missing_program"
    fake_fio(
        tmp_path,
        f"""
open("{tmp_path}/seen", "w").write(json.dumps(sys.argv[1:]))
name = [a for a in sys.argv if a.startswith("--filename=")][0].split("=", 1)[1]
print("note: a warning")
print(json.dumps({{"jobs": [{{"write": {{"bw_bytes": os.stat(name).st_size}}}}]}}))
""",
    )
    p, kernel = built("storage.write", bytes=1 << 20, block=1 << 16, depth=4, pattern="random", threads=2, fio=True)
    run(kernel)
    found = workload.findings(p, [kernel], summarize([1.0, 1.0, 1.0]))
    assert found["fio_bytes_per_s"] == 1 << 20
    assert found["fio_ratio"] == 1.0
    seen = json.loads((tmp_path / "seen").read_text())
    direct = int(kernel.inputs["job"].access.bypasses)
    for part in ("--rw=randwrite", "--bs=65536", "--iodepth=4", "--numjobs=2", f"--direct={direct}", "--fdatasync=8"):
        assert part in seen
    fake_fio(
        tmp_path,
        f"""
open("{tmp_path}/huge", "w").write(json.dumps([os.environ.get("GLIBC_TUNABLES"), *sys.argv]))
print(json.dumps({{"jobs": [{{"write": {{"bw_bytes": 5}}}}]}}))
""",
    )
    assert "hugetlb" not in json.dumps([fio_environment(p).get("GLIBC_TUNABLES"), *seen])
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    assert fio_speed({**p, "pages": "huge"}, kernel.inputs["job"], writes=True, seconds=0.25) == 5
    tunables, *command = json.loads((tmp_path / "huge").read_text())
    assert tunables == "glibc.malloc.check=0:glibc.malloc.hugetlb=1", "what was set stays set"
    assert {"--runtime=250ms", "--iomem_align=2097152", "--scramble_buffers=0"} <= set(command)
    fake_fio(tmp_path, 'print("fio: engine libaio not loadable", file=sys.stderr); sys.exit(1)')
    refused = workload.findings(p, [kernel], summarize([1.0, 1.0, 1.0]))
    assert "not loadable" in refused["fio_refused"]
    assert refused["bytes_per_s"] == 1 << 20
