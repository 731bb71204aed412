"""Plugin of pytest: the fixture ``energy_benchmark``, seconds and joules of a function in a user's own tests.

pytest loads this module at every start where wattline is installed: it imports nothing but pytest until a test asks
for the fixture. Where pytest-benchmark is installed, the fixture wraps its ``benchmark`` (times, options and JSON are
as ever, with joules in ``extra_info``); where it is not, the fixture stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from wattline.collectors.energy import EnergySensor
    from wattline.collectors.pytest_energy import EnergyBenchmark

MARKER = "energy(window_s=None, device=None): settings of the fixture energy_benchmark for one test"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The two options; both also go into a marker."""
    group = parser.getgroup("energy", "energy of benchmarks (wattline)")
    group.addoption(
        "--energy-window",
        metavar="TIME",
        help="length of the load that energy is measured over, e.g. 2s (default: the sensor's own rule)",
    )
    group.addoption(
        "--energy-device",
        metavar="NAME",
        default="auto",
        help="whose energy: cpu, cuda, cuda:1 ... (default: the accelerator if the test used one, else the CPU)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Say which markers there are, and register the fixture that fits."""
    config.addinivalue_line("markers", MARKER)
    text = config.getoption("--energy-window")
    if text is not None:
        from wattline.errors import ParamError
        from wattline.units import parse_duration

        try:
            parse_duration(text)
        except ParamError as error:
            raise pytest.UsageError(f"--energy-window: {error}") from None
    plugins = config.pluginmanager
    beside = plugins.hasplugin("benchmark") or plugins.hasplugin("pytest_benchmark.plugin")
    plugins.register(_WithBenchmark() if beside else _Alone(), "wattline-energy-fixture")


@pytest.fixture(scope="session")
def energy_sensor_factory() -> Iterator[Callable[[str], EnergySensor]]:
    """Gives the energy sensor of a device by its name; one each per session. Override it to bring another sensor."""
    from wattline.collectors.pytest_energy import SensorPool

    with SensorPool() as pool:
        yield pool


class _WithBenchmark:
    """The fixture where pytest-benchmark is there. As an argument, not looked up: it skips and selects by that."""

    @pytest.fixture
    def energy_benchmark(
        self, request: pytest.FixtureRequest, energy_sensor_factory: Callable[[str], EnergySensor], benchmark: Any
    ) -> EnergyBenchmark:
        """Times a function with pytest-benchmark, then measures its joules per call."""
        return _make(request, energy_sensor_factory, benchmark)


class _Alone:
    """The fixture without pytest-benchmark."""

    @pytest.fixture
    def energy_benchmark(
        self, request: pytest.FixtureRequest, energy_sensor_factory: Callable[[str], EnergySensor]
    ) -> EnergyBenchmark:
        """Measures the joules and seconds per call of a function."""
        return _make(request, energy_sensor_factory, None)


def _make(
    request: pytest.FixtureRequest, factory: Callable[[str], EnergySensor], benchmark: Any
) -> EnergyBenchmark:
    from wattline.collectors.pytest_energy import make

    return make(request, factory, benchmark)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line per test with its joules, or why there are none. The figures come with the reports: xdist sends them."""
    found = [
        (report.nodeid, dict(report.user_properties))
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
    ]
    rows = [(name, values) for name, values in found if "energy_j" in values or "energy_missing" in values]
    if rows:
        from wattline.collectors.pytest_energy import summary

        terminalreporter.write_sep("-", "energy per call (wattline)")
        for line in summary(rows):
            terminalreporter.write_line(line)
