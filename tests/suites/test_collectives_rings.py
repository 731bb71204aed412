"""Algorithms of all-reduce, any number of ranks as threads: equal to the sum, and as many bytes as they should send."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from wattline.suites.collectives import rings

torch = pytest.importorskip("torch")


class Threads:
    """A rank whose messages go through queues."""

    def __init__(self, rank: int, size: int, queues: dict[tuple[int, int], Any]) -> None:
        self.rank, self.size, self._queues = rank, size, queues
        self.sent = self.steps = 0

    def exchange(self, steps: Sequence[rings.Step]) -> None:
        self.steps += 1
        for what, tensor, peer in steps:
            if what == "send":
                self.sent += tensor.numel()
                self._queues[self.rank, peer].put(tensor.clone())
        for what, tensor, peer in steps:
            if what == "recv":
                came = self._queues[peer, self.rank].get(timeout=20)
                assert came.numel() == tensor.numel()
                tensor.copy_(came)


def together(size: int, count: int, name: str, run: Callable[[Any, Any, Any], None]) -> list[Threads]:
    """Run an algorithm on so many ranks and compare every rank's result."""
    queues: dict[tuple[int, int], Any] = defaultdict(queue.Queue)
    nets = [Threads(rank, size, queues) for rank in range(size)]
    data = [torch.arange(count, dtype=torch.float64) * (rank + 1) + rank for rank in range(size)]
    want = torch.stack(data).sum(0)
    failed: list[BaseException] = []

    def work(net: Threads) -> None:
        try:
            run(net, data[net.rank], torch.empty(rings.spare_elements(name, count, size), dtype=torch.float64))
        except BaseException as error:  # noqa: BLE001 - raised again below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(net,)) for net in nets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    if failed:
        raise failed[0]
    for each in data:
        assert torch.equal(each, want)
    assert all(q.empty() for q in queues.values())
    return nets


@pytest.mark.parametrize("name", sorted(rings.PLAIN))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8])
def test_every_rank_has_the_sum(name: str, size: int) -> None:
    together(size, 6 * size, name, rings.PLAIN[name])


@pytest.mark.parametrize("widths", [[2, 2], [2, 3], [3, 2], [4, 2], [2, 2, 2], [2, 2, 3], [3, 2, 2]])
def test_hierarchies_give_the_sum_with_less_over_the_upper_links(widths: list[int]) -> None:
    size = 1
    for width in widths:
        size *= width
    nets = together(
        size, 4 * size, "hierarchical", lambda net, x, spare: rings.hierarchical(net, x, spare, widths)
    )
    count, share, want = 4 * size, 1, 0.0
    for width in widths:
        want += 2 * (width - 1) / width * count / share
        share *= width
    assert [net.sent for net in nets] == [want] * size
    assert {net.steps for net in nets} == {sum(2 * (width - 1) for width in widths)}


def test_what_each_algorithm_sends() -> None:
    size, count = 8, 48
    by_name = {name: together(size, count, name, run) for name, run in rings.PLAIN.items()}
    sent = {name: [net.sent for net in nets] for name, nets in by_name.items()}
    steps = {name: max(net.steps for net in nets) for name, nets in by_name.items()}
    assert sent["ring"] == [2 * 7 * count // 8] * 8  # 2 (n - 1) / n of the data, which is least
    assert sent["bidirectional_ring"] == sent["ring"]
    assert sent["star"] == [7 * count] + [count] * 7  # all through rank 0
    assert sent["tree"] == [3 * count, count, 2 * count, count, 3 * count, count, 2 * count, count]
    assert steps == {"ring": 14, "bidirectional_ring": 14, "star": 2, "tree": 6}


def test_levels_of_a_hierarchy() -> None:
    assert rings.level_widths(8, 2, 2) == [2, 4]
    assert rings.level_widths(16, 3, 2) == [2, 2, 4]
    assert rings.level_widths(12, 2, 4) == [4, 3]
    assert rings.level_widths(2, 2, 2) == []  # one host
    assert rings.level_widths(6, 3, 2) == []
