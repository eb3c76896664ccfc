"""How large a run's report is, how long it takes to make, and how long a browser takes to open it."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from chromium import chromium
from run_folders import make_run
from selenium.webdriver.support.ui import WebDriverWait
from timing import show

from verl_dra.cli import main as verl_dra

STEPS, GROUPS, SIZE = 200, 20, 8
WORDS = (20, 150, 600)
ROUNDS = 5
DRAWN = """
  const plots = [...document.querySelectorAll("#charts .plot")];
  return document.documentElement.dataset.ready === "yes"
    && plots.every((plot) => plot.data !== undefined || plot.getBoundingClientRect().top > innerHeight);
"""


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for words in WORDS:
            run = make_run(Path(name) / str(words), steps=STEPS, groups=GROUPS, size=SIZE, words=words)
            shutil.rmtree(run / "validation")
            page = Path(name) / f"{words}.html"
            start = time.perf_counter()
            if verl_dra(["report", str(run), "--out", str(page)]):
                sys.exit("no report was made")
            made = time.perf_counter() - start
            opened = [_open(page, Path(name) / f"profile-{words}-{at}") for at in range(ROUNDS)]
            shown = page.read_text().count('id="groups-0-')
            rows.append(
                [
                    f"{words:,}",
                    f"{shown} of {STEPS}",
                    f"{page.stat().st_size / 1e6:.1f}",
                    f"{made:.1f}",
                    f"{statistics.median(opened):.2f}",
                    f"{min(opened):.2f} to {max(opened):.2f}",
                ]
            )
    show(
        f"A report of {STEPS} steps by {GROUPS} groups of {SIZE}; opened {ROUNDS} times, by a new browser each time",
        ["words a completion", "steps shown", "MB", "made in s", "opened in s", "least and most"],
        rows,
    )


def _open(page: Path, profile: Path) -> float:
    """Seconds from the start of loading until all that is in view is drawn and answers."""
    driver = chromium(profile)
    if driver is None:
        sys.exit("chromium and chromedriver are needed (Debian's packages chromium and chromium-driver)")
    try:
        start = time.perf_counter()
        driver.get(page.as_uri())
        WebDriverWait(driver, 60, poll_frequency=0.01).until(lambda d: d.execute_script(DRAWN))
        return time.perf_counter() - start
    finally:
        driver.quit()
