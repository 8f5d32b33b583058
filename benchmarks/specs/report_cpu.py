"""`hayless report` on many runs, and how long a browser takes to show the page."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from parts.scratch import folder

from hayless.core.measurement import Goal
from hayless.study import page, record, table
from hayless.study.bench.gate import close
from hayless.study.bench.spec import TIME, Contender, Figure, Prepared, Spec, Unavailable, Work

sys.path.append(str(Path(__file__).resolve().parents[2]))
from tests.study import folders

_STEPS = 500
_SIZE = "page size"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_SHOWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@cache
def runs(count: int) -> list[Path]:
    """Folders of so many runs, as a study leaves them, whose figures and curves are made up."""
    made, noise = folder() / f"runs-{count}", random.Random(0)
    return [
        folders.run(
            made / f"run-{number}",
            bits=2 + noise.random(),
            size=10**6 + 90_000 * number,
            seed=number,
            apply={"method": "kmeans", "bits": 2 + number % 7},
            steps=_STEPS,
        )
        for number in range(count)
    ]


def report(count: int) -> Prepared:
    """The whole process: reading folders, ranking by paired bootstrap, the page, the plot, JSON and CSV."""
    out = folder() / f"report-{count}"
    command = [sys.executable, "-P", "-m", "hayless", "report", *map(str, runs(count)), "--out", str(out)]

    def run() -> object:
        return subprocess.run(command, check=True, capture_output=True)

    def answer() -> dict[str, list[int]]:
        run()
        return {"runs": [len(json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"])]}

    return Prepared(run, answer, figures=lambda: [_size(out / "report.html")])


def opened(count: int) -> Prepared:
    """Headless Chromium, started already, until the page has been drawn: with a plot of all runs and eight curves."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        raise Unavailable(f"no browser is installed: none of {', '.join(_BROWSERS)}")
    out = folder() / f"page-{count}.html"
    page.write(table.build(record.read_all(runs(count))), out, name="many")
    driver = sync_playwright().start()
    atexit.register(driver.stop)
    view = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"]).new_page()

    def run() -> None:
        view.goto(out.as_uri())
        view.evaluate(_SHOWN)

    def answer() -> dict[str, list[int]]:
        run()
        places = ("#table tbody tr", "#plot a.point", "#curve-plot polyline")
        return {place: [view.locator(place).count()] for place in places}

    return Prepared(run, answer, figures=lambda: [_size(out)])


def _size(path: Path) -> Figure:
    return Figure(_SIZE, "B", path.stat().st_size)


def _at_most(metric: str, value: float) -> dict[str, Goal]:
    return {metric: Goal(op="<=", value=value)}


_GOAL = _at_most(_SIZE, 5e6)

SPEC = Spec(
    name="report_cpu",
    works=[
        Work(
            f"hayless report on 100 runs of {_STEPS} steps each, a fresh process",
            [Contender("hayless", lambda: report(100), goals=_at_most(TIME, 5e3) | _GOAL)],
            same=close(),
            piece="report",
            repeats=5,
            warmup=1,
            peaks=False,
        ),
        Work(
            f"the page of 200 runs of {_STEPS} steps each in Chromium, until it is drawn",
            [Contender("hayless", lambda: opened(200), needs=("playwright",), goals=_at_most(TIME, 1e3) | _GOAL)],
            same=close(),
            piece="page",
            repeats=9,
            warmup=2,
            peaks=False,
        ),
    ],
)
