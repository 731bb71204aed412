"""Work on several threads: all of it is done, errors come through, and matrix products keep to one thread meanwhile."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from wattline.predictors import threads


@pytest.mark.parametrize("workers", [1, 2, None])
def test_every_part_is_done_once(workers: int | None) -> None:
    found: list[int] = []
    threads.run_all(found.append, range(20), workers=workers)
    assert sorted(found) == list(range(20))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_through(workers: int) -> None:
    with pytest.raises(ZeroDivisionError):
        threads.run_all(lambda n: 1 / n, [1, 2, 0], workers=workers)


def test_products_keep_to_one_thread_meanwhile() -> None:
    libraries: Any = pytest.importorskip("threadpoolctl")
    seen: list[int] = []

    def look(_: int) -> None:
        seen.extend(each["num_threads"] for each in libraries.threadpool_info() if each["user_api"] == "blas")

    before = [each["num_threads"] for each in libraries.threadpool_info() if each["user_api"] == "blas"]
    threads.run_all(look, range(4), workers=2)
    assert set(seen) <= {1}
    assert [e["num_threads"] for e in libraries.threadpool_info() if e["user_api"] == "blas"] == before


def test_without_the_switch_the_work_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_controller", lambda: None)
    names: set[int] = set()
    threads.run_all(lambda _: names.add(threading.get_ident()), range(8), workers=2)
    assert names
