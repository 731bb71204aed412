"""Work of launches and of the traced network, by hand."""

from __future__ import annotations

from wattline.workmodels import work_of


def test_launches_are_no_work() -> None:
    work = work_of("launch.overhead", {"launches": 7})
    assert (work.total_flops, work.total_bytes, work.details) == (0, 0, {"launches": 7.0})


def test_one_block_by_hand() -> None:
    # Width 32, 3 tokens: weights 4 * 32^2 + 2 * 4 * 32^2 = 12288; twice that for each token, and 4 * 3 * 3 * 32 for
    # scores and values.
    work = work_of("launch.trace", {"layers": 1, "batch": 1, "tokens": 3, "hidden": 32, "dtype": "fp32"})
    assert work.flops == {"fp32": 2 * 3 * 12288 + 4 * 3 * 3 * 32}
    # Biases: 3 + 1 + 4 + 1 widths; two norms with scale and shift: 4 more.
    assert work.bytes_read["device"] == 4 * (12288 + 13 * 32 + 3 * 32)
    assert work.bytes_written["device"] == 4 * 3 * 32
