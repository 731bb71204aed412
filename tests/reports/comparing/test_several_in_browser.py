"""The report on several runs in a real browser: it works, asks nobody for anything, and can be read by everybody."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wattline.reports import write_comparison

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

HERE = Path(__file__).resolve()
WIDTHS = (1440, 390)
THEMES = ("light", "dark")


def _loaded(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


single = _loaded("wattline_tests_in_browser", HERE.parents[1] / "in_browser" / "conftest.py")
driver, serious_faults = single.driver, single.serious_faults


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two versions of one machine with joules, two machines, a fleet, and the simulated runs of the documentation."""
    made = _loaded("wattline_tests_noisy_runs", HERE.parent / "conftest.py")
    root = tmp_path_factory.mktemp("several")
    for r in range(3):
        made.noisy_run(root / f"base/{r}", r, energy=300.0)
        made.noisy_run(root / f"new/{r}", 10 + r, energy=300.0, change=lambda i, c: 1.1 if i % 12 == 11 else 1.0)
    made.noisy_run(root / "gpu-a", 31, energy=300.0)
    made.noisy_run(root / "gpu-b", 32, energy=420.0, device=made.OTHER, speed=1.3)
    for m in range(4):
        made.noisy_run(root / f"fleet/a-rather-long-name-of-node-{m}", 40 + m, level=0.12 if m == 2 else 0.0)
    simulated = _loaded("wattline_tests_simulated_runs", HERE.parents[3] / "tools" / "simulated_runs.py")
    return {
        "regression": write_comparison(simulated.write_versions(root / "simulated"), root / "regression.html"),
        "choice": write_comparison(simulated.write_machines(root / "simulated"), root / "choice.html"),
        "versions": write_comparison([root / "base", root / "new"], root / "versions.html"),
        "machines": write_comparison([root / "gpu-a", root / "gpu-b"], root / "machines.html"),
        "fleet": write_comparison([root / "fleet"], root / "fleet.html"),
    }


@pytest.fixture
def page(driver: Any, reports: dict[str, Path]) -> Callable[..., Any]:
    def open_page(which: str = "versions", width: int = 1440, theme: str = "light", hash_: str = "") -> Any:
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get_log("performance")
        scheme = [{"name": "prefers-color-scheme", "value": theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        driver.get(reports[which].as_uri() + (f"#{hash_}" if hash_ else ""))
        return driver

    return open_page


def shown(driver: Any) -> list[str]:
    rows = driver.execute_script("return [...document.querySelectorAll('#table tbody tr')].filter(r => !r.hidden)")
    return [row.get_attribute("id") for row in rows]


@pytest.mark.parametrize("which", ["versions", "machines", "fleet"])
def test_every_section_renders_and_nothing_is_asked_for(page: Callable[..., Any], which: str) -> None:
    driver = page(which)
    for name in ("answers", "groups", "ratios", "cases", "conditions", "noise"):
        assert driver.find_element(By.ID, name).is_displayed()
    assert driver.find_elements(By.CSS_SELECTOR, "#ratios svg.plot")
    assert driver.get_log("browser") == []
    asked = [m for entry in driver.get_log("performance") if '"Network.requestWillBeSent"' in (m := entry["message"])]
    assert all("file://" in m or "data:" in m for m in asked)


@pytest.mark.parametrize("which", ["versions", "regression", "choice", "fleet"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_overflows(page: Callable[..., Any], width: int, which: str) -> None:
    driver = page(which, width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script(single.OVERLAPS) == []


def test_the_answer_stands_on_the_first_screen(page: Callable[..., Any]) -> None:
    for width in WIDTHS:
        place = page(width=width).find_element(By.CSS_SELECTOR, "#answers .claim").rect
        assert place["y"] + place["height"] < 900


@pytest.mark.parametrize("which", ["regression", "choice"])
def test_all_answers_and_all_operations_stand_on_the_first_screen(page: Callable[..., Any], which: str) -> None:
    driver = page(which)
    parts = driver.find_elements(By.CSS_SELECTOR, "#answers .findings > li, #by-operation, #by-format")
    assert len(parts) == 5
    assert [part.text for part in parts if part.rect["y"] + part.rect["height"] > 900] == []
    cut = driver.execute_script(
        "return [...document.querySelectorAll('.first .scroll')].filter("
        "e => e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1).length"
    )
    assert cut == 0, "neither table hides a column or a row"
    answers, table = (driver.find_element(By.CSS_SELECTOR, at).rect for at in ("#answers", "#groups"))
    assert answers["x"] + answers["width"] <= table["x"], "operations stand beside the answers"


def test_on_a_phone_every_claim_of_a_choice_stands_on_the_first_screen(page: Callable[..., Any]) -> None:
    claims = page("choice", width=390).find_elements(By.CSS_SELECTOR, "#answers .claim")
    assert len(claims) == 3
    assert max(claim.rect["y"] + claim.rect["height"] for claim in claims) <= 844


def test_filters_and_sorting_live_in_the_address(page: Callable[..., Any]) -> None:
    driver = page()
    every = shown(driver)
    Select(driver.find_element(By.NAME, "verdict")).select_by_value("slower")
    slower = shown(driver)
    assert 0 < len(slower) < len(every)
    driver.execute_script("document.querySelectorAll('#table thead button')[1].click()")
    address = driver.execute_script("return location.hash")
    assert "verdict=slower" in address
    assert "sort=1" in address
    ascending = shown(driver)
    again = page(hash_=address[1:])
    assert shown(again) == ascending
    values = again.execute_script(
        "const rows = [...document.querySelectorAll('#table tbody tr')];"
        "return rows.filter(r => !r.hidden).map(r => +r.cells[1].dataset.s)"
    )
    assert values == sorted(values)
    again.find_element(By.CSS_SELECTOR, "#filters button[type=reset]").click()
    WebDriverWait(again, 5).until(lambda d: len(shown(d)) == len(every))


def test_a_point_leads_to_its_case(page: Callable[..., Any]) -> None:
    driver = page()
    target = driver.execute_script(
        "const to = document.querySelector('#ratios .pts a').getAttribute('href'); location.hash = to; return to"
    )
    assert driver.find_element(By.ID, target[1:]).is_displayed()


@pytest.mark.parametrize("which", ["versions", "choice", "fleet"])
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(
    page: Callable[..., Any], serious_faults: Callable[[Any], list[Any]], width: int, theme: str, which: str
) -> None:
    assert serious_faults(page(which, width=width, theme=theme)) == []


def test_print_shows_everything(page: Callable[..., Any]) -> None:
    driver = page(theme="dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)"
        cut = driver.execute_script(
            "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollHeight - e.clientHeight > 2).length"
        )
        assert cut == 0
        assert not driver.find_element(By.ID, "filters").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
