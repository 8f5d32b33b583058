"""`hayless run`: do it."""

from __future__ import annotations

import typer

from hayless.cli.output import Json, emit, out, table


def run(
    recipe: str = typer.Argument("", help="A recipe in YAML."),
    overrides: list[str] = typer.Argument(None, help="key=value, such as train.tokens=2M or kmeans.bits=3."),
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Print the resolved recipe and what is predicted; do nothing."
    ),
    run_dir: str = typer.Option("", "--run-dir", help="Folder of the run; runs/NAME if not given."),
    fresh: bool = typer.Option(False, "--fresh", help="Delete what an earlier run left there and start over."),
    peer: str = typer.Option("", "--peer", help="transformers or peft: that library's loop instead, to compare."),
    schema: bool = typer.Option(False, "--schema", help="Print the JSON Schema of recipes, for editors."),
    json: bool = Json,
) -> None:
    """Run a recipe: change, train, save and measure a model. A run that was stopped goes on where it was."""
    if schema:
        from hayless.recipe.schema import json_schema

        emit(json_schema())
        return
    if not recipe:
        raise typer.BadParameter("give a recipe, or --schema", param_hint="RECIPE")
    if peer and dry_run:
        raise typer.BadParameter("nothing is predicted of a peer; leave --dry-run out", param_hint="--peer")
    from hayless.recipe.load import load

    resolved = load(recipe, overrides or ())
    if dry_run:
        _show_plan(resolved, json)
        return
    if peer:
        from hayless.study import peers

        done = peers.run(peers.find(peer), resolved, run_dir or None, fresh=fresh)
    else:
        from hayless.recipe.execute import run as execute

        done = execute(resolved, run_dir or None, fresh=fresh)
    if json:
        emit({"folder": str(done.folder), **done.receipt.to_json()})
        return
    out.print(done.receipt.card())
    out.print(f"The model is in {done.folder / 'model'}.", soft_wrap=True)


def _show_plan(recipe: object, json: bool) -> None:
    from hayless.recipe import yaml
    from hayless.recipe.figures import title, written
    from hayless.recipe.prediction import ledger_table, predict
    from hayless.recipe.schema import Recipe

    assert isinstance(recipe, Recipe)
    prediction = predict(recipe)
    resolved = recipe.model_dump(mode="json", exclude_none=True)
    if json:
        emit({"recipe": resolved, "prediction": prediction.to_json()})
        return
    out.print(yaml.write(resolved))
    out.print(ledger_table(prediction))
    out.print()
    rows = [(title(name), written(name, value)) for name, value in prediction.figures.items()]
    table(["predicted", ""], rows, right=1)
