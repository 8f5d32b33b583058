"""`hayless inspect`: what is inside."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.inspect_quantizing import error, outliers
from hayless.cli.output import Json, Model, emit, out, table

if TYPE_CHECKING:
    from hayless.measure.weights import Inspection, RoleWeights

app = typer.Typer(help="Look inside a model.", no_args_is_help=True)

_NAMED = 20
"""How many unexplained tensors are named in the terminal."""


app.command("outliers")(outliers)
app.command("error")(error)


@app.command("weights")
def weights(model: str = Model, json: bool = Json) -> None:
    """Show every role's weights: elements and bytes beside what the ledger predicts, and what values they have."""
    from hayless.measure.memory import enough_memory
    from hayless.measure.weights import inspect_weights
    from hayless.model.load import load_model, task_of
    from hayless.model.transform import record

    with enough_memory("The whole model is loaded to look at it; use a machine with more memory."):
        loaded = load_model(model, task=task_of(model))
        found = inspect_weights(loaded)
    methods = [config.model_dump(mode="json") for config in record(loaded)]
    if json:
        emit(
            {
                "model": model,
                "class": type(loaded).__name__,
                "dtype": str(loaded.dtype).removeprefix("torch."),
                "methods": methods,
                "roles": [asdict(role) for role in found.roles],
                "total": _total(found),
                "unexplained": list(found.unexplained),
            }
        )
    else:
        dtype = str(loaded.dtype).removeprefix("torch.")
        _show([("model", model), ("class", f"{type(loaded).__name__}, {dtype}"), *_record(methods)], found)


def _total(found: Inspection) -> dict[str, int]:
    names = ("elements", "bytes", "predicted_elements", "predicted_bytes", "not_finite")
    return {name: sum(getattr(role, name) for role in found.roles) for name in names}


def _record(methods: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The methods a model has had, in order, with the options that are set."""
    lines = []
    for config in methods:
        options = [
            f"{name} {_plain(value)}" for name, value in config.items() if name != "method" and value is not None
        ]
        lines.append(f"{config['method']} ({', '.join(options)})")
    return [("methods" if number == 0 else "", line) for number, line in enumerate(lines or ["none"])]


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _show(about: list[tuple[str, str]], found: Inspection) -> None:
    table(["", ""], about)
    titles = ["role", "elements", "ledger", "bytes", "ledger", "mean", "std", "zeros", "largest"]
    rows = [*(_row(role) for role in found.roles), ["all", *_sizes(_total(found)), "", "", "", ""]]
    table(titles, rows, right=len(titles) - 1)
    broken = [f"{role.not_finite:,} in {role.role}" for role in found.roles if role.not_finite]
    if broken:
        out.print(f"NaN or infinite: {', '.join(broken)}.", style="bold")
    odd = [role.role for role in found.roles if _sizes(asdict(role))[1::2] != ["=", "="]]
    if odd:
        out.print(f"Not as the ledger predicts: {', '.join(odd)}.", style="bold")
    if found.unexplained:
        more = len(found.unexplained) - _NAMED
        out.print(f"{len(found.unexplained)} tensors that no row of the ledger explains:", style="bold")
        out.print("  " + "\n  ".join(found.unexplained[:_NAMED]) + (f"\n  and {more} more" if more > 0 else ""))
    if not odd and not found.unexplained:
        out.print("Every tensor is one that the ledger predicts, of the size (=) it predicts.")


def _row(role: RoleWeights) -> list[str]:
    zeros = "" if role.zeros is None else f"{role.zeros:.1%}" if role.zeros else "0"
    return [role.role, *_sizes(asdict(role)), _short(role.mean), _short(role.std), zeros, _short(role.largest)]


def _sizes(figures: dict[str, Any]) -> list[str]:
    """Elements and bytes beside what was predicted: in short with `=` where that is the same, else in full."""
    from hayless.core.units import format_bytes, format_count

    cells = []
    for name, short in (("elements", format_count), ("bytes", format_bytes)):
        there, predicted = figures[name], figures[f"predicted_{name}"]
        cells += [short(there), "="] if there == predicted else [f"{there:,}", f"{predicted:,}"]
    return cells


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
