"""The page in a real browser: by clicks and keys, reading back what it then shows.

Skipped with a reason where no Chromium is installed, or the driver that the `dev` extra brings is not.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from hayless.study import page, record, table
from tests import browser as browsers
from tests.study import folders

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = browsers.NEEDED
LABELS = ["base", "four bits", "thin", "out of memory"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of four runs: the best, one a sixth of its size, one with an adapter by a peer, one that failed."""
    path = tmp_path_factory.mktemp("runs")
    runs = [
        folders.run(path / "base", "base", size=12_000_000, ms=4.0),
        folders.run(
            path / "four", "four-bits", bits=2.1, size=2_000_000, apply={"method": "kmeans", "bits": 4}, ms=9.0
        ),
        folders.run(path / "thin", "thin", bits=2.3, size=9_000_000, apply={"method": "lora", "rank": 8}, ms=2.0),
        folders.run(path / "bad", "bad", state="failed", reason="memory ran out"),
    ]
    records = [record.read(run, label) for run, label in zip(runs, LABELS, strict=True)]
    published = records[1].receipt.with_published({"file_bytes": 2_500_000.0}, "Somebody et al. (2020)")
    records[1] = dataclasses.replace(records[1], receipt=published)
    by_peer = records[2].receipt.model_copy(update={"peer": "peft 0.21"})
    records[2] = dataclasses.replace(records[2], receipt=by_peer)
    out = path / "report.html"
    page.write(table.build(records), out, name="browser", budget="1,000,000 tokens a run")
    return out.as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsers.started() as found:
        yield found


@pytest.fixture
def view(browser: Browser, address: str) -> Iterator[Page]:
    with browsers.opened(browser, address) as found:
        yield found


def shown(view: Page) -> list[str]:
    """Labels of the rows that are shown, in their order."""
    return view.locator("#table tbody tr:visible th > a").all_inner_texts()


def points(view: Page) -> dict[str, str]:
    """What each dot of the plot says, by its run."""
    names = view.locator("#plot a.point").evaluate_all("dots => dots.map(dot => dot.getAttribute('aria-label'))")
    return dict(name.split(": ", 1) for name in names)


def head(view: Page, name: str) -> None:
    view.get_by_role("columnheader", name=name).get_by_role("button").click()


def test_a_click_on_a_head_sorts_and_another_turns_it_round(view: Page) -> None:
    assert shown(view) == LABELS
    head(view, "File size")
    assert shown(view) == ["four bits", "thin", "base", "out of memory"]
    assert view.locator("th[data-key=file_bytes]").get_attribute("aria-sort") == "ascending"
    head(view, "File size")
    assert shown(view) == ["base", "thin", "four bits", "out of memory"]
    head(view, "Run")
    assert shown(view) == ["base", "four bits", "out of memory", "thin"]
    assert view.locator("th[aria-sort]").count() == 1


def test_figures_stand_beside_what_was_predicted_and_published(view: Page) -> None:
    cell = view.locator("#table tr", has_text="four bits").locator("td[data-title='File size']")
    assert cell.inner_text().split() == ["2.00", "MB", "predicted", "2.00", "MB", "published", "2.50", "MB"]
    view.get_by_label("predicted and published").uncheck()
    assert cell.inner_text() == "2.00 MB"


def test_the_filter_finds_names_and_methods_for_table_and_plot(view: Page) -> None:
    view.get_by_label("Filter").fill("kmeans")
    assert shown(view) == ["four bits"] and list(points(view)) == ["four bits"]
    assert view.locator("#count").inner_text() == "1 of 4 runs"
    view.get_by_label("Filter").fill("peft")
    assert shown(view) == ["thin"] and view.locator("#table tr:visible .tag").all_inner_texts() == ["peer"]
    view.get_by_label("Filter").fill("")
    view.get_by_label("State").select_option("failed")
    assert shown(view) == ["out of memory"] and not points(view)
    assert "memory ran out" in view.locator("#table tbody tr:visible").inner_text()


def test_axes_can_be_chosen_and_the_front_follows(view: Page) -> None:
    def front() -> list[str]:
        return sorted(view.locator("#plot a.point.on").evaluate_all("d => d.map(x => x.ariaLabel.split(':')[0])"))

    assert view.locator("#plot-x option").all_inner_texts() == [
        *("Bits per byte", "Training peak", "Decoding peak", "File size", "Training speed", "Decoding time"),
    ]
    assert front() == ["base", "four bits"]
    assert "File size 2.00 MB (predicted 2.00 MB)" in points(view)["four bits"]
    view.get_by_label("Across").select_option("ms_per_token")
    assert "Decoding time 9.000 ms/token" in points(view)["four bits"]
    assert front() == ["base", "thin"]
    view.get_by_label("Up").select_option("decode_peak_bytes")
    assert front() == ["four bits", "thin"] and view.locator("#plot .hollow").count() == 3
    view.get_by_label("predictions").uncheck()
    assert view.locator("#plot .hollow").count() == 0


def test_energy_is_an_axis_and_what_has_none_is_named(browser: Browser, tmp_path: Path) -> None:
    """A fabricated counter: two runs of three on a machine that reports energy."""
    runs = [
        folders.run(tmp_path / "frugal", bits=2.2, joules=0.25),
        folders.run(tmp_path / "hungry", bits=2.0, joules=1.5),
        folders.run(tmp_path / "elsewhere", bits=2.1),
    ]
    page.write(table.build(record.read_all(runs)), tmp_path / "report.html", name="energy")
    view = browser.new_page()
    view.goto((tmp_path / "report.html").as_uri())
    view.get_by_label("Across").select_option(label="Energy")
    found = points(view)
    assert set(found) == {"frugal", "hungry"} and found["frugal"].startswith("Energy 0.2500 J/token; Bits per byte")
    assert view.locator("#plot a.point.on").count() == 2, "less energy and better quality are both on the front"
    assert "Energy, J/token (lower is better)" in view.locator("#plot svg").text_content()
    assert view.locator("#plot .note").inner_text() == "Not measured on both: elsewhere."
    head(view, "Energy")
    assert shown(view) == ["frugal", "hungry", "elsewhere"]
    cells = view.locator("td[data-title^=Energy]").all_inner_texts()
    assert cells == ["0.2500", "1.500", "not measured"]
    assert "this machine does not report energy" in view.locator("details.run", has_text="elsewhere").text_content()
    view.close()


def test_two_runs_are_compared_and_the_difference_has_its_methods(view: Page) -> None:
    view.locator("#compare-a").select_option(label="base")
    view.locator("#compare-b").select_option(label="four bits")
    out = view.locator("#compare-out")
    cells = out.locator("#compare-figures tr", has_text="File size").locator("td").all_inner_texts()
    assert cells == ["12.0 MB", "2.00 MB", "−10.0 MB (−83.3 %) better", "−10.0 MB"]
    quality = out.locator("#compare-figures tr", has_text="Bits per byte").locator("td").nth(2).inner_text()
    assert quality.startswith("+0.09") and " ± " in quality and quality.endswith("worse")
    assert "kmeans, only in four bits (bits 4)" in out.locator(".methods").inner_text()
    assert "arXiv:1510.00149" in out.locator(".methods").inner_text()
    assert out.locator(".differs tr", has_text="apply kmeans.bits").locator("td").all_inner_texts() == ["–", "4"]
    view.locator("#compare-b").select_option(label="thin")
    notes = out.locator(".methods").inner_text()
    assert "lora, only in thin (rank 8)" in notes and "carried out: base by hayless, thin by peft 0.21." in notes


def test_a_recipe_is_one_click_away(view: Page) -> None:
    view.get_by_role("button", name="Copy the recipe of four bits").first.click()
    view.wait_for_function("document.getElementById('said').textContent == 'Copied the recipe of four bits.'")
    text = view.evaluate("navigator.clipboard.readText()")
    assert text == Path(folder_of(view) / "four" / "recipe.yaml").read_text(encoding="utf-8")
    assert "method: kmeans" in text


def folder_of(view: Page) -> Path:
    return Path(view.evaluate("decodeURIComponent(new URL(document.URL).pathname)")).parent


def test_csv_has_the_rows_shown_in_their_order(view: Page) -> None:
    view.get_by_label("State").select_option("done")
    head(view, "File size")
    with view.expect_download() as waiting:
        view.get_by_role("button", name="Export CSV").click()
    assert waiting.value.suggested_filename == "browser.csv"
    rows = list(csv.DictReader(Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()))
    assert [row["run"] for row in rows] == ["four bits", "thin", "base"]
    assert float(rows[0]["file_bytes"]) == 2_000_000 == float(rows[0]["file_bytes_predicted"])
    assert float(rows[0]["file_bytes_published"]) == 2_500_000 and rows[1]["file_bytes_published"] == ""
    assert float(rows[2]["rank"]) == 1 and [row["peer"] for row in rows] == ["", "peft 0.21", ""]


def test_samples_and_curves_open_and_read(view: Page) -> None:
    view.locator("#table").get_by_role("link", name="thin").click()
    run = view.locator("details.run[open]", has_text="thin")
    assert not run.get_by_text("return 50").is_visible()
    run.get_by_text("Samples while training (4)").click()
    assert run.locator(".sample pre").first.inner_text() == "def main(self, x):\n    return 50"
    assert view.locator("#curve-plot polyline").count() == 4
    view.locator("#curve-runs").get_by_label("thin").uncheck()
    view.get_by_label("Curve").select_option("validation_loss")
    assert view.locator("#curve-plot polyline").count() == 3
    assert "base ends at" in (view.locator("#curve-plot svg").get_attribute("aria-label") or "")


def test_everything_works_from_the_keyboard(view: Page) -> None:
    def focused() -> str:
        return view.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent.trim()")

    view.keyboard.press("Tab")
    assert focused() == "Skip to the results"
    view.locator("#plot-predicted").focus()
    view.keyboard.press("Tab")
    first = focused()
    assert first.split(":")[0] in view.locator("#plot-readout").inner_text() and "File size" in first
    view.locator("th[data-key=ms_per_token] button").focus()
    view.keyboard.press("Enter")
    assert shown(view)[0] == "thin"
    view.locator("#run-1 > summary").focus()
    view.keyboard.press("Space")
    assert view.locator("#run-1").get_attribute("open") is not None
    view.locator("#curve-step").focus()
    view.keyboard.press("End")
    assert view.locator("#curve-now-0").inner_text().endswith("at 200")
    assert "base" in (view.locator("#curve-step").get_attribute("aria-valuetext") or "")
    style = view.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid"


def test_a_phone_sorts_without_heads_and_its_tables_stay_tables(view: Page) -> None:
    view.set_viewport_size({"width": 390, "height": 844})
    assert view.locator("#table thead").is_hidden()
    view.get_by_label("Sort by").select_option("file_bytes")
    assert shown(view) == ["four bits", "thin", "base", "out of memory"]
    view.get_by_role("button", name="Reverse order").click()
    assert shown(view) == ["base", "thin", "four bits", "out of memory"]
    for name in ("#table", "#compare-figures", "#run-0 table"):
        table = view.locator(name)
        assert table.get_attribute("role") == "table"
        assert table.get_by_role("rowheader").count() == table.locator("tbody tr").count()


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (390, 844, "dark")])
def test_nothing_overflows_and_axe_finds_nothing(
    browser: Browser, address: str, width: int, height: int, scheme: str
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
    )
    view = context.new_page()
    view.goto(address)
    for details in view.locator("details").all():
        details.evaluate("node => { node.open = true; }")
    paper = view.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.removeprefix("rgb(").removesuffix(")").split(","))) < 200) == (scheme == "dark")
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    cut = """[...document.querySelectorAll('main .value, main .note, h1, h2, .controls > *')]
        .filter(node => node.offsetParent && !node.closest('.scroll'))
        .filter(node => node.getBoundingClientRect().right > innerWidth + 1).map(node => node.textContent)"""
    assert view.evaluate(cut) == []
    assert browsers.serious(view) == []
    context.close()
