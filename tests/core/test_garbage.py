"""The collector runs seldom within, and as before after."""

from __future__ import annotations

import gc

import pytest

from wattline.garbage import SELDOM, seldom_collected


def test_the_threshold_is_higher_within_and_as_before_after() -> None:
    before = gc.get_threshold()
    with seldom_collected():
        assert gc.get_threshold() == (before[0] * SELDOM, *before[1:])
    assert gc.get_threshold() == before


def test_an_error_passes_and_the_threshold_comes_back() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), seldom_collected():
        raise KeyError("x")
    assert gc.get_threshold() == before


def test_a_collector_that_is_off_stays_off() -> None:
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with seldom_collected():
            assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)
