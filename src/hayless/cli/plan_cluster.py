"""`hayless plan cluster`: training on 1 to 1024 GPUs, on paper."""

from __future__ import annotations

from pathlib import Path

import typer

from hayless.cli.output import Json
from hayless.cli.plan_tables import show_tables

DEFAULT = "llama-3-8b"
COUNTS = tuple(1 << power for power in range(11))
"""Numbers of GPUs of the ideal line."""


def cluster(
    model: str = typer.Argument("", metavar="[MODEL]", help="A model's folder, its config.json, or a hub id."),
    preset: str = typer.Option("", "--preset", help="A known model by name; llama-3-8b where none is given."),
    gpus: int = typer.Option(None, "--gpus", help="Split over so many, 1 to 1024; 8."),
    device: str = typer.Option("H100", "--device", help="A GPU by name, such as H200, A100 or RTX 4090."),
    batch: int = typer.Option(1024, "--batch", help="Sequences of an update, all GPUs together."),
    seq: int = typer.Option(None, "--seq", help="Tokens of a sequence; 2048, or all positions."),
    precision: str = typer.Option("master", "--precision", help="fp32, autocast, master, bf16 or fp16."),
    utilisation: float = typer.Option(
        None, "--utilisation", help="Share of the data sheet's arithmetic that one GPU reaches; 0.40, as measured."
    ),
    host: int = typer.Option(8, "--host", help="GPUs of a host."),
    network: float = typer.Option(400.0, "--network", help="Gb/s between hosts, for each GPU."),
    gpu_days: float = typer.Option(10.0, "--gpu-days", help="The job whose time is drawn over numbers of GPUs."),
    out_file: Path = typer.Option(None, "--out", help="Draw time over numbers of GPUs to this .png or .svg."),
    json: bool = Json,
) -> None:
    """Training on many GPUs, on paper: splits of data, tensors and layers, beside published runs and the ideal line."""
    from hayless.cli.inputs import picture_form
    from hayless.core.devices import find
    from hayless.core.errors import bad_value
    from hayless.core.families import ledger_of
    from hayless.plan import cluster_tables as tables
    from hayless.plan import memory
    from hayless.plan.cluster import Job
    from hayless.plan.links import Cluster, inside
    from hayless.plan.memory import usual_sequence

    if gpus is not None and not 1 <= gpus <= COUNTS[-1]:
        raise bad_value("gpus", gpus, allowed=f"1 to {COUNTS[-1]:,}")
    if not gpu_days > 0:
        raise bad_value("gpu_days", gpu_days, allowed="a number above 0")
    form = picture_form(out_file)
    asked = bool(model or preset or gpus)
    dims, before = memory.dims_from(model, preset or ("" if model else DEFAULT))
    if before:
        raise bad_value("model", model, allowed="one that no method has changed")
    on = find(device)
    share = tables.MEASURED["eager"] if utilisation is None else utilisation
    there = Cluster(on, gpus or 8, share, inside(on.name), host, network * 1e9 / 8)
    job = Job(ledger_of(dims), batch, usual_sequence(dims) if seq is None else seq, precision)
    line = tables.ideal(job, there, gpu_days, COUNTS)
    if out_file:
        from hayless.core.atomic import write_bytes
        from hayless.plan.picture import draw_times

        title = f"{model or preset or DEFAULT} on {on.name}: {gpu_days:g} GPU-days"
        write_bytes(out_file, draw_times(line.records, title, form))
    first = [tables.splits(job, there)] if asked else [tables.published()]
    show_tables([*first, tables.comparison(dims, there, job.sequence), line], json)
