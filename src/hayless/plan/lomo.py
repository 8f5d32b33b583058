"""LOMO's table of memory (Lv et al., 2023, arXiv:2306.09782, table 1): LLaMA-7B in 16 bits, GiB by part.

SGD keeps a float32 copy of the weights; AdamW that and two moments. LOMO updates each weight as its gradient appears,
so that one gradient exists at a time: that of the largest matrix. Activations are what autograd keeps in transformers'
own implementation by our tape, the loss included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hayless.core.activations import record
from hayless.core.cost import TrainShape, gradient_bytes, optimizer_bytes, weight_bytes
from hayless.core.dtypes import item_bytes
from hayless.core.families import dims_of, ledger_of
from hayless.core.forward import RunShape
from hayless.core.ledger import Ledger
from hayless.core.registry import configure, method_of
from hayless.core.replay import replay
from hayless.plan.presets import config_of
from hayless.plan.table import Table, as_printed

GIB = 2**30
SOURCE = "LOMO (arXiv:2306.09782), table 1: LLaMA-7B, sequence 512, batch 8, GiB"
IMPLEMENTATION = "transformers' Llama, weights in bfloat16, no autocast, eager attention with its softmax in float32"


@dataclass(frozen=True, slots=True)
class Published:
    """A row as printed: GiB of parameters, gradients and states, totals without and with checkpointing."""

    parameters: str
    gradients: str
    states: str
    total: str
    checkpointed: str

    @property
    def misfit(self) -> float:
        """What the printed total without checkpointing has more than its printed parts."""
        parts = (self.parameters, self.gradients, self.states, ACTIVATIONS[False])
        return float(self.total) - sum(map(float, parts))


PUBLISHED: Mapping[str, Published] = {
    "AdamW": Published("12.55", "12.55", "75.31", "147.02", "102.20"),
    "SGD": Published("12.55", "12.55", "25.10", "96.81", "51.99"),
    "LOMO": Published("12.55", "0.24", "0.00", "59.40", "14.58"),
}
ACTIVATIONS: Mapping[bool, str] = {False: "45.61", True: "1.79"}
"""Checkpointing → GiB of activations as printed."""

PUBLISHED_SHAPE = ("llama-7b", 8, 512)
"""Preset, batch and sequence of the printed table."""

METHODS: Mapping[str, tuple[str, str]] = {
    "AdamW": ("adamw", "master"),
    "SGD": ("sgd", "master"),
    "LOMO": ("lomo", "bf16"),
}
"""Row → our method and precision of training: the first two keep a float32 copy of the weights."""


def parts(ledger: Ledger, optimizer: str) -> tuple[int, int, int]:
    """Bytes of parameters, gradients and states (float32 weights among them) while all of a model trains in 16 bits.

    Where weights are moved in the backward pass, gradients are the largest one.
    """
    name, precision = METHODS[optimizer]
    config = configure(name)
    shape = method_of(config).predict_training(TrainShape(1, 1, precision=precision), config)
    largest = max(math.prod(row.shape) * item_bytes(shape.dtype(row)) for row in ledger.rows if not row.tied_to)
    masters = item_bytes(shape.moved_dtype) * ledger.parameters if precision == "master" else 0
    return (
        weight_bytes(ledger, shape.dtype),
        largest if shape.fused else gradient_bytes(ledger, shape),
        masters + optimizer_bytes(ledger, shape),
    )


def activation_bytes(
    ledger: Ledger, batch: int, sequence: int, *, checkpointing: bool, attention: Literal["eager", "sdpa"] = "eager"
) -> int:
    """Bytes that autograd keeps between the forward and the backward pass, by our tape."""
    run = RunShape(batch, sequence, attention=attention, checkpoint_every=int(checkpointing))
    held = replay(record(ledger, run, lambda row: "bfloat16")).saved
    return held.activations + held.loss


def table(name: str, ledger: Ledger, batch: int, sequence: int) -> Table:
    """The six totals of a model, beside the printed ones where it is the paper's model and shape."""
    published = (name, batch, sequence) == PUBLISHED_SHAPE
    kept = {again: activation_bytes(ledger, batch, sequence, checkpointing=again) for again in (False, True)}
    cells: list[tuple[str, ...]] = []
    records = []
    for optimizer in METHODS:
        sizes = parts(ledger, optimizer)
        totals = [sum(sizes) + kept[again] for again in (False, True)]
        row = [optimizer, *(f"{size / GIB:.2f}" for size in sizes), *(f"{size / GIB:.2f}" for size in totals)]
        cells.append(tuple(row))
        names = ("parameters", "gradients", "states", "total", "total_checkpointed")
        values = [size / GIB for size in (*sizes, *totals)]
        entry: dict[str, object] = {"optimizer": optimizer}
        entry |= {f"{field}_gib": value for field, value in zip(names, values, strict=True)}
        if published:
            printed = PUBLISHED[optimizer]
            shown = (printed.parameters, printed.gradients, printed.states, printed.total, printed.checkpointed)
            cells.append(("  printed", *shown))
            cells.append(("  ours against it", *map(_off, values, shown)))
            entry |= {f"printed_{field}_gib": float(given) for field, given in zip(names, shown, strict=True)}
            entry["printed_misfit_gib"] = round(printed.misfit, 2)
        records.append(entry)
    return Table(
        f"LOMO: GiB (2³⁰ bytes) to train {name}, batch {batch}, sequence {sequence:,}",
        ("optimizer", "parameters", "gradients", "states", "total", "with checkpointing"),
        tuple(cells),
        tuple(records),
        tuple(_notes(ledger, batch, sequence, kept, published)),
        SOURCE if published else "",
    )


def of_preset() -> Table:
    """The printed table."""
    name, batch, sequence = PUBLISHED_SHAPE
    return table(name, ledger_of(dims_of(config_of(name))), batch, sequence)


def _off(value: float, printed: str) -> str:
    """`=` where a value gives the printed digits, else how far it is off."""
    same = as_printed(value, printed) == "rounded"
    return "=" if same else f"{value / float(printed) - 1:+.1%}".replace("-", "−").replace("%", " %")


def _notes(ledger: Ledger, batch: int, sequence: int, kept: Mapping[bool, int], published: bool) -> list[str]:
    plain, again = (kept[checkpointing] / GIB for checkpointing in (False, True))
    fused = activation_bytes(ledger, batch, sequence, checkpointing=False, attention="sdpa") / GIB
    notes = [
        f"Activations: {plain:.2f} GiB without and {again:.2f} with checkpointing; {IMPLEMENTATION}. "
        f"With fused attention {fused:.2f} without."
    ]
    if published:
        notes.append(
            f"The paper prints {ACTIVATIONS[False]} and {ACTIVATIONS[True]} GiB: "
            f"{float(ACTIVATIONS[False]) - plain:.2f} more without checkpointing than this implementation "
            "keeps. Which one was measured is not said."
        )
        notes.append(
            "The printed totals without checkpointing are "
            f"{PUBLISHED['AdamW'].misfit:.2f} GiB more than the printed parts add up to; with it they add up."
        )
    return notes
