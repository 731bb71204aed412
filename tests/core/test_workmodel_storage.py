"""Work of storage, by hand."""

from __future__ import annotations

import numpy as np

from wattline.workmodels import work_of


def test_moves_by_hand() -> None:
    # 10 MiB of a file in blocks of 4 MiB: three requests; the whole file where no span is named.
    p = {"bytes": 64 << 20, "span": 10 << 20, "block": 4 << 20}
    work = work_of("storage.read", p)
    assert work.bytes_read == {"storage": 10 << 20}
    assert work.bytes_at() == 0
    assert work.details == {"requests": 3.0}
    assert work_of("storage.write", {**p, "span": 0}).bytes_written == {"storage": 64 << 20}
    spans = work_of("storage.read", {**p, "span": np.array([0, 1 << 20])}).bytes_read["storage"]
    assert spans.tolist() == [64 << 20, 1 << 20]


def test_a_snapshot_copies_the_state_once() -> None:
    assert work_of("storage.checkpoint", {"bytes": 1000, "mode": "blocking"}).bytes_at() == 0
    snapshot = work_of("storage.checkpoint", {"bytes": 1000, "mode": "snapshot"})
    assert snapshot.bytes_at() == 2000
    assert snapshot.bytes_written["storage"] == 1000
