"""`hayless inspect outliers` and `inspect error`: what quantizing meets, and what it does."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.inputs import Builtin, picture_form, sources
from hayless.cli.output import Device, Dtype, Json, Model, emit, err, out, table

if TYPE_CHECKING:
    from hayless.data.config import DataConfig
    from hayless.measure.outliers import Outliers
    from hayless.measure.weight_error import WeightError

Data = typer.Option(None, "--data", help="A file, a folder or a quoted pattern; may be repeated.")
Picture = typer.Option(None, "--out", help="A picture over the layers: .png or .svg.")


def outliers(
    model: str = Model,
    data: list[str] = Data,
    builtin: str = Builtin,
    threshold: float = typer.Option(6.0, help="Magnitudes of at least this are outliers."),
    tokens: str = typer.Option("16k", help="Tokens looked at, at most; long documents are cut where not all fit."),
    context: int = typer.Option(None, help="Tokens read at once; the model's own limit if not given."),
    picture: Path = Picture,
    device: str = Device,
    dtype: str = Dtype,
    json: bool = Json,
) -> None:
    """Count the columns of layers' inputs that hold outliers: what LLM.int8() multiplies in 16 bits."""
    from hayless.core.errors import bad_value
    from hayless.core.options import checked
    from hayless.measure.outliers import draw, inspect_outliers
    from hayless.measure.settings import MeasureSettings
    from hayless.recipe.progress import shown

    if not threshold > 0:
        raise bad_value("--threshold", threshold, allowed="a number above 0")
    form, named = picture_form(picture), {"heldout_tokens": "--tokens", "context": "--context"}
    settings = checked(MeasureSettings, {"heldout_tokens": tokens, "context": context}, named)
    documents = _data(data or [], builtin)
    with shown(err) as progress:
        found = inspect_outliers(
            model, documents, settings, threshold=threshold, device=device, dtype=dtype, progress=progress
        )
    if picture is not None:
        _write(picture, draw(found, form))
    if json:
        emit({"model": model, **_shares(found), **asdict(found)})
    else:
        _show_outliers(model, found)


def error(
    model: str = Model,
    method: str = typer.Option(..., "--method", help="A method and its options, such as 'nf4(block_size=64)'."),
    data: list[str] = Data,
    builtin: str = Builtin,
    tokens: str = typer.Option("128k", help="Tokens that methods see which are calibrated on text."),
    picture: Path = Picture,
    device: str = Device,
    dtype: str = Dtype,
    json: bool = Json,
) -> None:
    """Show what a quantizer does to weights: value − quantized value, layer by layer. Nothing is saved."""
    from hayless.core.units import parse_count
    from hayless.measure.weight_error import draw, inspect_errors, together
    from hayless.plan.memory import methods_named
    from hayless.recipe.progress import shown

    form, configs = picture_form(picture), methods_named(method)
    documents = _data(data or [], builtin) if data or builtin else None
    with shown(err) as progress:
        errors = inspect_errors(
            model, configs, documents, parse_count(tokens), device=device, dtype=dtype, progress=progress
        )
    layers = [
        together([each for each in errors if each.layer == layer], f"layer {layer}", layer)
        for layer in dict.fromkeys(each.layer for each in errors)
        if layer is not None
    ]
    outside = [each for each in errors if each.layer is None]
    if picture is not None:
        _write(picture, draw(errors, f"{method}: error of {Path(model).name}'s weights", form))
    if json:
        settings = [config.model_dump(mode="json") for config in configs]
        parts = {"tensors": errors, "layers": layers, "all": [together(errors, "all")]}
        written = {name: [_in_json(each) for each in found] for name, found in parts.items()}
        emit({"model": model, "methods": settings, **written, "all": written["all"][0]})
    else:
        _show_errors(method, [*outside, *layers, together(errors, "all")])


def _data(files: list[str], builtin: str) -> DataConfig:
    from hayless.core.options import checked
    from hayless.data.config import DataConfig

    return checked(DataConfig, {"sources": sources(files, builtin, option="--data")}, {})


def _write(picture: Path, content: bytes) -> None:
    from hayless.core import atomic

    atomic.write_bytes(picture, content)
    err.print(f"{picture} written", markup=False, soft_wrap=True)


def _shares(found: Outliers) -> dict[str, float]:
    return {
        "layers": found.layers,
        "layers_with": found.layers_with,
        "layers_share": found.layers_with / found.layers,
        "tokens_share": found.tokens_with / found.tokens,
    }


def _show_outliers(model: str, found: Outliers) -> None:
    from hayless.measure.outliers import inputs_of

    shares = _shares(found)
    about = [
        ("model", model),
        ("outliers", f"magnitudes of {found.threshold:g} and more"),
        ("layers with any", f"{found.layers_with} of {found.layers} ({shares['layers_share']:.0%})"),
        ("tokens with any", f"{found.tokens_with:,} of {found.tokens:,} ({shares['tokens_share']:.1%})"),
        ("read at once", f"up to {found.context:,} tokens"),
    ]
    table(["", ""], about)
    rows = [
        [
            str(each.layer),
            name,
            f"{each.columns} of {each.width:,}",
            f"{each.columns_a_window:.1f}",
            f"{each.tokens_with / found.tokens:.1%}",
            f"{each.largest:.3g}",
        ]
        for name, same in inputs_of(found).items()
        for each in same
    ]
    rows.sort(key=lambda row: int(row[0]))
    table(["layer", "input of", "columns", "at once", "tokens", "largest"], rows, right=4)
    if found.skipped:
        out.print(f"Not looked at, since their inputs are made inside modules: {len(found.skipped)} stacks of experts.")


def _in_json(error: WeightError) -> dict[str, Any]:
    return {**asdict(error), "relative": error.relative}


def _show_errors(method: str, rows: list[WeightError]) -> None:
    from hayless.core.units import format_count

    out.print(f"Value − value after {method}", style="bold", markup=False)
    table(
        ["", "elements", "mean", "RMS", "largest", "relative"],
        [
            [
                each.name,
                format_count(each.elements),
                f"{each.mean:.1e}",
                f"{each.rms:.2e}",
                f"{each.largest:.2e}",
                f"{each.relative:.2%}",
            ]
            for each in rows
        ],
        right=5,
    )
    out.print("Relative: root mean square of the error, of that of the weights.", style="dim")
