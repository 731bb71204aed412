"""Rank, world and meeting point from what torchrun and Slurm set; data that every rank can predict; sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.errors import ParamError, UsageError
from wattline.suites.collectives.ops import busiest, uneven_counts
from wattline.suites.collectives.shapes import ladder
from wattline.suites.collectives.world import Place, find_place, first_host, in_batch_script

TORCHRUN = {
    "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n1",
    "MASTER_PORT": "4000", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "2", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": "gpu[07-08]",
}  # fmt: skip


def test_a_process_without_a_launcher_is_alone() -> None:
    assert find_place({}) == Place(0, 1, launcher="alone")
    assert not find_place({}).launched


def test_torchrun_says_everything() -> None:
    assert find_place(TORCHRUN) == Place(3, 4, 1, 2, "n1", 4000, "torchrun", store_kept=True)


def test_slurm_says_rank_world_and_the_first_node() -> None:
    place = find_place(SLURM)
    assert (place.rank, place.world, place.local_rank, place.local_world) == (5, 8, 1, 4)
    assert (place.address, place.launcher, place.store_kept) == ("gpu07", "slurm", False)


def test_jobs_and_steps_meet_at_different_ports_and_one_can_be_given() -> None:
    steps = [{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": step} for job in range(70, 80) for step in "01"]
    ports = {find_place({**SLURM, **step}).port for step in steps}
    assert len(ports) == 20
    assert all(1024 < port < 32768 for port in ports)
    assert find_place({**SLURM, "MASTER_PORT": "1234", "MASTER_ADDR": "me"}).port == 1234


def test_torchrun_under_srun_is_torchrun() -> None:
    assert find_place({**SLURM, **TORCHRUN}).launcher == "torchrun"


def test_a_batch_script_is_no_rank() -> None:
    batch = {name: value for name, value in SLURM.items() if "STEP" not in name} | {"SLURM_PROCID": "0"}
    assert in_batch_script(batch)
    assert not find_place(batch).launched
    assert not in_batch_script(SLURM)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"RANK": "4"}, "RANK=4, WORLD_SIZE=4"), ({"RANK": "one"}, "RANK is no whole number"),
        ({"MASTER_PORT": "70000"}, "port 70000"), ({"WORLD_SIZE": "0"}, "contradict"),
    ],
)  # fmt: skip
def test_variables_that_make_no_sense_are_refused(changed: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        find_place({**TORCHRUN, **changed})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("n1", "n1"), ("n1,n2", "n1"), ("n[008-011,20],m1", "n008"), ("rack[1-2]-ib", "rack1-ib"), ("a.b-c[3]", "a.b-c3")],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_the_ladder_of_sizes() -> None:
    assert [s["bytes"] for s in ladder(8, 64, 2)] == [8, 16, 32, 64]
    assert [s["bytes"] for s in ladder("1Ki", "3Ki", step="1Ki")] == [1024, 2048, 3072]
    with pytest.raises(ParamError, match="never end"):
        list(ladder(8, 64, 1))


def test_uneven_parts_by_hand() -> None:
    # Two ranks, even: a rank sends a half to the other, which is what counts.
    assert uneven_counts(2, 0.0, 100) == [[100, 100], [100, 100]]
    # All to rank 0 of four: the three others send 12 each, it receives 36.
    assert uneven_counts(4, 1.0, 36) == [[12, 0, 0, 0]] * 4
    assert busiest(uneven_counts(4, 1.0, 36)) == 36


@given(st.integers(2, 16), st.floats(0, 1), st.integers(1, 10_000))
def test_the_busiest_rank_moves_what_was_asked_for(size: int, skew: float, total: int) -> None:
    # Each of the n - 1 parts that make up a rank's total is rounded by at most a half.
    assert abs(busiest(uneven_counts(size, skew, total)) - total) <= (size - 1) / 2 + 1
