"""The demo: every method has a row, and the whole of it runs, here on a corpus of a few sentences."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from hayless.core.registry import catalogue
from hayless.study import demo
from hayless.study.schema import contenders
from tests.data import made

SHOWN_BY_OTHERS = {"lm", "adamw"}
"""In every row that trains."""
WITHOUT_A_ROW = {"bitfit", "compose", "fusion", "retrieve", "lorahub", "float8_linears"}
"""The demo's model has no biases to train, and no modules that were trained before; 8-bit products need a GPU."""


def test_every_method_has_a_row() -> None:
    found = {entry.method for entry in demo.ENTRIES} | SHOWN_BY_OTHERS | WITHOUT_A_ROW
    assert found == set(catalogue())
    assert len({entry.label for entry in demo.ENTRIES}) == len(demo.ENTRIES)


def test_each_family_is_shown_once_and_all_on_request(tmp_path: Path) -> None:
    families = [entry.family for entry in demo.ENTRIES if entry.first]
    assert sorted(families) == sorted({entry.family for entry in demo.ENTRIES})
    assert len(demo.study(tmp_path).rows) == 2 + len(families)
    assert len(demo.study(tmp_path, everything=True).rows) == 2 + len(demo.ENTRIES)


def test_rows_spend_the_same_and_the_models_they_start_from_their_own(tmp_path: Path) -> None:
    tokens = {}
    for contender in contenders(demo.study(tmp_path, everything=True)):
        tokens[contender.label] = [step.train.tokens for step in contender.recipe.steps if hasattr(step, "train")]
    assert tokens.pop("target") == [demo.TARGET_TOKENS] and tokens.pop("draft") == [demo.DRAFT_TOKENS]
    assert {tuple(spent) for spent in tokens.values()} == {(), (demo.BUDGET_TOKENS,)}


@pytest.mark.slow
def test_the_demo_runs_and_a_second_time_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.texts(tmp_path, [400, 300, 500, 200, 300], domain="texts")
    monkeypatch.setattr(demo, "_DATA", {"sources": [{"path": str(tmp_path / "texts")}], "heldout": 0.3})
    for name in ("TARGET_TOKENS", "DRAFT_TOKENS", "BUDGET_TOKENS"):
        monkeypatch.setattr(demo, name, 2_000)
    monkeypatch.setattr(demo, "ENTRIES", [entry for entry in demo.ENTRIES if entry.method == "kmeans"])
    folder, said = tmp_path / "demo", io.StringIO()
    table = demo.run(folder, console=Console(file=said, width=200))
    rows = {row.label: row.record for row in table.rows}
    assert [label for label in rows if rows[label].failed] == [], said.getvalue()
    assert set(rows) == {"target", "draft", "k-means 4 bits", "unigram (only how often tokens occur)"}
    receipt = rows["k-means 4 bits"].receipt
    assert receipt.measured("file_bytes") == receipt.figure("file_bytes").predicted
    assert receipt.measured("file_bytes") < 0.6 * rows["target"].receipt.measured("file_bytes")
    unigram = next(row for row in table.rows if row.label.startswith("unigram"))
    assert unigram.difference is not None, "it is measured on the same documents"
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "unigram" in page
    assert (folder / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads((folder / "results.json").read_text())["rows"]) == 4
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/model/*")}
    demo.run(folder, console=Console(file=said, width=200))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/model/*")} == before
    assert "3 of 3 rows are done already" in said.getvalue()
