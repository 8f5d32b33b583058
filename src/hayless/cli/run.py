"""`hayless run`: do it."""

from __future__ import annotations

from pathlib import Path

import typer

from hayless.cli.output import Json, emit, err, out


def run(
    recipe: str = typer.Argument("", help="A recipe in YAML."),
    overrides: list[str] = typer.Argument(None, help="key=value, such as train.tokens=2M or kmeans.bits=3."),
    run_dir: Path = typer.Option(None, help="The run's folder; runs/NAME if not given."),
    fresh: bool = typer.Option(False, "--fresh", help="Delete what this run has and start over."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the resolved recipe and what is predicted; do nothing."
    ),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON Schema of recipes, for editors."),
    json: bool = Json,
) -> None:
    """Run a recipe: apply, train, measure, save. A run that was stopped goes on where it was."""
    if schema:
        from hayless.recipe.schema import json_schema

        emit(json_schema())
        return
    if not recipe:
        raise typer.BadParameter("give a recipe, or --schema", param_hint="RECIPE")
    from hayless.recipe.load import load

    resolved = load(recipe, overrides or ())
    if dry_run:
        _show_plan(resolved, json)
        return
    from hayless.recipe.executor import execute
    from hayless.recipe.receipt import Receipt

    folder = run_dir or Path("runs") / resolved.name
    execute(resolved, folder, fresh=fresh, say=lambda text: err.print(text, style="dim"))
    receipt = Receipt.from_run(folder)
    if json:
        emit(receipt.to_json())
    else:
        out.print(receipt.card())


def _show_plan(recipe: object, json: bool) -> None:
    from hayless.recipe import yaml
    from hayless.recipe.prediction import ledger_table, predict
    from hayless.recipe.schema import Recipe

    assert isinstance(recipe, Recipe)
    prediction = predict(recipe)
    resolved = recipe.model_dump(mode="json", exclude_none=True)
    if json:
        emit({"recipe": resolved, "prediction": prediction.to_json()})
        return
    out.print(yaml.write(resolved))
    out.print(ledger_table(prediction.ledger))
    for name, value in prediction.to_json()["figures"].items():
        out.print(f"{name}: {value:,}")
