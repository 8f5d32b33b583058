"""Which ways to run a model fit into a memory: as it is, and packed by each method that packs weights.

A way is given the longest context that fits beside its weights, or the one that is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hayless.core.compose import compose
from hayless.core.compose import predict as rewrite
from hayless.core.devices import Device
from hayless.core.dims import ModelDims
from hayless.core.errors import RequestError
from hayless.core.families import ledger_of
from hayless.core.ledger import Ledger
from hayless.core.method import MethodConfig
from hayless.core.units import format_bytes
from hayless.plan.memory import Plan, needed, plan_decoding
from hayless.plan.recommend import last_that_holds, starting
from hayless.plan.table import whole
from hayless.plan.ways import label, packed_bits, packings, settings_of

STEP = 256
"""Tokens in whose multiples the longest context is sought."""
LONGEST = 131_072
"""Tokens that are tried where a model's positions have no end."""


@dataclass(frozen=True, slots=True)
class Running:
    """A model run with `batch` rows of `context` tokens each, after `transforms` (none: as it is)."""

    transforms: tuple[MethodConfig, ...]
    batch: int
    context: int
    plan: Plan

    @property
    def name(self) -> str:
        """`as it is` or `kmeans(bits=8)`."""
        return "+".join(map(label, self.transforms)) or "as it is"

    @property
    def needed_bytes(self) -> int:
        """Bytes at the peak, allowances included."""
        assert self.plan.decode
        return needed(self.plan.decode.peak)["total"]

    @property
    def fits(self) -> bool:
        """Whether the device has so much."""
        return self.needed_bytes <= self.plan.device.memory_bytes

    @property
    def reading_rate(self) -> float:
        """Tokens of prompts read a second, all rows together."""
        assert self.plan.decode
        return self.batch * self.context / self.plan.device.seconds(self.plan.decode.work["prefill"])

    def to_json(self) -> dict[str, Any]:
        """Plain data with units in its names."""
        seconds = self.plan.token_seconds()
        assert seconds and self.plan.decode
        return {
            "name": self.name,
            "transforms": [settings_of(config) for config in self.transforms],
            "bits": packed_bits(self.plan.ledger),
            "batch": self.batch,
            "context": self.context,
            "weights_bytes": self.plan.decode.peak.weights,
            "kv_cache_bytes": self.plan.decode.peak.kv_cache,
            "needed_bytes": self.needed_bytes,
            "left_bytes": self.plan.device.memory_bytes - self.needed_bytes,
            "fits": self.fits,
            "read_tokens_per_second": self.reading_rate,
            "ms_per_token": 1e3 * seconds,
            "tokens_per_second": self.batch / seconds,
        }


def advise_running(
    dims: ModelDims, before: Sequence[MethodConfig], on: Device, *, batch: int, context: int | None
) -> list[Running]:
    """Every way to run the model in the memory of `on`, the untouched one first and then by bits.

    RequestError where none fits, with the least that would be needed.
    """
    whole("batch", batch)
    found = []
    for transforms in [(), *((packing,) for packing in packings(dims))]:
        try:
            ledger = rewrite(ledger_of(dims), [*before, *compose([*before, *transforms])[len(before) :]])
        except RequestError:
            # What is packed cannot be packed again; it is run as it is.
            continue

        at = partial(_running, transforms, ledger, batch, on)
        found.append(_longest(at, dims.max_positions or LONGEST) if context is None else at(context))
    if not any(each.fits for each in found):
        least = min(found, key=lambda each: each.needed_bytes)
        need = format_bytes(least.needed_bytes)
        raise RequestError(
            f"Nothing runs this model in {format_bytes(on.memory_bytes)}: the least, {least.name} with {batch} ×"
            f" {least.context:,} tokens, needs {need}.",
            hint=f"Give {need} or more, a shorter context (--seq), or a smaller model.",
        )
    return sorted(found, key=lambda each: -(packed_bits(each.plan.ledger) or 1e3))


def packing_recipe(running: Running, model: str, preset: str) -> dict[str, Any]:
    """The recipe that packs a model for running."""
    steps = [{"apply": settings_of(config)} for config in running.transforms]
    return {"name": "packed", "model": starting(model, preset), "steps": steps, "device": "cuda"}


def _longest(at: Callable[[int], Running], positions: int) -> Running:
    """The most tokens that fit, in steps; the first step where not even that does."""
    steps = max(1, positions // STEP)
    return at(min(positions, STEP * (1 + last_that_holds(steps, lambda place: at(STEP * (1 + place)).fits))))


def _running(transforms: tuple[MethodConfig, ...], ledger: Ledger, batch: int, on: Device, context: int) -> Running:
    return Running(transforms, batch, context, plan_decoding("", ledger, batch, context, on))
