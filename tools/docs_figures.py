"""Draws the pictures of the documentation from a run: ``python tools/docs_figures.py runs/<id> --out docs/images``.

The report of the run is written into a temporary folder and opened in headless Chromium; each picture is a part of it,
as a reader sees it. A part that the run cannot draw is named, and its picture stays as it is. Those of comparisons need
runs whose differences are known: they are drawn from simulated runs (``tools/simulated_runs.py``), and need no run.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulated_runs import write_machines, write_versions

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")
QUALITY = 82
MARGIN = 12


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: of the file, without ``.webp``.
        at: CSS selector of the part; empty for the first screen.
        width: of the window, in pixels.
        height: most of it, in pixels.
        theme: ``"light"`` or ``"dark"``.
        script: what to do on the page before.
        of: ``"run"``, the report of the given run; ``"versions"`` or ``"machines"``, a comparison of simulated runs.
    """

    name: str
    at: str = ""
    width: int = 1280
    height: int = 900
    theme: str = "light"
    script: str = ""
    of: str = "run"


OPEN_FIRST = "document.querySelector('#slow tbody a').click();"
FILTER = (
    "location.hash = 'speed?dtype=bf16';"
    "const style = document.createElement('style');"
    "style.textContent = '#chip{display:none!important}';"
    "document.head.append(style);"
)
PICTURES = (
    Picture("report", width=1440),
    Picture("report-phone", width=390, height=844),
    Picture("report-dark", width=1440, theme="dark"),
    Picture("record", script=OPEN_FIRST, height=720),
    Picture("filtered", "#roofline", script=FILTER),
    Picture("roofline", "#roofline"),
    Picture("gap", "#gap"),
    Picture("waterline", "#waterline"),
    Picture("heat", "#heat"),
    Picture("line", "#line"),
    Picture("sparse", "#sparse"),
    Picture("latency", "#memory_latency"),
    Picture("predicted", "#predicted"),
    Picture("coverage", "#coverage"),
    Picture("decode", "#decode"),
    Picture("noise", "#trust .pairs"),
    Picture("comparison", width=1440, of="versions"),
    Picture("choosing", width=1440, of="machines"),
    Picture("choosing-phone", width=390, height=844, of="machines"),
)


def write_page(of: str, run: Path | None, folder: Path) -> Path:
    """The page that pictures are taken of; see :class:`Picture`."""
    from wattline.reports import write_comparison, write_report

    out = folder / f"{of}.html"
    if of == "run":
        assert run is not None
        return write_report(run, out)
    return write_comparison((write_versions if of == "versions" else write_machines)(folder), out)


def take(driver: Any, report: Path, picture: Picture) -> bytes | None:
    """The picture as WebP, or ``None`` where the page has no such part."""
    scheme = [{"name": "prefers-color-scheme", "value": picture.theme}]
    driver.get("about:blank")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
    screen = {"width": picture.width, "height": picture.height, "deviceScaleFactor": 1, "mobile": picture.width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.get(report.as_uri())
    if picture.script:
        driver.execute_script(picture.script)
        driver.execute_async_script("setTimeout(arguments[0], 300)")  # a link is followed after the script has ended
    options: dict[str, Any] = {"format": "webp", "quality": QUALITY}
    if picture.at:
        found = driver.execute_script(
            "const e = document.querySelector(arguments[0]); if (!e || !e.checkVisibility()) return null;"
            "const inner = [...e.querySelectorAll('svg.plot, h3, h4, p, dl')].map(c => c.getBoundingClientRect());"
            "const r = e.getBoundingClientRect(), right = Math.max(...inner.map(c => c.right), r.left + 200);"
            "const width = Math.min(right, r.right) - r.left;"
            "return {x: r.left + scrollX, y: r.top + scrollY, width, height: r.height}",
            picture.at,
        )
        if found is None:
            return None
        box = {
            "x": max(0, found["x"] - MARGIN), "y": max(0, found["y"] - MARGIN),
            "width": found["width"] + 2 * MARGIN, "height": min(found["height"] + 2 * MARGIN, picture.height),
        }  # fmt: skip
        options |= {"clip": {**box, "scale": 1}, "captureBeyondViewport": True}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", options)
    return base64.b64decode(shot["data"])


def main() -> int:
    """The command; 1 where a picture is missing, 2 without a browser."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?", help="its folder; not needed for pictures of comparisons")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    parser.add_argument("--only", nargs="*", help="names of pictures")
    given = parser.parse_args()
    names = [picture.name for picture in PICTURES]
    if unknown := sorted(set(given.only or []) - set(names)):
        parser.error(f"no picture is named {', '.join(unknown)}; there are {', '.join(names)}")
    wanted = [picture for picture in PICTURES if not given.only or picture.name in given.only]
    if given.run is None and any(picture.of == "run" for picture in wanted):
        parser.error("name the folder of a run, or with --only pictures of comparisons alone")
    browser, server = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if not browser or not server:
        sys.stderr.write("pictures need chromium and chromedriver: apt-get install chromium chromium-driver\n")
        return 2

    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = browser
    for flag in FLAGS:
        options.add_argument(flag)
    missing = []
    with tempfile.TemporaryDirectory() as folder:
        pages = {of: write_page(of, given.run, Path(folder)) for of in dict.fromkeys(p.of for p in wanted)}
        driver = webdriver.Chrome(options=options, service=Service(server))
        try:
            given.out.mkdir(parents=True, exist_ok=True)
            for picture in wanted:
                data = take(driver, pages[picture.of], picture)
                if data is None:
                    missing.append(picture.name)
                    continue
                path = given.out / f"{picture.name}.webp"
                path.write_bytes(data)
                sys.stdout.write(f"{path}  {len(data) / 1000:.0f} kB\n")
        finally:
            driver.quit()
    if missing:
        sys.stderr.write(f"not drawn by this run, left as they are: {', '.join(missing)}\n")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
