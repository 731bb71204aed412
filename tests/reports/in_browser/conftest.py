"""A real browser, and reports to open in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wattline.reports import write_report

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
    """Chromium without a window; what pages log and ask the network for is kept."""
    pytest.importorskip("selenium", reason="selenium is not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

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


@pytest.fixture
def overlaps() -> str:
    """A script that returns the pairs of texts of a page that lie upon each other."""
    return OVERLAPS


@pytest.fixture(scope="session")
def serious_faults() -> Callable[[Any], list[Any]]:
    """What axe finds on the page that a driver shows, as far as it is serious."""
    source = (Path(__file__).resolve().parents[2] / "vendor" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")

    def find(driver: Any) -> list[Any]:
        driver.execute_script(source)
        found = driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "axe.run(document, {resultTypes: ['violations']}).then(r => done(r.violations), e => "
            "done([{id: String(e), impact: 'critical'}]))"
        )
        return [
            (v["id"], v["impact"], [n["html"][:200] for n in v.get("nodes", [])[:3]])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]

    return find
