"""The load of a calibration on a real CPU: it runs when told, stops when told, and says when it cannot."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from wattline.collectors.device import CpuDevice
from wattline.collectors.energy.loads import MatmulLoad
from wattline.errors import DeviceError


class Counting(MatmulLoad):
    """Counts its products."""

    products = 0

    def _product(self) -> None:
        self.products += 1
        super()._product()


def test_it_runs_at_full_and_half_load_and_rests_when_off() -> None:
    with Counting(CpuDevice()) as load:
        time.sleep(0.02)
        assert load.products == 0
        begin = time.perf_counter()
        at = load.switch(1.0)
        assert begin <= at <= time.perf_counter()
        while load.products < 5:
            time.sleep(1e-3)
        load.switch(0.5)
        before = load.products
        while load.products < before + 3:
            time.sleep(1e-3)
        off = load.switch(0.0)
        assert off > at
        done = load.products
        time.sleep(0.02)
        assert load.products == done
    assert load.partial


def test_closing_ends_the_thread_and_gives_the_threads_of_torch_back() -> None:
    before, threads = threading.active_count(), torch.get_num_threads()
    load = MatmulLoad(CpuDevice())
    load.switch(1.0)
    load.close()
    load.close()
    assert threading.active_count() == before
    assert torch.get_num_threads() == threads


def test_a_product_that_fails_is_an_error_of_the_switch() -> None:
    class Failing(MatmulLoad):
        def _product(self) -> None:
            raise RuntimeError("the device fell over")

    with Failing(CpuDevice()) as load, pytest.raises(DeviceError) as caught:
        load.switch(1.0)
    assert caught.value.why == "the device fell over"
