"""Work of offloading, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wattline.workmodels import work_of
from wattline.workmodels.offload import best_split, split_step_s


def test_transfers_by_hand() -> None:
    # 10 MiB in chunks of 4: three messages. Both directions at once: the link has a lane for each.
    p = {"bytes": 10 << 20, "chunk": 4 << 20}
    one, both = work_of("offload.h2d", p), work_of("offload.bidirectional", p)
    assert one.link_bytes == both.link_bytes == {"pcie": 10 << 20}
    assert (one.messages["pcie"], both.messages["pcie"]) == (3, 6)
    assert both.details == {"both_bytes": 20 << 20}
    assert work_of("offload.d2h", {"bytes": 100, "chunk": np.array([0, 30])}).messages["pcie"].tolist() == [1, 4]
    assert work_of("offload.d2d", {"bytes": 100}).bytes_at() == 200


def test_adam_by_hand() -> None:
    # Four numbers read and three written for each parameter; a quarter of them crosses the link each way.
    work = work_of("offload.optimizer", {"parameters": 1000, "cpu_share": 0.25})
    assert work.bytes_read["device"] == 16_000
    assert work.bytes_written["device"] == 12_000
    assert work.link_bytes["pcie"] == 1000
    assert work.flops == {"fp32": 14_000}


def test_the_rest_by_hand() -> None:
    assert work_of("offload.gather", {"rows": 10, "row_bytes": 64}).link_bytes["pcie"] == 640
    assert work_of("offload.swap", {"blocks": 3, "block_bytes": 64}).messages["pcie"] == 3
    assert work_of("offload.pinned_alloc", {"bytes": 10, "count": 3}).details["allocated_bytes"] == 30
    to_host = work_of("offload.pipeline", {"layers": 4, "bytes": 10, "source": "storage", "to": "host"})
    assert (to_host.bytes_read, dict(to_host.link_bytes)) == ({"storage": 40}, {})


def test_the_best_split_by_hand() -> None:
    # 6 s on the CPU, 2 over the link, 2 on the device: the CPU takes a fifth, and both sides 1.6 s.
    assert best_split(6.0, 2.0, 2.0) == pytest.approx(0.2)
    assert split_step_s(0.2, 6.0, 2.0, 2.0) == pytest.approx(1.6)
    assert split_step_s(0.0, 6.0, 2.0, 2.0) == 2.0
