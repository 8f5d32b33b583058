"""`hayless plan verify` prints what a run says, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from hayless.cli.plan import app
from hayless.core.errors import RequestError
from hayless.plan import grid

MEASURED = str(Path(__file__).parents[2] / "benchmarks/verified/h100")


def test_a_finished_run_is_compared_without_running_anything(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", MEASURED, "--no-run", "--out", str(tmp_path / "v.svg")])
    assert result.exit_code == 0, result.output
    assert f"{len(grid.cases('cuda', quick=False))} cases" in result.output and "peak of training" in result.output
    assert "Margin of predicted peaks: ± 1.2%" in result.output
    assert "accelerate estimate-memory" in (tmp_path / "v.svg").read_text(encoding="utf-8")


def test_json_has_units_in_its_names(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verify", MEASURED, "--no-run", "--quick", "--json"])
    found = json.loads(result.stdout)
    assert found["margin"] == "± 1.2%" and found["summary"]["peak of training"]["worst"] < 0.012
    first = found["cases"][0]
    assert first["peak_bytes"]["predicted"] > first["weights_bytes"]["measured"] > 0 and "context_bytes" in first


def test_a_folder_without_a_run_and_other_pictures_are_refused(tmp_path: Path) -> None:
    for arguments, words in ((["--no-run"], "There is no"), (["--no-run", "--out", "v.jpg"], "png or .svg")):
        result = CliRunner().invoke(app, ["verify", str(tmp_path), *arguments])
        assert isinstance(result.exception, RequestError) and words in str(result.exception)
