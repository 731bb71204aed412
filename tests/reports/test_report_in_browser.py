"""The report in a real browser: it renders, works, asks nobody for anything, and can be read by everybody."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from wattline.reports import write_report

selenium = pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver  # noqa: E402
from selenium.common.exceptions import NoAlertPresentException  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

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
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip

OVERLAPS = """
// Pairs of texts that lie upon each other, outside of areas that scroll.
const boxes = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode, parent = node.parentElement;
  const apart = '.records tbody, .hidden, .skip, script, style, noscript, option, [hidden]';
  if (!node.data.trim() || parent.closest(apart) || !parent.checkVisibility()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  for (const r of range.getClientRects()) {
    // Line boxes of neighbours touch; ink does not reach their edges.
    const slack = r.height * 0.2;
    if (r.width > 1 && r.height > 1) boxes.push([r.left, r.top + slack, r.right, r.bottom - slack, node]);
  }
}
boxes.sort((a, b) => a[1] - b[1]);
const found = [];
for (let i = 0; i < boxes.length; i++)
  for (let j = i + 1; j < boxes.length && boxes[j][1] < boxes[i][3]; j++) {
    const a = boxes[i], b = boxes[j];
    if (a[4] !== b[4] && Math.min(a[2], b[2]) - Math.max(a[0], b[0]) > 1.5)
      found.push(a[4].data.trim() + ' | ' + b[4].data.trim());
  }
return found;
"""


@pytest.fixture(scope="session")
def driver() -> Iterator[Any]:
    browser, server = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not server:
        pytest.skip("chromium or chromedriver is not installed")
    options = Options()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    found = webdriver.Chrome(options=options, service=Service(server))
    found.set_script_timeout(180)
    found.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "window.alert = () => { window.alerted = true; };"}
    )
    yield found
    found.quit()


@pytest.fixture(scope="session")
def report(big_run: Path) -> Path:
    """The report of the big run, predictor included."""
    from wattline.predictors import fit_run

    fit_run(big_run)
    return write_report(big_run)


@pytest.fixture(scope="session")
def both_reports(report: Path, metered_run: Path) -> dict[str, Path]:
    """The report of a run without joules, and of one with."""
    return {"plain": report, "metered": write_report(metered_run)}


@pytest.fixture
def page(driver: Any, report: Path) -> Callable[..., Any]:
    """Opens the report afresh at a width, in a colour scheme, with a hash."""

    def open_page(hash_: str = "", width: int = 1440, theme: str = "light", path: Path = report) -> Any:
        driver.get("about:blank")
        driver.get_log("browser")
        driver.get_log("performance")
        driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        )
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        driver.get(path.as_uri() + (f"#{hash_}" if hash_ else ""))
        return driver

    return open_page


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
    page: Callable[..., Any], both_reports: dict[str, Path], width: int, which: str
) -> None:
    driver = page(width=width, path=both_reports[which])
    assert driver.execute_script(OVERLAPS) == []
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert driver.execute_script(OVERLAPS) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    outside = driver.execute_script(
        "return [...document.querySelectorAll('svg.plot text')].filter(t => { const r = t.getBoundingClientRect(),"
        " b = t.closest('svg').getBoundingClientRect(); return r.left < b.left - 2 || r.right > b.right + 2"
        " || r.top < b.top - 2 || r.bottom > b.bottom + 2 }).map(t => t.textContent)"
    )
    assert outside == [], "no text leaves its drawing"


@pytest.mark.parametrize("width", WIDTHS)
def test_an_unfolded_row_fits_the_screen(page: Callable[..., Any], width: int) -> None:
    driver = page(width=width)
    anchor = payload(driver)["anchors"][5]
    driver.execute_script("location.hash = arguments[0]", anchor)
    WebDriverWait(driver, 5).until(lambda d: d.find_elements(By.ID, "d" + anchor[1:]))
    assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    inner = driver.execute_script("return document.querySelector('.detail .inner').getBoundingClientRect().width")
    assert inner <= width


@pytest.mark.parametrize("which", ["plain", "metered"])
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(
    page: Callable[..., Any], both_reports: dict[str, Path], width: int, theme: str, which: str
) -> None:
    source = Path(__file__).resolve().parents[1] / "vendor" / "axe-core" / "axe.min.js"
    driver = page(width=width, theme=theme, path=both_reports[which])
    driver.execute_script("document.querySelector('#table button.no').click()")
    driver.execute_script(source.read_text(encoding="utf-8"))
    found = driver.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations), e => "
        "done([{id: String(e), impact: 'critical'}]))"
    )
    faults = [
        (v["id"], v["impact"], [n["html"][:200] for n in v.get("nodes", [])[:3]])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert faults == []


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


def test_cells_made_by_the_script_say_what_the_page_said(page: Callable[..., Any], report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    driver = page()
    static = re.findall(r'<tr id="(r-[^"]+)"[^>]*>(.*?)\n', text)
    assert len(static) > 200
    script = "return [...document.getElementById(arguments[0]).cells].map(c => c.textContent)"
    for anchor, cells in [*static[:5], *static[-60:]]:
        said = [html.unescape(cell) for cell in cells.split("<td>")[1:]]
        assert driver.execute_script(script, anchor) == said


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
