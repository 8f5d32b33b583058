"""`benchmarks/scaling.py`: a sweep's folder becomes a file of results and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.plan import sweeps

ROOT = Path(__file__).resolve().parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("benchmarks are not part of this distribution", allow_module_level=True)

from benchmarks import scaling  # noqa: E402


def test_a_sweep_becomes_results_with_goals_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, picture = tmp_path / "scaling.json", tmp_path / "scaling.png"
    monkeypatch.setattr(scaling, "RESULTS", results)
    monkeypatch.setattr(scaling, "PICTURE", picture)
    folder = tmp_path / "study"
    for width in sweeps.WIDTHS[:3]:
        for tokens in sweeps.TOKENS[:3]:
            loss = sweeps.LAW.loss(30 * width**2 + 1024 * width, tokens)
            sweeps.run(folder / f"{width}-{tokens}", sweeps.config(width), tokens, loss)
    assert scaling.main([str(folder)]) == 0
    rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
    assert rows[0]["metric"] == "miss of the held-out run" and rows[0]["met"] and rows[0]["value"] < 1
    assert sum(row["metric"] == "loss" for row in rows) == 9
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_runs_leaves_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
