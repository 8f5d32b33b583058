"""Tables of training on many GPUs: published runs beside their prediction, splits, the ideal line, and the lecture's
comparison of data and model parallelism."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from hayless.core.devices import DEVICES, Device, find
from hayless.core.dims import ModelDims
from hayless.core.families import dims_of, ledger_of
from hayless.core.units import format_bytes
from hayless.plan.cluster import Job, Prediction, Split, predict, search
from hayless.plan.links import Cluster, inside
from hayless.plan.presets import config_of
from hayless.plan.table import Table, significant
from hayless.plan.ways import Way
from hayless.plan.zero import STAGES

MEASURED: Mapping[str, float] = {"eager": 0.403, "compiled": 0.500}
"""The share of 989 TFLOP/s that this project's training steps of Llama's 1B shape reached on one H200, as they are and
with torch.compile (`benchmarks/results/train_1b.json`)."""

UNVERIFIED = (
    "Unverified: formulas and data sheets alone. Utilisation is of what the GPUs compute at one GPU's measured share,"
    " and no wait but those named is counted; torchtitan's 128 GPUs lost 2 to 3% against its 8."
)

GRAND_TETON = replace(DEVICES["H100"], memory_bytes=96 * 10**9, bytes_per_second=2.4e12)
"""The H100 of torchtitan's runs: 96 GB of HBM2e at 2.4 TB/s, limited to 500 W."""
EVERY_SECOND = 0.365
"""Of a block's products torchtitan's selective checkpointing repeats every second one: in Llama 3 8B wk, wo and w3,
with 36.5% of the block's weights."""


@dataclass(frozen=True, slots=True)
class Run:
    """A published run: tokens/s a GPU by `split`, whose micro-batch is what a data rank computes of each update.

    `own` names the run of the same machine and software on 8 GPUs, which hardly wait for each other: the share of the
    arithmetic that it shows stands for one GPU's. `narrow`: matrices are multiplied in 8-bit floats.
    """

    name: str
    preset: str
    device: Device
    split: Split
    compiled: bool
    narrow: bool
    rate: float
    own: str


def _run(
    name: str,
    preset: str,
    split: Split,
    rate: float,
    own: str = "",
    *,
    device: Device = GRAND_TETON,
    narrow: bool = False,
) -> Run:
    return Run(name, preset, device, split, "compile" in name, narrow, rate, own or name)


_SELECTIVE = Split(8, 1, 1, 3, 2, EVERY_SECOND)
_MANY = replace(_SELECTIVE, data=128)
_EAGER, _COMPILED, _NARROW = ("8 H100, 8B, FSDP", "8 H100, 8B, FSDP, compile", "8 H100, 8B, FSDP, compile, Float8")

RUNS = (
    _run(_EAGER, "llama-3-8b", _SELECTIVE, 5762),
    _run(_COMPILED, "llama-3-8b", _SELECTIVE, 6667),
    _run(_NARROW, "llama-3-8b", _SELECTIVE, 8532, narrow=True),
    _run("128 H100, 8B, FSDP", "llama-3-8b", _MANY, 5605, _EAGER),
    _run("128 H100, 8B, FSDP, compile", "llama-3-8b", _MANY, 6514, _COMPILED),
    _run("128 H100, 8B, FSDP, compile, Float8", "llama-3-8b", _MANY, 8380, _NARROW, narrow=True),
    _run("64 H100, 8B, FSDP 8 × TP 8, compile", "llama-3-8b", Split(8, 8, 1, 3, 12, EVERY_SECOND), 4378, _COMPILED),
    _run("256 H100, 70B, FSDP 32 × TP 8, compile", "llama-3-70b", Split(32, 8, 1, 3, 16, 1), 597.3, _COMPILED),
    _run(
        "256 H100, 70B, FSDP 32 × TP 8, compile, Float8",
        "llama-3-70b",
        Split(32, 8, 1, 3, 16, 1),
        829,
        _NARROW,
        narrow=True,
    ),
)
"""torchtitan's benchmarks of December 2024 and (64 GPUs, and 256 in 16 bits) June 2025; sequences of 8192."""

SOURCE = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md and asyncTP_llama3_h100_2025-06_torchtitan.md"


def published() -> Table:
    """Published runs beside two predictions: from one H200's share of its arithmetic, and from the share that the same
    machine's run on 8 GPUs shows."""
    jobs = {run.name: _job(run) for run in RUNS}
    own = {run.name: _own_share(run, jobs[run.name]) for run in RUNS if run.own == run.name}
    cells, records, errors = [], [], []
    for run in RUNS:
        first, second = (_rate(run, jobs[run.name], share) for share in (_measured(run), own[run.own]))
        held_out = run.own != run.name
        wrong = [rate / run.rate - 1 for rate in (first, second)]
        errors.append((wrong[0], wrong[1] if held_out else None))
        shown = (f"{second:,.0f}", f"{100 * wrong[1]:+.1f}%") if held_out else ("fitted", "")
        cells.append((run.name, f"{run.rate:,.0f}", f"{first:,.0f}", f"{100 * wrong[0]:+.1f}%", *shown))
        records.append(
            {
                "run": run.name,
                "gpus": run.split.ranks,
                "printed_tokens_per_second_a_gpu": run.rate,
                "predicted_tokens_per_second_a_gpu": first,
                "error": wrong[0],
                "predicted_from_8_gpus_tokens_per_second_a_gpu": second if held_out else None,
                "error_from_8_gpus": wrong[1] if held_out else None,
            }
        )
    middles = [median(abs(each[place]) for each in errors if each[place] is not None) for place in (0, 1)]  # type: ignore[arg-type]
    shares = ", ".join(f"{name.split(', FSDP')[1].lstrip(', ') or 'eager'} {share:.2f}" for name, share in own.items())
    notes = (
        f"Predicted: from the share of the data sheet's arithmetic that one H200 reached here ({MEASURED['eager']:.2f},"
        f" compiled {MEASURED['compiled']:.2f}), 8-bit products taken as twice as fast; median error {middles[0]:.0%}.",
        f"From its 8: from the share that the same H100 (500 W, HBM2e) reached in the run on 8 GPUs ({shares}), so that"
        f" only what more GPUs cost is predicted; median error {middles[1]:.0%}.",
    )
    title = "Published runs, tokens/s a GPU: Llama 3.1, sequences of 8192"
    columns = ("", "printed", "predicted", "error", "from its 8", "error")
    return Table(title, columns, tuple(cells), tuple(records), notes, SOURCE)


def splits(job: Job, cluster: Cluster, shown: int = 12) -> Table:
    """The ways to split a job over a cluster that fit, the fastest first, and why the others do not."""
    fitting, failing = search(job, cluster)
    cells = [
        (
            each.split.name,
            f"{_micros(job, each.split)} × {each.split.micro_batch}" + (" again" if each.split.recompute else ""),
            format_bytes(each.needed_bytes),
            format_bytes(sum(each.sent.values())),
            f"{each.seconds['bubble'] / each.step_seconds:.1%}",
            f"{each.seconds['exposed'] / each.step_seconds:.1%}",
            f"{each.efficiency:.1%}",
            significant(each.rate, 4),
        )
        for each in fitting[:shown]
    ]
    notes = [UNVERIFIED]
    if any("again" in row[1] for row in cells):
        notes.append("again: every block is computed again in the backward pass.")
    if len(fitting) > shown:
        notes.append(f"{len(fitting) - shown} more fit and are slower.")
    notes += [f"{name}: {reason}." for name, reason in failing.items()]
    columns = ("", "update", "needs a GPU", "sends a step", "bubble", "exposed", "utilisation", "tokens/s")
    title = f"{_where(cluster)}: {job.batch:,} rows of {job.sequence:,} tokens an update"
    records = [{"fits": True, **_record(each)} for each in fitting]
    records += [{"fits": False, "split": name, "reason": reason} for name, reason in failing.items()]
    return Table(title, columns, tuple(cells), tuple(records), tuple(notes))


def ideal(job: Job, cluster: Cluster, days: float, counts: Sequence[int]) -> Table:
    """A job of so many GPU-days on more and more GPUs: the ideal time, and the predicted one of the best split.

    A GPU-day is what one GPU computes in a day at its share of the arithmetic, were there no other and no limit of
    memory.
    """
    cells, records = [], []
    for count in counts:
        fitting, _ = search(job, replace(cluster, gpus=count))
        minutes = days * 24 * 60 / count
        record: dict[str, Any] = {"gpus": count, "ideal_minutes": minutes, "predicted_minutes": None}
        row = [f"{count:,}", significant(minutes, 4), "does not fit", "", ""]
        if fitting:
            best = fitting[0]
            record |= {"predicted_minutes": minutes / best.efficiency, **_record(best)}
            row[2:] = [significant(minutes / best.efficiency, 4), f"{best.efficiency:.1%}", best.split.name]
        cells.append(tuple(row))
        records.append(record)
    title = f"A job of {days:g} GPU-days, {job.batch:,} rows of {job.sequence:,} tokens an update"
    columns = ("GPUs", "ideally, minutes", "predicted", "utilisation", "best split")
    return Table(title, columns, tuple(cells), tuple(records), (UNVERIFIED,))


def comparison(dims: ModelDims, cluster: Cluster, sequence: int) -> Table:
    """Data and model parallelism with the same batch, 4 rows for each GPU: copies, states, traffic, bubble, use."""
    gpus = cluster.gpus
    job = Job(ledger_of(dims), 4 * gpus, sequence)
    kinds = {
        "data": Split(gpus, micro_batch=4),
        "data, ZeRO stage 3": Split(gpus, stage=3, micro_batch=4),
        "tensors": Split(1, gpus, micro_batch=4),
        "layers, one after the other": Split(1, 1, gpus, micro_batch=4 * gpus),
        f"layers as a pipeline of {4 * gpus} micro-batches": Split(1, 1, gpus),
    }
    cells, records, notes = [], [], [UNVERIFIED]
    for name, split in kinds.items():
        if split.pipeline > dims.num_layers or dims.num_kv_heads % split.tensor:
            notes.append(f"{name}: the model has no {gpus} equal parts.")
            continue
        found = predict(job, split, cluster)
        held = found.held
        states = held.weights + held.gradients + held.optimizer + held.master
        copies = gpus if split.data > 1 and split.stage < 3 else 1
        bubble = (split.pipeline - 1) / _micros(job, split)
        sent = sum(found.sent.values())
        cells.append(
            (
                name,
                str(copies),
                format_bytes(states),
                format_bytes(sent),
                f"{bubble:.1%}",
                f"{found.efficiency:.1%}",
                significant(found.rate / gpus, 4),
            )
        )
        records.append(
            {
                "kind": name,
                "copies_of_weights": copies,
                "states_bytes": states,
                "bubble_share": bubble,
                **_record(found),
            }
        )
    title = f"Data and model parallelism: {_where(cluster)}, {job.batch} rows of {sequence:,} tokens an update"
    columns = ("split", "copies", "states a GPU", "sent a GPU", "bubble", "utilisation", "tokens/s a GPU")
    notes.append("Bubble: waiting beside work, (p−1)/m. Without micro-batches one stage works at a time: 1/p are used.")
    return Table(title, columns, tuple(cells), tuple(records), tuple(notes))


def sharing(ways: Sequence[Way], on: Device, gpus: int, batch: int, sequence: int) -> Table:
    """What each way to train needs a GPU where `gpus` of them share the batch and, by ZeRO's stages, the states: with
    one row at once and every block computed again; and the tokens/s of the first stage that fits."""
    there = Cluster(replace(find(on.name), memory_bytes=on.memory_bytes), gpus, MEASURED["eager"], inside(on.name))
    cells, records = [], []
    for way in ways:
        job = Job(way.ledger, max(batch, gpus), sequence, way.precision, way.optimizer)
        found = [predict(job, Split(gpus, stage=stage, recompute=1.0), there) for stage in (0, *STAGES)]
        fits = [each for each in found if each.needed_bytes <= on.memory_bytes]
        rate = significant(fits[0].rate, 4) if fits else "does not fit"
        cells.append((way.name, *(format_bytes(each.needed_bytes) for each in found), rate))
        records += [{"way": way.name, "fits": each in fits, **_record(each)} for each in found]
    title = f"Shared by {gpus:,} × {on.name} of {format_bytes(on.memory_bytes)}, needed by each"
    notes = (UNVERIFIED, "Training on several GPUs is not built yet: there is no recipe for it.")
    columns = ("", "plain", "stage 1", "stage 2", "stage 3", "tokens/s")
    return Table(title, columns, tuple(cells), tuple(records), notes)


def _measured(run: Run) -> float:
    return MEASURED["compiled" if run.compiled else "eager"]


def _own_share(run: Run, job: Job) -> float:
    """The share of the arithmetic at which a run's prediction is what was printed."""
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _rate(run, job, middle) < run.rate else (low, middle)
    return low


def _job(run: Run) -> Job:
    """What a published run computed. Gradients are summed in float32 there."""
    ledger = ledger_of(dims_of(config_of(run.preset)))
    rows = run.split.data * run.split.micro_batch
    return Job(ledger, rows, 8192, reduced_bytes=4, narrow=2 if run.narrow else 1)


def _rate(run: Run, job: Job, share: float) -> float:
    """Predicted tokens/s a GPU where one reaches `share` of the arithmetic."""
    cluster = Cluster(run.device, run.split.ranks, share, inside("H100"))
    return predict(job, run.split, cluster).rate / run.split.ranks


def _micros(job: Job, split: Split) -> int:
    return -(-job.batch // (split.data * split.micro_batch))


def _where(cluster: Cluster) -> str:
    network = 8 * cluster.network_bytes_per_second / 1e9
    hosts = f", hosts of {cluster.host} joined by {network:g} Gb/s a GPU" if cluster.gpus > cluster.host else ""
    return f"{cluster.gpus:,} × {cluster.device.name}, {cluster.inside.name}{hosts}"


def _record(found: Prediction) -> dict[str, Any]:
    """A prediction as plain data."""
    split = found.split
    return {
        "split": split.name,
        "data": split.data,
        "tensor": split.tensor,
        "pipeline": split.pipeline,
        "stage": split.stage,
        "micro_batch": split.micro_batch,
        "recompute": split.recompute,
        "needed_bytes": found.needed_bytes,
        **{f"sent_{kind}_bytes": size for kind, size in found.sent.items()},
        **{f"{kind}_seconds": seconds for kind, seconds in found.seconds.items()},
        "step_seconds": found.step_seconds,
        "tokens_per_second": found.rate,
        "utilisation": found.efficiency,
        "verified": False,
    }
