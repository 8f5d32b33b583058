"""`hayless run`: do it."""

from __future__ import annotations

import typer

from hayless.cli.output import Json, emit, out
from hayless.core.errors import NotSupported


def run(
    recipe: str = typer.Argument("", help="A recipe in YAML."),
    overrides: list[str] = typer.Argument(None, help="key=value, such as train.tokens=2M or kmeans.bits=3."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the resolved recipe and what is predicted; do nothing."
    ),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON Schema of recipes, for editors."),
    json: bool = Json,
) -> None:
    """Check a recipe and predict what it will cost."""
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
    raise NotSupported(
        "Recipes are read, checked and predicted, but not run yet: the executor waits for the model room.",
        hint="See what it would cost with --dry-run.",
    )


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
