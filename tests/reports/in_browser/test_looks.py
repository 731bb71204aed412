"""The report in a real browser: it renders, asks nobody for anything, prints, and can be read by everybody."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattline.reports import write_report

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

SECTIONS = ("findings", "slow", "unmeasured", "speed", "power", "trust", "predictor", "records", "method")
FIGURES = (
    "roofline", "gap", "waterline", "clock", "heat", "line", "regimes", "skinny", "noise", "aa", "predicted", "signed",
    "domain", "coverage", "learning",
)  # fmt: skip
POWER = (
    "power-run", "power-case", "energy-time", "energy-flop", "energy-levels", "energy-budget", "energy-caps",
)  # fmt: skip
WIDTHS = (1440, 390)
THEMES = ("light", "dark")


def unfold_some(driver: Any) -> None:
    """The first rows and all that ended badly; a browser limits how often the URL may change within seconds."""
    script = "document.querySelectorAll('#table tr:nth-child(-n+20) button.no, #table tr.bad button.no')"
    driver.execute_script(f"[...{script}].forEach(b => b.click())")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#table tr.detail")) > 20


def test_every_section_and_figure_renders(page: Callable[..., Any]) -> None:
    driver = page()
    for name in SECTIONS:
        box = driver.find_element(By.ID, name)
        assert box.is_displayed(), name
        assert box.size["height"] > 40, name
    for name in FIGURES:
        drawings = driver.find_elements(By.CSS_SELECTOR, f"#{name} svg.plot")
        assert drawings, name
        assert all(d.size["width"] > 100 and d.size["height"] > 60 for d in drawings), name
    assert len(driver.find_elements(By.CSS_SELECTOR, ".findings > li")) == 5


@pytest.mark.parametrize("theme", THEMES)
def test_no_console_error_no_request_no_alert(page: Callable[..., Any], report: Path, theme: str) -> None:
    driver = page(theme=theme)
    unfold_some(driver)
    assert driver.get_log("browser") == []
    sent = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"]
    assert [u for u in urls if not u.startswith((report.as_uri(), "data:", "about:"))] == []
    assert any(u.startswith(report.as_uri()) for u in urls)
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert driver.execute_script("return window.alerted") is None
    with pytest.raises(NoAlertPresentException):
        _ = driver.switch_to.alert


def test_hostile_text_is_shown_as_text(page: Callable[..., Any]) -> None:
    driver = page()
    unfold_some(driver)
    assert driver.execute_script("return document.querySelectorAll('img').length") == 0
    assert driver.execute_script("return document.scripts.length") == 2
    environment = driver.find_element(By.ID, "method").text
    assert "<script>alert(1)</script>" in environment
    assert "{{ 7*7 }}" in environment
    assert driver.execute_script("return window.alerted") is None


def test_the_theme_button_switches_colours(page: Callable[..., Any]) -> None:
    driver = page(theme="light")
    before = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    driver.find_element(By.ID, "theme").click()
    after = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert before != after
    drawn = driver.execute_script("return getComputedStyle(document.querySelector('#roofline svg text')).fill")
    driver.find_element(By.ID, "theme").click()
    assert driver.execute_script("return getComputedStyle(document.querySelector('#roofline svg text')).fill") != drawn


def test_the_power_section_renders(page: Callable[..., Any], both_reports: dict[str, Path]) -> None:
    driver = page(path=both_reports["metered"])
    for name in POWER:
        drawings = driver.find_elements(By.CSS_SELECTOR, f"#{name} svg.plot")
        assert drawings, name
        assert all(d.size["width"] > 100 and d.size["height"] > 60 for d in drawings), name
    assert driver.get_log("browser") == []
    assert driver.find_element(By.CSS_SELECTOR, "nav a[href='#power']").is_displayed()


@pytest.mark.parametrize("which", ["plain", "metered"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_overlaps_or_overflows(
    page: Callable[..., Any], both_reports: dict[str, Path], overlaps: str, width: int, which: str
) -> None:
    driver = page(width=width, path=both_reports[which])
    assert driver.execute_script(overlaps) == []
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert driver.execute_script(overlaps) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    outside = driver.execute_script(
        "return [...document.querySelectorAll('svg.plot text')].filter(t => { const r = t.getBoundingClientRect(),"
        " b = t.closest('svg').getBoundingClientRect(); return r.left < b.left - 2 || r.right > b.right + 2"
        " || r.top < b.top - 2 || r.bottom > b.bottom + 2 }).map(t => t.textContent)"
    )
    assert outside == [], "no text leaves its drawing"


@pytest.mark.parametrize("which", ["plain", "metered"])
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(  # noqa: PLR0917 - fixtures and what is varied
    page: Callable[..., Any], both_reports: dict[str, Path], serious_faults: Callable[[Any], list[Any]],
    width: int, theme: str, which: str,
) -> None:  # fmt: skip
    driver = page(width=width, theme=theme, path=both_reports[which])
    driver.execute_script("document.querySelector('#table button.no').click()")
    assert serious_faults(driver) == []


def test_print_shows_the_whole_table(page: Callable[..., Any]) -> None:
    driver = page(theme="dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        paper = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(255, 255, 255)", "ink on paper, whatever the screen's theme"
        sizes = driver.execute_script(
            "const e = document.querySelector('.scroll.tall'); return [e.scrollHeight, e.clientHeight]"
        )
        assert sizes[0] - sizes[1] <= 2
        assert not driver.find_element(By.ID, "filters").is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_everything_that_is_folded_is_printed(page: Callable[..., Any], both_reports: dict[str, Path]) -> None:
    for path in both_reports.values():
        driver = page(path=path)
        drawings = driver.execute_script("return document.querySelectorAll('svg.plot').length")
        folded = driver.execute_script("return document.querySelectorAll('details').length")
        assert folded > 0
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        try:
            everything = (By.CSS_SELECTOR, "details[open]")
            WebDriverWait(driver, 10).until(lambda d, n=folded, e=everything: len(d.find_elements(*e)) == n)
            seen = "[...document.querySelectorAll('svg.plot')].filter(s => s.checkVisibility()"
            seen += " && s.getBoundingClientRect().height > 40).length"
            assert driver.execute_script(f"return {seen}") == drawings
        finally:
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
        WebDriverWait(driver, 10).until(lambda d: not d.find_elements(By.CSS_SELECTOR, "details[open]"))


def test_it_prints_to_a_pdf(page: Callable[..., Any], both_reports: dict[str, Path]) -> None:
    driver = page(path=both_reports["metered"])
    made = driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True, "generateTaggedPDF": True})
    pdf = base64.b64decode(made["data"])
    assert pdf.startswith(b"%PDF-")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 5
    images = len(driver.find_elements(By.CSS_SELECTOR, "svg.plot g[role=img]"))
    assert len(re.findall(rb"/S\s*/Figure\b", pdf)) >= images, "every drawing, with its text for all readers"


def test_cells_made_by_the_script_say_what_the_page_said(page: Callable[..., Any], report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    driver = page()
    static = re.findall(r'<tr id="(r-[^"]+)"[^>]*>(.*?)\n', text)
    assert len(static) > 200
    script = "return [...document.getElementById(arguments[0]).cells].map(c => c.textContent)"
    for anchor, cells in [*static[:5], *static[-60:]]:
        said = [html.unescape(cell) for cell in cells.split("<td>")[1:]]
        assert driver.execute_script(script, anchor) == said


@pytest.mark.parametrize("width", WIDTHS)
def test_very_long_and_right_to_left_text_stays_in_its_place(  # noqa: PLR0917 - fixtures
    page: Callable[..., Any], run_of: Callable[..., Path], make_case: Callable[..., Any],
    make_record: Callable[..., Any], make_unmeasured: Callable[..., Any], hostile: str, width: int,
) -> None:  # fmt: skip
    names = (
        hostile, "x" * 10_000, "\u202e\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd\u2067 abc",
        "'\"><svg onload=alert(3)>",
    )  # fmt: skip
    records = []
    for i, name in enumerate(names):
        record = make_record(make_case(64 + 64 * i, 256, 256))
        records.append(replace(record, case=replace(record.case, op=f"gemm.{name}", impl=name)))
        records.append(make_unmeasured(make_case(32, 32, 32 + i), "skipped", "too_slow", name))
    environment = {"host": {"name": names[1]}, "notes": names[2]}
    driver = page(path=write_report(run_of(records, manifest={"environment": environment})), width=width)
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    driver.execute_script("document.querySelectorAll('#table button.no').forEach(b => b.click())")
    wide = (
        "return [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > innerWidth + 1 "
        "&& !e.closest('.scroll, .panels.wide, .hidden'))"
        ".map(e => e.tagName + '.' + e.getAttribute('class')).slice(0, 9)"
    )
    assert driver.execute_script(wide) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    assert driver.execute_script("return window.alerted") is None
    assert driver.execute_script("return document.scripts.length") == 2
    assert driver.execute_script("return document.querySelectorAll('img, svg[onload]').length") == 0
    assert driver.get_log("browser") == []


def test_an_empty_run_renders(page: Callable[..., Any], run_of: Callable[..., Path]) -> None:
    path = write_report(run_of([], drop=("device", "environment", "plan", "totals", "energy", "aa", "timer", "probe")))
    driver = page(path=path, width=390)
    assert driver.get_log("browser") == []
    assert "holds no records" in driver.find_element(By.ID, "findings").text
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
