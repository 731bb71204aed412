"""The split of an optimizer's step, worked by hand."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wattline.device import Ceilings, DeviceSpec
from wattline.errors import DataError, ParamError
from wattline.predictors.planning import Rates, split_optimizer
from wattline.workmodels.offload import split_step_s

BY_HAND = Rates(cpu_bandwidth=28e9, device_bandwidth=280e9, down=8e9, up=8e9)
"""Of 1e9 parameters (28 bytes each): 1 s on the CPU, 0.1 s on the device, 4 + 4 GB over the link in 1 s."""

RATES = st.builds(
    Rates, st.floats(1e9, 1e12), st.floats(1e9, 1e13), st.floats(1e9, 1e12), st.floats(1e9, 1e12)
)


def test_by_hand() -> None:
    found = split_optimizer(10**9, BY_HAND)
    assert found.device_s == pytest.approx(0.1)
    assert found.cpu_s == pytest.approx(2.0)
    assert found.cpu_share == pytest.approx(0.1 / 2.1)  # both sides end together
    assert found.step_s == pytest.approx(2.0 * 0.1 / 2.1)
    assert found.saved_bytes == pytest.approx(12e9 * 0.1 / 2.1)
    assert found.least_share == 0.0
    assert "4.8% on the CPU: 95.2 ms a step" in str(found)


def test_what_does_not_fit_goes_to_the_cpu() -> None:
    """States of 12 GB and room for 6: half of the parameters must go, and the CPU sets the pace."""
    found = split_optimizer(10**9, BY_HAND, free_bytes=6e9)
    assert found.least_share == found.cpu_share == pytest.approx(0.5)
    assert found.step_s == pytest.approx(1.0)
    assert "what does not fit" in str(found)
    assert split_optimizer(10**9, BY_HAND, free_bytes=12e9) == split_optimizer(10**9, BY_HAND)


def test_slow_arithmetic_counts() -> None:
    """14 FLOPs of 1e9 parameters at 7 GFLOP/s take 2 s, twice what memory takes."""
    slow = dataclasses.replace(BY_HAND, cpu_flops=7e9)
    assert split_optimizer(10**9, slow).cpu_s == pytest.approx(3.0)


@given(RATES, st.floats(0.0, 1.0))
def test_no_other_share_is_quicker(rates: Rates, share: float) -> None:
    found = split_optimizer(10**8, rates)
    other = float(split_step_s(share, found.cpu_s, 0.0, found.device_s))
    assert found.step_s <= other * (1 + 1e-9)


@given(RATES, st.floats(1.0, 4.0))
def test_a_quicker_link_never_slows_the_step(rates: Rates, factor: float) -> None:
    quicker = dataclasses.replace(rates, down=rates.down * factor, up=rates.up * factor)
    before, after = (split_optimizer(10**8, each) for each in (rates, quicker))
    assert after.step_s <= before.step_s * (1 + 1e-9)
    assert after.cpu_share >= before.cpu_share * (1 - 1e-9)


@given(RATES, st.floats(0.0, 2e9), st.floats(0.0, 1e9))
def test_less_memory_never_quickens_the_step(rates: Rates, free: float, less: float) -> None:
    tight, loose = (split_optimizer(10**8, rates, free_bytes=max(f, 0.0)) for f in (free - less, free))
    assert tight.step_s >= loose.step_s * (1 - 1e-9)
    assert 0.0 <= loose.cpu_share <= tight.cpu_share <= 1.0


def test_rates_of_devices() -> None:
    host = DeviceSpec(id="host", kind="cpu", measured=Ceilings(flops={"fp32": 1e11}, memory_bandwidth=5e10))
    card = DeviceSpec(id="card", kind="gpu", peak_flops={"fp32": 1e13}, memory_bandwidth=1e12, pcie_bandwidth=3e10)
    assert Rates.of(host, card) == Rates(5e10, 1e12, 3e10, 3e10)
    with pytest.raises(DataError, match="bandwidth of the link is not known"):
        Rates.of(host, dataclasses.replace(card, pcie_bandwidth=None))


def test_faults_are_told() -> None:
    with pytest.raises(ParamError, match="at least one parameter"):
        split_optimizer(0, BY_HAND)
    with pytest.raises(ParamError, match="down must be above zero"):
        split_optimizer(10, dataclasses.replace(BY_HAND, down=0.0))
    with pytest.raises(ParamError, match="free_bytes"):
        split_optimizer(10, BY_HAND, free_bytes=-1.0)
