"""Work and its bound, worked by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.case import REGIMES
from wattline.device import Ceilings, DeviceSpec, known_device
from wattline.errors import UnsupportedError
from wattline.work import Work, bound, case_bound
from wattline.workmodels import work_of

# Round figures: 1 TFLOP/s, 100 GB/s of memory, 10 GB/s to peers, 1 GB/s to the host.
ROUND = DeviceSpec(
    "round", peak_flops={"fp32": 1e12, "bf16": 4e12}, memory_bandwidth=1e11, link_bandwidth=1e10, pcie_bandwidth=1e9
)
_AMOUNTS = st.dictionaries(st.sampled_from(["fp32", "bf16"]), st.floats(0, 1e15), max_size=2)
_BYTES = st.dictionaries(st.sampled_from(["device", "host"]), st.floats(0, 1e12), max_size=2)
_LINKS = st.dictionaries(st.sampled_from(["fabric", "pcie"]), st.floats(0, 1e12), max_size=2)
_WORK = st.builds(Work, _AMOUNTS, _BYTES, _BYTES, _LINKS, _LINKS)


def test_a_square_fp32_product_on_an_h100() -> None:
    work = work_of("gemm.dense", {"m": 4096, "n": 4096, "k": 4096, "dtype": "fp32"})
    assert work.flops == {"fp32": 137_438_953_472}  # 2 * 4096^3
    assert work.bytes_read == {"device": 134_217_728}  # two matrices of 64 MiB
    assert work.bytes_written == {"device": 67_108_864}
    assert work.intensity == pytest.approx(4096 / 6)  # 2 n^3 / (3 n^2 * 4 bytes) = n / 6
    limit = bound(work, known_device("h100-sxm"))
    # 1.374e11 / 66.9e12 FLOP/s = 2.05 ms; 2.013e8 bytes / 3.35e12 bytes/s = 60 us.
    assert limit.terms["compute"] == pytest.approx(137_438_953_472 / 66.9e12)
    assert limit.terms["memory"] == pytest.approx(201_326_592 / 3.35e12)
    assert (limit.by, limit.time_s) == ("compute", limit.terms["compute"])
    assert limit.time_s == pytest.approx(2.0544e-3, rel=1e-3)


def test_a_vector_product_is_bound_by_memory() -> None:
    limit = bound(work_of("gemm.dense", {"m": 1, "n": 8192, "k": 8192, "dtype": "bf16"}), known_device("h100-sxm"))
    assert limit.by == "memory"
    assert limit.time_s == pytest.approx((8192 * 8192 + 2 * 8192) * 2 / 3.35e12)


def test_cached_data_costs_no_memory_time() -> None:
    work = Work(flops={"fp32": 1e9}, bytes_read={"device": 1e9})
    assert bound(work, ROUND).time_s == pytest.approx(10e-3)
    cached = bound(work, ROUND, cached=True)
    assert (cached.by, cached.time_s) == ("compute", pytest.approx(1e-3))
    assert bound(Work(bytes_read={"device": 1e9}), ROUND, cached=True).by == "nothing"


def test_only_regimes_that_use_one_buffer_again_profit_from_the_cache() -> None:
    device = DeviceSpec("l2", peak_flops={"fp32": 1e12}, memory_bandwidth=1e11, l2_bytes=1e6)
    fits, exceeds = (Work(flops={"fp32": 1e3}, bytes_read={"device": size}) for size in (1e6, 1e6 + 1))
    found = {regime: case_bound(fits, device, regime) for regime in REGIMES}
    assert {regime: limit.by for regime, limit in found.items() if limit} == {
        "cold": "memory", "graph": "memory", "hot": "compute", "eager": "compute",
    }  # fmt: skip
    for regime in REGIMES:
        larger = case_bound(exceeds, device, regime)
        assert larger is not None
        assert larger.by == "memory"
    # Of a device whose cache is unknown nothing is assumed; without a rate there is no bound.
    hot = case_bound(fits, ROUND, "hot")
    assert hot is not None
    assert hot.by == "memory"
    assert case_bound(Work(flops={"fp64": 1.0}), ROUND, "cold") is None


def test_formats_add_up_each_at_its_own_rate() -> None:
    assert bound(Work(flops={"fp32": 1e12, "bf16": 4e12}), ROUND).time_s == pytest.approx(2.0)


def test_links_go_by_their_own_speeds() -> None:
    assert bound(Work(link_bytes={"pcie": 1e9}), ROUND).time_s == pytest.approx(1.0)
    assert bound(Work(link_bytes={"fabric": 1e9}), ROUND).time_s == pytest.approx(0.1)
    both = bound(Work(link_bytes={"fabric": 1e9, "pcie": 1e9}), ROUND)
    assert (both.by, both.time_s) == ("link", pytest.approx(1.1))
    # No speed is known: no bound is invented.
    assert bound(Work(link_bytes={"pcie": 1e9}), DeviceSpec("bare", peak_flops={"fp32": 1e12})).by == "nothing"


def test_without_work_nothing_bounds() -> None:
    limit = bound(Work(), ROUND)
    assert (limit.time_s, limit.by, dict(limit.terms)) == (0.0, "nothing", {})
    assert bound(Work(flops={"fp32": 0.0}), ROUND).by == "nothing"
    # A format without operations needs no rate.
    assert bound(Work(flops={"fp64": 0.0}), ROUND).by == "nothing"


def test_a_missing_format_is_widened_and_then_refused() -> None:
    assert ROUND.rate("tf32") == (1e12, "fp32")
    assert ROUND.rate("fp16") == (4e12, "bf16")
    assert ROUND.rate("fp8") == (4e12, "bf16")
    assert bound(Work(flops={"tf32": 1e12}), ROUND).time_s == pytest.approx(1.0)
    with pytest.raises(UnsupportedError, match="no arithmetic rate of round is known for fp64") as caught:
        bound(Work(flops={"fp64": 1.0}), ROUND)
    assert caught.value.code == "no_rate"
    assert "bf16, fp32" in caught.value.why


def test_measured_ceilings_stand_in_for_a_missing_datasheet() -> None:
    bare = DeviceSpec("cpu", kind="cpu")
    with pytest.raises(UnsupportedError):
        bare.rate("fp32")
    probed = bare.with_measured(Ceilings({"fp32": 1e11}, memory_bandwidth=2e10))
    assert probed.rate("bf16") == (1e11, "fp32")
    assert bound(Work(bytes_read={"device": 1e10}), probed).time_s == pytest.approx(0.5)
    # The datasheet's figure comes first: a bound from a measured rate could be beaten.
    assert ROUND.with_measured(Ceilings({"fp32": 5e11}, memory_bandwidth=9e10)).rate("fp32") == (1e12, "fp32")
    assert ROUND.with_measured(Ceilings({"fp32": 5e11}, memory_bandwidth=9e10)).bandwidth == 1e11


def test_intensity_and_totals() -> None:
    work = Work(flops={"fp32": 6, "bf16": 4}, bytes_read={"device": 3, "host": 9}, bytes_written={"device": 2})
    assert (work.total_flops, work.bytes_at(), work.bytes_at("host"), work.bytes_at("shared")) == (10, 5, 9, 0)
    assert work.intensity == 2
    assert math.isinf(Work(flops={"fp32": 1}).intensity)


@given(_WORK, _WORK)
def test_work_adds_up(a: Work, b: Work) -> None:
    both = a + b
    assert both == b + a
    assert both.total_flops == pytest.approx(a.total_flops + b.total_flops)
    assert both.bytes_at("host") == pytest.approx(a.bytes_at("host") + b.bytes_at("host"))
    assert a + Work() == a


@given(_WORK)
def test_nothing_is_lost_by_a_dict(work: Work) -> None:
    assert Work.from_dict(work.to_dict()) == work


@given(_WORK, _WORK)
def test_the_bound_is_the_largest_term_and_grows_with_work(a: Work, b: Work) -> None:
    limit = bound(a, ROUND)
    assert limit.time_s == max(limit.terms.values(), default=0.0)
    assert bound(a + b, ROUND).time_s >= limit.time_s
    assert bound(a, ROUND, cached=True).time_s <= limit.time_s


def test_bounds_count_what_the_cleverest_algorithm_needs() -> None:
    clever = Work(flops={"fp32": 4e12, "bf16": 4e12}, fewest={"fp32": 1e12})
    assert clever.total_flops == 8e12
    assert clever.needed == {"fp32": 1e12, "bf16": 4e12}
    assert bound(clever, ROUND).time_s == pytest.approx(2.0)
    assert (clever + Work(flops={"fp32": 1e12})).needed == {"fp32": 2e12, "bf16": 4e12}
    assert (Work() + Work(flops={"fp32": 1.0})).fewest == {}
    assert Work.from_dict(clever.to_dict()) == clever
