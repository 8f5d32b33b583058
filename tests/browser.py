"""Headless Chromium for pages, and what a page must do there. Tests are skipped where there is none."""

from __future__ import annotations

import importlib.resources
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NEEDED = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=f"no browser is installed: none of {', '.join(NAMES)}"),
]
"""Marks of a file whose tests need a browser."""
_QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def started() -> Iterator[Browser]:
    """A browser; the tests are skipped where its driver, which the `dev` extra brings, is not installed."""
    driver = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install 'hayless[dev]'"
    )
    with driver.sync_playwright() as run:
        found = run.chromium.launch(executable_path=CHROMIUM, args=_QUIET)
        yield found
        found.close()


@contextmanager
def opened(browser: Browser, address: str, **context: Any) -> Iterator[Page]:
    """A page, freshly opened on a desk; what it complains about, or asks of the network, fails the test."""
    surroundings = browser.new_context(
        **{"viewport": {"width": 1280, "height": 900}, "permissions": ["clipboard-read"], **context}
    )
    found = surroundings.new_page()
    complaints: list[str] = []
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    found.on("request", lambda request: complaints.append(request.url) if request.url != address else None)
    found.goto(address)
    yield found
    surroundings.close()
    assert not [line for line in complaints if not line.startswith("blob:")]


def serious(view: Page) -> list[str]:
    """What axe-core finds that is serious or critical. Its file is the one that axe-playwright-python brings."""
    pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed: dev extra")
    view.evaluate(importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
    found = view.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then(found => JSON.stringify(found.violations))"
    )
    return [
        f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]} ({each['nodes'][0]['failureSummary']})"
        for each in json.loads(found)
        if each["impact"] in ("serious", "critical")
    ]
