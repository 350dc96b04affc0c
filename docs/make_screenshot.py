"""Writes docs/report.png and docs/sample.png: the first screen of a finished run's report and one of its samples, in Chromium.

python docs/make_screenshot.py RUN [SAMPLE_ID]
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from syn4seg.report.page import write_report
from syn4seg.store.rundir import RunDir


def main() -> None:
    """Writes the report of the run beside nothing of it, opens the sample (by default the most changed), takes both pictures."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page, _ = write_report(RunDir(sys.argv[1]), 0, f"{folder}/report.html", lambda *_: None)
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        tab = chromium.new_page(viewport={"width": 1280, "height": 880})
        tab.goto(Path(str(page)).as_uri())
        tab.wait_for_timeout(500)
        tab.screenshot(path=Path(__file__).with_name("report.png"))
        tab.fill("#search", sys.argv[2] if len(sys.argv) > 2 else "")
        tab.locator("#cards .card").first.click()
        tab.wait_for_timeout(500)
        tab.locator("#detail").screenshot(path=Path(__file__).with_name("sample.png"))
        chromium.close()


if __name__ == "__main__":
    main()
