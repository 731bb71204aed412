"""Fixtures around the simulations; ``tests/conftest.py`` hands them to every room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulated ``libnvidia-ml.so.1``, compiled once; a test that needs it is skipped without a C compiler."""
    from wattline_sim import nvml_library as sim

    if sim.compiler() is None:
        pytest.skip("no C compiler (cc, gcc or clang) to build the simulated NVML with")
    return sim.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def simulated_gpus(nvml_library: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes simulated drivers: ``simulated_gpus("h100", count=8, noise_w=1.0)``; see wattline_sim.nvml_library."""
    from wattline_sim.nvml_library import SimulatedGpus

    made: list[Any] = []

    def make(part: str = "h100", count: int = 1, **fields: Any) -> Any:
        made.append(SimulatedGpus(nvml_library, tmp_path / f"nvml{len(made)}", part, count, **fields))
        return made[-1]

    yield make
    for gpus in made:
        gpus.close()


@pytest.fixture
def simulated_rapl(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes simulated powercap trees: ``simulated_rapl(packages=2, dram=True)``; see wattline_sim.rapl."""
    from wattline_sim.rapl import SimulatedRapl

    made: list[Any] = []

    def make(**options: Any) -> Any:
        made.append(SimulatedRapl(tmp_path / f"rapl{len(made)}", **options))
        return made[-1]

    yield make
    for rapl in made:
        rapl.close()
