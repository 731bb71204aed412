"""Draws a report as a browser shows it.

``python tests/tools/screenshot.py runs/<id>/report.html docs/images/report.png``
"""

from __future__ import annotations

import argparse
import base64
import shutil
from pathlib import Path

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1700)
    parser.add_argument("--theme", choices=("light", "dark"), default="light")
    parser.add_argument("--at", default="", help="id of the element to begin at")
    given = parser.parse_args()

    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        scheme = [{"name": "prefers-color-scheme", "value": given.theme}]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        screen = {"width": given.width, "height": 900, "deviceScaleFactor": 1, "mobile": given.width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        driver.get(given.report.resolve().as_uri())
        script = "const e = document.getElementById(arguments[0]); return e ? e.getBoundingClientRect().top : 0"
        area = {"x": 0, "y": driver.execute_script(script, given.at), "width": given.width, "height": given.height}
        shot = driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": {**area, "scale": 1}}
        )
        given.out.write_bytes(base64.b64decode(shot["data"]))
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
