"""`run`, `compare` and `report` from the command line: what they print, and with which exit codes they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hayless.cli import main
from hayless.core.errors import RequestError
from hayless.core.registry import catalogue
from hayless.recipe import yaml
from tests.recipe.running import TRAIN, recipe
from tests.study import folders

KMEANS = {"apply": {"method": "kmeans", "bits": 3}}


@pytest.fixture(scope="module", autouse=True)
def _verbs() -> None:
    if not main.app.registered_commands:
        main._register()


def run(*arguments: str, code: int = 0) -> Any:
    """What a verb left; errors of this package come through as exceptions."""
    result = CliRunner().invoke(main.app, [str(argument) for argument in arguments], catch_exceptions=True)
    if isinstance(result.exception, RequestError):
        raise result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result


def written(folder: Path, *steps: Any) -> Path:
    path = folder / "recipe.yaml"
    content = recipe(folder, *steps).model_dump(mode="json", exclude_none=True)
    path.write_text(yaml.write(content), encoding="utf-8")
    return path


def test_a_recipe_is_run_with_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, {"train": TRAIN}, KMEANS)
    place = tmp_path / "run"
    result = run("run", path, "train.steps=2", "kmeans.bits=2", "--run-dir", place, "--json")
    document = json.loads(result.stdout)
    assert document["state"] == "done" and document["folder"] == str(place)
    assert any("bits=2" in change for change in document["changes"])
    assert "step 2/2" in result.stderr
    shown = run("run", path, "train.steps=2", "kmeans.bits=2", "--run-dir", place)
    assert "kmeans bits=2" in shown.stdout and "step" not in shown.stderr
    with pytest.raises(RequestError, match="different recipe"):
        run("run", path, "--run-dir", place)


def test_every_method_is_listed_and_shown() -> None:
    listed = {card["name"]: card for card in json.loads(run("methods", "--json").stdout)}
    assert listed.keys() == catalogue().keys()
    assert (
        "a trained adapter" in listed["retrieve"]["needs"] and listed["compose"]["composes_with"]["lora"][:3] == "no:"
    )
    assert "per" in run("methods", "retrieve").stdout


def test_a_dry_run_predicts_and_does_nothing(tmp_path: Path) -> None:
    path = written(tmp_path, {"train": TRAIN}, KMEANS)
    result = run("run", path, "--dry-run", "--json", "--run-dir", tmp_path / "run")
    figures = json.loads(result.stdout)["prediction"]["figures"]
    assert figures["file_bytes"] > 0 and figures["train_peak_bytes"] > figures["file_bytes"]
    assert not (tmp_path / "run").exists()
    assert "Training peak" in run("run", path, "--dry-run").stdout


def test_a_peer_carries_a_recipe_out(tmp_path: Path) -> None:
    path = written(tmp_path, {"train": {**TRAIN, "steps": 1}})
    result = run("run", path, "--peer", "transformers", "--run-dir", tmp_path / "run", "--json")
    document = json.loads(result.stdout)
    assert document["state"] == "done" and document["peer"].startswith("transformers 5.")
    with pytest.raises(RequestError, match="Did you mean 'transformers'"):
        run("run", path, "--peer", "transformer")
    run("run", path, "--peer", "transformers", "--dry-run", code=2)


def test_schemas_for_editors(tmp_path: Path) -> None:
    assert "steps" in json.loads(run("run", "--schema").stdout)["properties"]
    assert "rows" in json.loads(run("compare", "--schema").stdout)["properties"]


def test_runs_are_reported_side_by_side_and_alone(tmp_path: Path) -> None:
    one = folders.run(tmp_path / "one", bits=2.0)
    two = folders.run(tmp_path / "two", bits=2.4, size=1_000_000)
    failed = folders.run(tmp_path / "three", state="failed", reason="The disk is full.")
    out = tmp_path / "page"
    result = run("report", one, two, failed, "--out", out, "--baseline", "one")
    assert "Best quality: one" in result.stdout and "The disk is full." in result.stdout
    assert {path.name for path in out.iterdir()} == {"report.html", "pareto.png", "results.json", "results.csv"}
    rows = json.loads(run("report", one, two, "--json").stdout)["rows"]
    assert [row["label"] for row in rows] == ["one", "two"] and rows[1]["difference_bits_per_byte"]
    assert "predicted to measured" in run("report", one).stdout
    with pytest.raises(RequestError, match="Unknown baseline"):
        run("report", one, two, "--baseline", "none")
    with pytest.raises(RequestError, match="no such folder"):
        run("report", tmp_path / "missing")


def test_a_study_whose_recipe_is_wrong_names_the_row(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    row = {"label": "wrong", "recipe": {**folders.recipe("x"), "steps": []}}
    path.write_text(yaml.write({"name": "tried", "rows": [row], "folder": str(tmp_path / "runs")}), encoding="utf-8")
    with pytest.raises(RequestError, match=r"Row 'wrong'(.|\n)*steps is empty"):
        run("compare", path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["run", "compare", "report"])
def test_a_verb_without_its_object_is_a_wrong_request(verb: str) -> None:
    assert "Usage" in run(verb, code=2).output
