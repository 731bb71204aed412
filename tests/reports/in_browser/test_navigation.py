"""The report in a real browser: sorting, filtering, links between figures and rows, and long tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattline.reports import write_report

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait


def shown_rows(driver: Any) -> list[str]:
    rows = "[...document.querySelectorAll('#table tbody tr')]"
    return list(driver.execute_script(f"return {rows}.filter(r => !r.hidden && r.id[0] === 'r').map(r => r.id)"))


def payload(driver: Any) -> dict[str, Any]:
    data = dict(driver.execute_script("return JSON.parse(document.getElementById('payload').textContent)"))
    pairs = [dict(zip(row[::2], row[1::2], strict=True)) for row in data["values"]]
    data["values"] = [[row.get(j) for j in range(len(data["columns"]))] for row in pairs]
    return data


def column(driver: Any, name: str) -> list[Any]:
    data = payload(driver)
    i = data["columns"].index(name)
    by_anchor = {a: v[i] for a, v in zip(data["anchors"], data["values"], strict=True)}
    return [by_anchor[a] for a in shown_rows(driver)]


def current_hash(driver: Any) -> str:
    return str(driver.execute_script("return location.hash.slice(1)"))


def head(driver: Any, title: str) -> Any:
    buttons = driver.find_elements(By.CSS_SELECTOR, "#table thead button")
    return next(b for b in buttons if b.get_attribute("textContent") == title)


def test_sorting_by_a_column_and_back(page: Callable[..., Any]) -> None:
    driver = page()
    head(driver, "Time").click()
    times = column(driver, "time_s")
    known = [t for t in times if t is not None]
    assert known == sorted(known)
    assert times[len(known) :] == [None] * (len(times) - len(known)), "records without a figure come last"
    assert head(driver, "Time").find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    head(driver, "Time").click()
    times = column(driver, "time_s")
    assert [t for t in times if t is not None] == sorted(known, reverse=True)
    assert times[-1] is None
    assert current_hash(driver) == "records?sort=time_s&dir=desc"
    head(driver, "No.").click()
    assert shown_rows(driver) == payload(driver)["anchors"]
    assert len(driver.find_elements(By.CSS_SELECTOR, "#table [aria-sort]")) == 0


def test_sorting_by_keyboard(page: Callable[..., Any]) -> None:
    driver = page()
    head(driver, "m").send_keys(Keys.ENTER)
    values = column(driver, "p.m")
    assert values == sorted(values)


def test_filters_narrow_the_table_and_live_in_the_url(page: Callable[..., Any]) -> None:
    driver = page()
    everything = len(shown_rows(driver))
    Select(driver.find_element(By.NAME, "dtype")).select_by_value("bf16")
    narrowed = len(shown_rows(driver))
    assert 0 < narrowed < everything
    assert set(column(driver, "dtype")) == {"bf16"}
    driver.find_element(By.NAME, "q").send_keys("k=2816 cold")
    rows = shown_rows(driver)
    assert rows
    assert set(column(driver, "p.k")) == {2816}
    state = current_hash(driver)
    assert "dtype=bf16" in state
    assert "q=k%3D2816+cold" in state
    assert driver.find_element(By.ID, "shown").text == f"{len(rows)} of {everything} records"

    again = page(state)
    assert shown_rows(again) == rows
    assert again.find_element(By.NAME, "q").get_attribute("value") == "k=2816 cold"
    assert again.find_element(By.NAME, "dtype").get_attribute("value") == "bf16"
    again.find_element(By.CSS_SELECTOR, "#filters button[type=reset]").click()
    WebDriverWait(again, 5).until(lambda d: len(shown_rows(d)) == everything)
    assert current_hash(again) == ""


def test_a_flag_in_the_summary_filters_the_table(page: Callable[..., Any]) -> None:
    driver = page()
    link = driver.find_element(By.CSS_SELECTOR, "#findings a[href='#records?flags=noisy']")
    count = int(link.find_element(By.XPATH, "../following-sibling::td").text)
    driver.execute_script("arguments[0].click()", link)
    WebDriverWait(driver, 5).until(lambda d: len(shown_rows(d)) == count)
    assert all("noisy" in flags.split() for flags in column(driver, "flags"))


def test_a_deep_link_opens_its_record(page: Callable[..., Any], big_run: Path) -> None:
    from wattline.run import Run

    record = next(r for r in Run(big_run).records() if r.flags == ("noisy",))
    driver = page(f"r-{record.case.key}")
    detail = driver.find_element(By.ID, f"d-{record.case.key}")
    assert detail.is_displayed()
    text = detail.text
    assert record.case.label() in text
    assert "the interval of the median is wide" in text
    assert "figures behind noisy" in text
    assert f"--set m={record.case.params['m']}" in text
    assert "0123456789abcdef" in text, "the environment's id"
    assert detail.find_elements(By.CSS_SELECTOR, "svg.spark path")
    box = driver.execute_script(
        "return arguments[0].getBoundingClientRect().top", driver.find_element(By.ID, f"r-{record.case.key}")
    )
    assert 0 <= box <= 900


def test_a_deep_link_wins_over_filters_that_hide_it(page: Callable[..., Any]) -> None:
    driver = page("records?dtype=bf16")
    data = payload(driver)
    i = data["columns"].index("dtype")
    other = next(a for a, v in zip(data["anchors"], data["values"], strict=True) if v[i] == "fp32")
    driver.execute_script("location.hash = arguments[0]", other)
    WebDriverWait(driver, 5).until(lambda d: d.find_element(By.ID, other).is_displayed())
    assert driver.find_element(By.ID, "d" + other[1:]).is_displayed()


def test_a_point_of_a_figure_leads_to_its_record(page: Callable[..., Any]) -> None:
    driver = page()
    for figure in ("roofline", "heat", "line", "regimes", "skinny", "noise", "aa", "predicted", "signed"):
        link = driver.find_element(By.CSS_SELECTOR, f"#{figure} svg a")
        anchor = link.get_attribute("href")
        anchor = anchor["baseVal"] if isinstance(anchor, dict) else anchor
        anchor = driver.execute_script("return arguments[0].getAttribute('href')", link)[1:]
        driver.execute_script(
            "arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true, cancelable: true}))", link
        )
        WebDriverWait(driver, 5).until(lambda d, a=anchor: d.find_elements(By.ID, "d" + a[1:]))
        assert current_hash(driver).split("?")[0] == anchor, figure


def test_all_anchors_lead_somewhere(page: Callable[..., Any]) -> None:
    driver = page()
    lost = driver.execute_script(
        "return [...document.querySelectorAll('a')].map(a => a.getAttribute('href')).filter(h => h && h[0] === '#')"
        ".map(h => h.slice(1).split('?')[0]).filter(h => !document.getElementById(h))"
    )
    assert lost == []
    ids = driver.execute_script("return [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids)), "ids are unique, those of drawings included"


def test_hovering_a_point_says_what_it_is(page: Callable[..., Any]) -> None:
    driver = page()
    link = driver.find_element(By.CSS_SELECTOR, "#roofline svg a use")
    driver.execute_script("arguments[0].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))", link)
    tip = driver.find_element(By.ID, "tip")
    assert tip.is_displayed()
    assert "gemm.dense torch" in tip.text
    assert "FLOP/s" in tip.text or "OP/s" in tip.text


def test_rows_unfold_and_fold_by_keyboard(page: Callable[..., Any]) -> None:
    driver = page()
    button = driver.find_element(By.CSS_SELECTOR, "#table button.no")
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "true"
    assert driver.find_element(By.ID, button.get_attribute("aria-controls")).is_displayed()
    button.send_keys(Keys.ENTER)
    assert button.get_attribute("aria-expanded") == "false"
    assert driver.find_elements(By.CSS_SELECTOR, "#table tr.detail") == []


@pytest.mark.parametrize("width", [1440, 390])
def test_an_unfolded_row_fits_the_screen(page: Callable[..., Any], width: int) -> None:
    driver = page(width=width)
    anchor = payload(driver)["anchors"][5]
    driver.execute_script("location.hash = arguments[0]", anchor)
    WebDriverWait(driver, 5).until(lambda d: d.find_elements(By.ID, "d" + anchor[1:]))
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    inner = driver.execute_script("return document.querySelector('.detail .inner').getBoundingClientRect().width")
    assert inner <= width


@pytest.fixture(scope="session")
def long_report(tmp_path_factory: pytest.TempPathFactory, write: Any, planned_cases: Any, filled: Any) -> Path:
    """The report of a run of 1,200 records, more than the table draws at a time."""
    plan = planned_cases()
    fills = ("uniform", "normal", "zeros", "integers", "sparse")
    cases = [replace(p, case=replace(p.case, data=fill)) for fill in fills for p in plan]
    records = list(filled(cases[:1200]))[:1200]
    return write_report(write(tmp_path_factory.mktemp("long") / "long", records))


def test_a_long_table_draws_what_is_in_sight(page: Callable[..., Any], long_report: Path) -> None:
    driver = page(path=long_report)
    anchors = payload(driver)["anchors"]
    assert len(anchors) == 1200
    assert driver.find_element(By.ID, "table").get_attribute("aria-rowcount") == "1201"
    assert shown_rows(driver)[0] == anchors[0]
    assert len(shown_rows(driver)) < 200
    high = "return document.querySelector('.scroll.tall').scrollHeight"
    before = driver.execute_script(high)
    driver.execute_script("const s = document.querySelector('.scroll.tall'); s.scrollTop = s.scrollHeight")
    WebDriverWait(driver, 5).until(lambda d: shown_rows(d)[-1] == anchors[-1])
    assert abs(driver.execute_script(high) - before) <= 2, "the bar does not jump while it is dragged"
    last = driver.find_element(By.ID, anchors[-1])
    assert last.get_attribute("aria-rowindex") == "1201"
    head(driver, "Time").click()
    driver.execute_script("document.querySelector('.scroll.tall').scrollTop = 0")
    WebDriverWait(driver, 5).until(lambda d: d.find_elements(By.CSS_SELECTOR, "#table tr.pad ~ tr.pad") == [])
    data = payload(driver)
    place = data["columns"].index("time_s")
    least = min(values[place] for values in data["values"] if values[place] is not None)
    assert column(driver, "time_s")[0] == least
    assert driver.get_log("browser") == []


def test_a_deep_link_into_a_long_table(page: Callable[..., Any], long_report: Path) -> None:
    driver = page(path=long_report)
    anchor = payload(driver)["anchors"][1100]
    driver = page(anchor, path=long_report)
    assert driver.find_element(By.ID, "d" + anchor[1:]).is_displayed()
    top = driver.execute_script("return document.getElementById(arguments[0]).getBoundingClientRect().top", anchor)
    assert 0 <= top <= 900
    driver.execute_script("const s = document.querySelector('.scroll.tall'); s.scrollTop = 0")
    WebDriverWait(driver, 5).until(lambda d: not d.find_elements(By.ID, anchor))
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        WebDriverWait(driver, 10).until(lambda d: len(shown_rows(d)) == 1200, "paper holds all rows")
    finally:
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_what_is_filtered_out_fades_in_the_figures(page: Callable[..., Any]) -> None:
    driver = page("records?dtype=bf16")
    kept = set(shown_rows(driver))
    script = (
        "return [...document.querySelectorAll('svg.plot a')]"
        ".map(a => [a.getAttribute('href'), a.classList.contains('off')])"
    )
    for href, off in driver.execute_script(script):
        assert off == (href[1:] not in kept)
    chip = driver.find_element(By.ID, "chip")
    assert f"dtype bf16: {len(kept)} of " in chip.text
    chip.find_element(By.TAG_NAME, "button").click()
    assert not chip.is_displayed()
    assert driver.find_elements(By.CSS_SELECTOR, "svg.plot a.off") == []
    assert current_hash(driver) == ""


def test_a_slow_case_leads_to_its_record(page: Callable[..., Any]) -> None:
    driver = page()
    link = driver.find_element(By.CSS_SELECTOR, "#slow tbody a")
    anchor = link.get_attribute("href").partition("#")[2]
    link.click()
    WebDriverWait(driver, 5).until(lambda d: d.find_element(By.ID, "d" + anchor[1:]).is_displayed())
    again = page()
    again.find_element(By.LINK_TEXT, "All, slowest first").click()
    shares = [s for s in column(again, "efficiency") if s is not None]
    assert shares == sorted(shares)
