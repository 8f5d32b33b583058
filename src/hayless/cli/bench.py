"""`hayless bench`: how fast, how much memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from hayless.cli.output import Device, Dtype, Json, emit, err, out, table

if TYPE_CHECKING:
    from hayless.core.measurement import Measurement
    from hayless.measure.bench import Bench
    from hayless.measure.settings import DecodeBench, TrainBench

app = typer.Typer(help="Measure speed and peak memory, each work in a fresh process.", no_args_is_help=True)

Model = typer.Argument(
    metavar="MODEL", help="A model's or adapter's folder, a hub id, or a config.json (its weights are then random)."
)
Random = typer.Option(False, "--random-weights", help="Build the model from its config alone, with random weights.")

_FIGURES = {
    "first_token_seconds": "first token",
    "ms_per_token": "each later token",
    "share_of_bandwidth_limit": "share of limit",
    "decode_tokens_per_second": "speed",
    "decode_peak_bytes": "peak memory",
    "decode_process_peak_bytes": "peak of the process",
    "step_seconds": "step",
    "train_tokens_per_second": "speed",
    "train_peak_bytes": "peak memory",
    "train_process_peak_bytes": "peak of the process",
}
"""What the rows are called in the terminal, in the order in which they are shown."""

_NAMES = {
    "prompt_tokens": "--prompt-tokens",
    "tokens": "--tokens",
    "batch_size": "--batch",
    "repeats": "--repeats",
    "backend": "--backend",
    "at_once": "--at-once",
    "sequence_length": "--seq",
    "steps": "--steps",
}


@app.command("decode")
def decode(
    model: str = Model,
    prompt_tokens: str = typer.Option("128", help="Tokens of each prompt; several lengths as 128,1024."),
    tokens: str = typer.Option("64", help="Tokens generated after each prompt."),
    batch: str = typer.Option("1", help="Prompts side by side; several sizes as 1,4,16."),
    repeats: int = typer.Option(5, help="Generations that are timed, after a warm-up."),
    backend: str = typer.Option("auto", help="How the engine runs the model: auto, modules, program or graphs."),
    at_once: int = typer.Option(
        0, help="Also time a step of 1, 2, 4, ... rows at once, up to so many: what checking drafts would cost."
    ),
    random_weights: bool = Random,
    device: str = Device,
    dtype: str = Dtype,
    json: bool = Json,
) -> None:
    """Time greedy decoding: the first token, the later ones beside the memory's bandwidth, and peak memory."""
    from hayless.core.options import checked
    from hayless.measure.settings import DecodeBench

    asked = {"tokens": tokens, "repeats": repeats, "backend": backend}
    # What rows at once cost is asked once for each length.
    every = [
        checked(
            DecodeBench,
            {**asked, "prompt_tokens": length, "batch_size": size, "at_once": 0 if number else at_once},
            _NAMES,
        )
        for length in _sizes(prompt_tokens)
        for number, size in enumerate(_sizes(batch))
    ]
    found = _benches(model, every, random_weights, device, dtype)
    if json:
        emit(_document(model, every, found))
        return
    lengths = " and ".join(dict.fromkeys(f"{one.prompt_tokens:,}" for one in every))
    work = f"{every[0].tokens:,} tokens after prompts of {lengths}, {every[0].repeats} times"
    _show(model, found, [("path", f"{found[0].backend} ({found[0].reason})"), ("work", f"{work}, after a warm-up")])
    _results(every, found)


@app.command("train")
def train(
    model: str = Model,
    batch: str = typer.Option("4", help="Sequences of a step; several sizes as 1,4,16."),
    seq: str = typer.Option("256", help="Tokens of a sequence."),
    steps: int = typer.Option(10, help="Steps that are timed, after a warm-up."),
    random_weights: bool = Random,
    device: str = Device,
    dtype: str = Dtype,
    json: bool = Json,
) -> None:
    """Time bare training steps (forward, loss, backward, AdamW in the dtype of the weights), and peak memory."""
    from hayless.core.options import checked
    from hayless.measure.settings import TrainBench

    asked = {"sequence_length": seq, "steps": steps}
    every = [checked(TrainBench, {**asked, "batch_size": size}, _NAMES) for size in _sizes(batch)]
    found = _benches(model, every, random_weights, device, dtype)
    if json:
        emit(_document(model, every, found))
        return
    work = f"sequences of {every[0].sequence_length:,} tokens, {every[0].steps} steps with AdamW, after a warm-up"
    _show(model, found, [("trained", f"{found[0].trained_parameters:,} parameters"), ("work", work)])
    _results(every, found)


def _sizes(text: str) -> list[str]:
    """`1,4` → its parts, each once."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _benches(
    model: str, every: Sequence[DecodeBench | TrainBench], random: bool, device: str, dtype: str | None
) -> list[Bench]:
    from hayless.measure.bench import bench

    found = []
    for settings in every:
        with err.status(f"Measuring {_called(settings)} in a fresh process ..."):
            found.append(bench(model, settings, device=device, dtype=dtype, random=random))
    return found


def _document(model: str, every: Sequence[DecodeBench | TrainBench], found: list[Bench]) -> dict[str, Any]:
    results = [
        {"settings": settings.model_dump(mode="json"), **one.model_dump(mode="json", exclude={"machine"})}
        for settings, one in zip(every, found, strict=True)
    ]
    return {"model": model, "machine": found[0].machine.model_dump(mode="json"), "results": results}


def _show(model: str, found: list[Bench], more: list[tuple[str, str]]) -> None:
    from hayless.core.units import format_bytes, format_count

    first = found[0]
    random = ", RANDOM WEIGHTS" if first.weights == "random" else ""
    size = f"{format_count(first.parameters)} parameters in {first.dtype}, {format_bytes(first.weight_bytes)}{random}"
    machine = first.machine
    name = machine.accelerator if first.device.startswith("cuda") else machine.processor
    versions = ", ".join(f"{package} {machine.versions[package]}" for package in ("torch", "transformers"))
    about = [
        ("model", model),
        ("size", size),
        *more,
        ("device", f"{first.device}: {name}; threads: {first.threads}"),
        ("versions", f"Python {machine.python}, {versions}"),
    ]
    table(["", ""], about)


def _results(every: Sequence[DecodeBench | TrainBench], found: list[Bench]) -> None:
    """Every figure for each batch size: medians with the 20th and 80th percentile, and peaks of memory."""
    order = list(_FIGURES)
    rows = []
    for settings, one in zip(every, found, strict=True):
        batch = _called(settings)
        shown = [row for row in one.rows if row.name in _FIGURES]
        # Steps of several rows stand behind the others, in their own order.
        steps = [row for row in one.rows if row.name not in _FIGURES]
        for row in [*sorted(shown, key=lambda row: order.index(row.name)), *steps]:
            rows.append([batch, _FIGURES.get(row.name) or _step_name(row.name), *_written(row)])
            batch = ""
    table(["", "", "median", "20th %", "80th %"], rows, right=3)
    peak = next(row for row in found[0].rows if row.name.endswith("_peak_bytes"))
    out.print(f"Peak memory leaves out what was held before the model. It is {peak.note}.")


def _called(settings: DecodeBench | TrainBench) -> str:
    """What a work is called: its batch, and the tokens before what is generated."""
    before = getattr(settings, "prompt_tokens", None)
    return f"batch {settings.batch_size}" + (f", {before:,} before" if before is not None else "")


def _step_name(name: str) -> str:
    """step_4_rows_ms → a step of 4 rows."""
    count = name.split("_")[1]
    return f"step of {count} row{'s' * (count != '1')}"


def _written(row: Measurement) -> list[str]:
    from hayless.core.units import format_bytes
    from hayless.recipe.figures import number

    assert row.value is not None
    if row.unit == "B":
        return [format_bytes(row.value), "", ""]
    scale, unit = {"s": (1000, "ms"), "": (100, "%")}.get(row.unit, (1, row.unit))
    low, high = (number(value * scale) if value is not None else "" for value in (row.low, row.high))
    return [f"{number(row.value * scale)} {unit}", low, high]
