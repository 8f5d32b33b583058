"""`hayless plan scaling`: the published laws, and a law of one's own runs."""

from __future__ import annotations

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
