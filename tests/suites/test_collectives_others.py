"""Everything built on collectives, on four real ranks: right results, and the facts that each is measured for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from wattline.case import Case
from wattline.record import Record
from wattline.run import PlannedCase, Run
from wattline.suites.collectives.launch import Launch
from wattline.suites.collectives.world import Place
from wattline.suites.plan import Plan
from wattline.suites.registry import get
from wattline.suites.runner import run_bench
from wattline.suites.settings import MeasureSettings

RANKS = 4
SETTINGS = MeasureSettings(iterations=20, warmup_iterations=2, time_limit_s=0.1, min_time_s=0.05, deadline_s=40.0)


def case(op: str, impl: str, **params: Any) -> Case:
    whole = get(f"collectives.{op}").workload.params.parse({"world_size": RANKS, "backend": "gloo", **params})
    return Case(f"collectives.{op}", impl, whole, "hot")


ALGORITHMS = ("library", "ring", "bidirectional_ring", "tree", "star", "hierarchical2", "hierarchical3")
CODES = ("dense", "topk", "int8", "sign", "shared_seed")
STRIDED: Sequence[dict[str, Any]] = (
    {"layout": "vector", "count": 50, "block": 3}, {"layout": "face2d", "count": 40}, {"layout": "halo3d", "count": 12}
)  # fmt: skip
CASES: Sequence[Case] = (
    *(case("algorithm", name, bytes=40_000) for name in ALGORITHMS),
    case("p2p_matrix", "torch", bytes=4096, way="one"),
    case("p2p_matrix", "torch", bytes=4096, way="both"),
    *(case("compressed", name, bytes=64_000, density=0.02) for name in CODES),
    *(case("strided", impl, **layout) for impl in ("pack", "direct") for layout in STRIDED),
    *(case("overlap", "torch", collective=name, bytes=65_536, m=64, n=64, k=64)
      for name in ("all_reduce", "all_gather", "all_to_all")),
    case("moe", "torch", tokens=60, hidden=32, experts=8, top_k=2, skew=1.5),
    case("moe", "torch", tokens=60, hidden=32, experts=6, top_k=2),
    case("stragglers", "torch", bytes=4096, work=128),
    case("stragglers", "torch", bytes=4096, work=128, inject="sleep", victim=2, factor=30.0),
    case("stragglers", "torch", bytes=4096, work=64, inject="link", victim=1, factor=40.0),
    case("stragglers", "torch", bytes=4096, work=64, inject="sleep", victim=4),
    *(case(name, "torch", bytes=4096, world_size=3) for name in ("all_reduce", "all_gather")),  # rank 3 sits out
    case("stragglers", "torch", bytes=4096, work=64, world_size=2),
)  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """One run of everything, by case key."""
    out = tmp_path_factory.mktemp("others") / "run"
    planned = tuple(PlannedCase(each) for each in CASES)
    plan = Plan("test", planned, (), SETTINGS, None, 0, {}, 1.0, 1.0, ranks=RANKS)
    run_bench(plan, out, device="cpu", launch=Launch(RANKS, Place(), "cpu", 60.0))
    return {record.case.key: record for record in Run(out).records()}


def facts_of(records: dict[str, Record], op: str, impl: str = "", **params: Any) -> list[dict[str, Any]]:
    """Facts of the cases that fit, all of which must have gone well."""
    found = []
    for each in CASES:
        fits = each.op == f"collectives.{op}" and impl in ("", each.impl)
        if not fits or any(each.params[name] != value for name, value in params.items()):
            continue
        record = records[each.key]
        assert record.status == "ok", (each.label(), record.reason)
        assert record.measurement is not None
        assert record.measurement.check is not None
        assert record.measurement.check.passed
        found.append(dict(record.measurement.facts))
    return found


def test_what_four_ranks_cannot_do_is_unsupported_with_the_reason(records: dict[str, Record]) -> None:
    refused = {r.case.op.split(".")[1]: r.reason.message for r in records.values() if r.status != "ok" and r.reason}
    assert refused == {
        "algorithm": "3 levels of 2 ranks need a multiple of 4 from 8 ranks on, and 4 take part",
        "moe": "6 experts cannot be shared equally by 4 ranks",
        "stragglers": "rank 4 is to be slowed, and 4 take part",
    }
    assert {r.status for r in records.values() if r.reason} == {"unsupported"}
    assert len(records) == len(CASES)


def test_algorithms_add_up_and_say_what_they_send(records: dict[str, Record]) -> None:
    size = 40_000
    for name in ("ring", "bidirectional_ring", "hierarchical2"):
        (facts,) = facts_of(records, "algorithm", name)
        assert facts["sent_bytes"] == [1.5 * size] * 4  # 2 (n - 1) / n, on either road
        assert facts["busbw_factor"] == 1.5
    (star,) = facts_of(records, "algorithm", "star")
    assert star["sent_bytes"] == [3 * size, size, size, size]
    assert facts_of(records, "algorithm", "ring")[0]["steps"] == [6] * 4
    assert facts_of(records, "algorithm", "hierarchical2")[0]["steps"] == [4] * 4
    assert len(facts_of(records, "algorithm", "tree") + facts_of(records, "algorithm", "library")) == 2


def test_ranks_may_sit_a_case_out(records: dict[str, Record]) -> None:
    for op in ("all_reduce", "all_gather"):  # one that puts its input back before every sample, one that does not
        (facts,) = facts_of(records, op, world_size=3)
        assert facts["ranks"] == 4
        assert len(facts["rank_median_s"]) == 4
    assert facts_of(records, "all_reduce", world_size=3)[0]["busbw_factor"] == pytest.approx(4 / 3)
    assert len(facts_of(records, "stragglers", world_size=2)[0]["work_median_s"]) == 2


def test_every_pair_is_in_the_matrix(records: dict[str, Record]) -> None:
    for way in ("one", "both"):
        (facts,) = facts_of(records, "p2p_matrix", way=way)
        for i, row in enumerate(facts["matrix_s"]):
            assert [time_s is None for time_s in row] == [i == j for j in range(4)]
            assert all(time_s > 0 for time_s in row if time_s is not None)
        assert facts["matrix_bytes_per_s"][2][3] == pytest.approx(4096 / facts["matrix_s"][2][3])
        assert not [name for name in facts if name.startswith("pair_")]


def test_codes_count_their_bytes_and_their_error(records: dict[str, Record]) -> None:
    by_code = {name: facts_of(records, "compressed", name)[0] for name in CODES}
    assert {name: facts["wire_bytes"] for name, facts in by_code.items()} == {
        "dense": 64_512, "topk": 8 * 323, "int8": 16_128 + 252, "sign": 2016 + 252, "shared_seed": 64,
    }  # fmt: skip
    error = {name: facts["relative_error"] for name, facts in by_code.items()}
    assert error["dense"] < 1e-6 < error["int8"] < 0.02 < error["sign"] < 1 < error["shared_seed"]
    assert 0.3 < error["topk"] < 1
    for name in CODES[1:]:
        facts = by_code[name]
        assert {"pack_s", "transfer_s", "unpack_s"} <= facts.keys()
        assert facts["ratio"] == pytest.approx(64_512 / facts["wire_bytes"])
        assert facts["saved_bytes"] == 1.5 * 64_512 - 3 * facts["wire_bytes"]
        assert facts["pays_below_bytes_per_s"] > 0


def test_strided_data_arrive_packed_and_piece_by_piece(records: dict[str, Record]) -> None:
    for layout, pieces in (("vector", 50), ("face2d", 40), ("halo3d", 121 + 11 + 11)):
        (packed,) = facts_of(records, "strided", "pack", layout=layout)
        (direct,) = facts_of(records, "strided", "direct", layout=layout)
        assert (packed["messages"], direct["messages"]) == (1, pieces)
        assert packed["actual_bytes"] == direct["actual_bytes"]
        assert packed["packing_share"] > 0


def test_overlap_gives_both_sides_alone_and_together(records: dict[str, Record]) -> None:
    found = facts_of(records, "overlap")
    assert len(found) == 3
    for facts in found:
        alone = facts["compute_s"], facts["comm_s"]
        assert facts["speedup"] > 0
        # By the definition: what was hidden, over the shorter side.
        both = sum(alone) / facts["speedup"]
        assert facts["overlap_efficiency"] == pytest.approx((sum(alone) - both) / min(alone))
        assert facts["compute_slowdown"] > 0
        assert facts["comm_slowdown"] > 0
        assert len(facts["compute_beside_s"]) == 4


def test_experts_get_and_give_back_every_copy(records: dict[str, Record]) -> None:
    (facts,) = facts_of(records, "moe", experts=8)
    counts = facts["copies_from_to"]
    assert [sum(row) for row in counts] == [120] * 4
    assert facts["experts_per_rank"] == 2
    assert facts["imbalance"] > 1
    sent = [120 - counts[i][i] for i in range(4)]
    received = [sum(counts[i][j] for i in range(4) if i != j) for j in range(4)]
    assert facts["busiest_bytes"] == max(*sent, *received) * 32 * 2


def test_injected_slowness_is_found_and_named(records: dict[str, Record]) -> None:
    (slow,) = facts_of(records, "stragglers", inject="sleep", victim=2)
    assert slow["found_after"] is not None
    assert slow["found_after"] <= 20
    assert 2 in [rank for rank, *_ in slow["slow_ranks"]]
    assert slow["work_median_s"][2] == max(slow["work_median_s"])
    (link,) = facts_of(records, "stragglers", inject="link")
    assert [1, 2] in [[begin, end] for begin, end, *_ in link["slow_links"]]
    assert link["found_after"] <= 20
    (clean,) = facts_of(records, "stragglers", inject="none", world_size=RANKS)
    assert "found_after" not in clean
    assert clean["iterations_watched"] > 20
    assert not [name for name in clean if name.endswith("_series_s")]
