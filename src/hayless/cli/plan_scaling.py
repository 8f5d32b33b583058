"""`hayless plan scaling`: the published laws, and a law of one's own runs."""

from __future__ import annotations

from pathlib import Path

import typer

from hayless.cli.output import Json
from hayless.cli.plan_tables import show_tables

app = typer.Typer(rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def scaling(
    context: typer.Context,
    parameters: str = typer.Option("", "--parameters", help="N, such as 70B."),
    tokens: str = typer.Option("", "--tokens", help="D, such as 1.4T; 20 a parameter if not given."),
    points: str = typer.Option("", "--points", help="N:LOSS,N:LOSS,… to fit L(N) = a/N^b + c to."),
    json: bool = Json,
) -> None:
    """Scaling laws: Kaplan's, Chinchilla's, its refit, and one of your own."""
    if context.invoked_subcommand:
        return
    from hayless.core.units import parse_count
    from hayless.plan import scaling

    if points:
        show_tables([scaling.fitted(_points(points))], json)
    elif parameters:
        count = parse_count(parameters, "parameters")
        data = parse_count(tokens, "tokens") if tokens else scaling.TOKENS_A_PARAMETER * count
        show_tables([scaling.losses(count, data)], json)
    elif tokens:
        raise typer.BadParameter("needs --parameters", param_hint="--tokens")
    else:
        show_tables([scaling.published()], json)


@app.command("fit")
def fit(
    folders: list[str] = typer.Argument(None, metavar="RUNS|STUDY", help="Folders of runs, or a study's."),
    held_out: str = typer.Option(
        "largest", "--held-out", help="The run to predict: the one of most compute, one by its name, or none."
    ),
    count: str = typer.Option("total", "--count", help="What N counts: total, or non-embedding."),
    budgets: str = typer.Option("", "--flops", help="Budgets to tell the best N and D for, such as 1e15,1e18."),
    out_file: str = typer.Option("", "--out", help="Also draw the picture to this .png or .svg."),
    json: bool = Json,
) -> None:
    """Fit L(N, D) = E + A/N^α + B/D^β to finished runs: recipes/scaling.yaml makes some."""
    if not folders:
        raise typer.BadParameter("name a study's folder, such as runs/scaling", param_hint="RUNS|STUDY")
    if count not in ("total", "non-embedding"):
        raise typer.BadParameter("allowed: total or non-embedding", param_hint="--count")
    form = Path(out_file).suffix.removeprefix(".")
    if out_file and form not in ("png", "svg"):
        raise typer.BadParameter("ends in .png or .svg", param_hint="--out")
    from hayless.plan.sweep import findings, runs, tables

    wanted = _budgets(budgets)
    sweep = runs.read([Path(folder) for folder in folders])
    found = findings.analyse(sweep, "total" if count == "total" else "non-embedding", held_out)
    if out_file:
        from hayless.core.atomic import write_bytes
        from hayless.plan.sweep.picture import draw

        write_bytes(Path(out_file), draw(found, ", ".join(folders), "png" if form == "png" else "svg"))
    show_tables(tables.tables(found, wanted), json)


def _budgets(text: str) -> list[float]:
    from hayless.core.errors import bad_value

    try:
        return [float(part) for part in text.split(",")] if text else []
    except ValueError:
        raise bad_value("flops", text, allowed="numbers such as 1e15,1e18") from None


def _points(text: str) -> list[tuple[float, float]]:
    from hayless.core.errors import bad_value
    from hayless.core.units import parse_count

    found = []
    for part in text.split(","):
        size, _, loss = part.partition(":")
        try:
            found.append((float(parse_count(size, "points")), float(loss)))
        except ValueError:
            raise bad_value("points", part, allowed="N:LOSS, such as 10M:3.4") from None
    return found
