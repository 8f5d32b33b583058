"""What a finished grid says: each prediction beside what was measured, and how far off they are in all.

Predictions are made anew from the code as it is; a run's file holds what was measured and nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hayless.core.cost import Cost
from hayless.core.devices import Device, find
from hayless.core.errors import RequestError
from hayless.plan.grid import Case, Kind, TrainCase
from hayless.plan.memory import MARGIN
from hayless.plan.verify import device_of

RESIDENT_BYTES = 20_000_000
"""On CPUs: what a process holds beyond its tensors while it trains (arenas of threads, code that is read in)."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A figure as predicted and as measured."""

    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """(predicted − measured) / measured."""
        return (self.predicted - self.measured) / self.measured


@dataclass(frozen=True, slots=True)
class Line:
    """A case: its peak in bytes, its time in seconds (of an update, or of a token), and what others say of the peak.

    `causes` are bytes counted from live tensors, by cause. `context_bytes` is what the whole device had in use beside
    the allocator, where the case ran alone. `fitted`: its time is one of those that the constants of
    `hayless.core.devices` were fitted to, which the run's file names. `why` says what is missing.
    """

    case: Case
    peak: Compared | None = None
    time: Compared | None = None
    causes: Mapping[str, Compared] = field(default_factory=dict)
    reserved_bytes: int | None = None
    context_bytes: int | None = None
    others: Mapping[str, int] = field(default_factory=dict)
    fitted: bool = False
    why: str = ""

    @property
    def trains(self) -> bool:
        """Whether it is a case of training."""
        return isinstance(self.case, TrainCase)

    def to_json(self) -> dict[str, Any]:
        """Plain data with units in its names."""
        found: dict[str, Any] = {"case": self.case.name, "work": "train" if self.trains else "decode"}
        figures = {"peak_bytes": self.peak, "seconds": self.time, **{f"{k}_bytes": v for k, v in self.causes.items()}}
        for name, figure in figures.items():
            if figure is not None:
                found[name] = {
                    "predicted": figure.predicted,
                    "measured": figure.measured,
                    "error": figure.error if figure.measured else None,
                }
        found |= {"reserved_bytes": self.reserved_bytes, "context_bytes": self.context_bytes}
        found |= {f"{name}_bytes": size for name, size in self.others.items()}
        return found | {"fitted": self.fitted, "why": self.why}


def lines(content: Mapping[str, Any], cases: Sequence[Case]) -> list[Line]:
    """A line for each case, in the grid's order."""
    on, kind = _device(content), content["kind"]
    return [
        replace(
            _line(case, content["cases"].get(case.name, {}), content, on, kind),
            fitted=case.name in content.get("fitted", ()),
        )
        for case in cases
    ]


@dataclass(frozen=True, slots=True)
class Spread:
    """Errors of several predictions: how many, the median and the largest without their signs, and the lowest."""

    count: int
    median: float
    worst: float
    lowest: float

    @classmethod
    def of(cls, figures: Iterable[Compared]) -> Spread | None:
        """Those of some figures; None where there are none."""
        errors = [figure.error for figure in figures]
        if not errors:
            return None
        sizes = [abs(error) for error in errors]
        return cls(len(errors), statistics.median(sizes), max(sizes), min(errors))


def summary(found: Sequence[Line]) -> dict[str, Spread]:
    """What was predicted → how far off it was; what was not measured is left out."""
    training, decoding = ([line for line in found if line.trains == trains] for trains in (True, False))
    peaks = {
        "peak of training": [line.peak for line in training],
        "peak of decoding": [line.peak for line in decoding],
        "time of an update, fitted": [line.time for line in training if line.fitted],
        "time of an update, the others": [line.time for line in training if not line.fitted],
        "time of a token, fitted": [line.time for line in decoding if line.fitted],
        "time of a token, the others": [line.time for line in decoding if not line.fitted],
    }
    spreads = {name: Spread.of(figure for figure in figures if figure) for name, figures in peaks.items()}
    for other in dict.fromkeys(name for line in found for name in line.others):
        spreads[f"peak by {other}"] = spread_of_other(found, other)
    return {name: spread for name, spread in spreads.items() if spread}


def spread_of_other(found: Sequence[Line], name: str) -> Spread | None:
    """How far off another tool was on the same peaks."""
    each = [(line.others.get(name), line.peak) for line in found]
    return Spread.of(Compared(said, peak.measured) for said, peak in each if said and peak)


def margin(kind: Kind) -> str:
    """How far predicted peaks are to be trusted, in words."""
    if kind == "cuda":
        return f"± {MARGIN:.1%}"
    return f"± {MARGIN:.1%}, and up to {RESIDENT_BYTES / 1e6:g} MB more"


def remarks(kind: Kind) -> list[str]:
    """What a reader must know of the figures."""
    if kind == "cuda":
        return [
            f"Margin of predicted peaks: {margin(kind)}. Measured peaks are max_memory_allocated.",
            "reserved is the allocator's peak, context what the device had in use beside it; what accelerate estimates"
            " depends on neither batch nor method.",
        ]
    return [
        f"Margin of predicted peaks: {margin(kind)}. Measured peaks are resident memory above what was held before the"
        " model, in processes that give freed memory back at once; as glibc is set, up to twice as much is resident.",
        "Times, the CUDA context and the allocator's reserve are not verified on a CPU.",
    ]


def _line(case: Case, entry: Mapping[str, Any], content: Mapping[str, Any], on: Device, kind: Kind) -> Line:
    measured = entry.get("found")
    if measured is None:
        return Line(case, why=str(entry.get("skipped") or entry.get("failed") or "not run").splitlines()[0])
    plan = case.predicted(on, kind)
    if isinstance(case, TrainCase):
        assert plan.train
        return _trained(case, plan.train, plan.step_seconds(), measured, entry, _others(case, entry, content))
    assert plan.decode
    rows = {row["name"]: row["value"] for row in measured["rows"]}
    peak = rows["decode_process_peak_bytes" if kind == "cuda" else "decode_peak_bytes"]
    time = None
    if kind == "cuda":
        time = Compared(plan.token_seconds() or 0.0, rows["ms_per_token"] / 1e3)
    return Line(case, Compared(plan.decode.peak.total, peak), time, others=_others(case, entry, content))


def _trained(
    case: TrainCase,
    cost: Cost,
    seconds: float | None,
    measured: Mapping[str, Any],
    entry: Mapping[str, Any],
    others: Mapping[str, int],
) -> Line:
    held, step = cost.peak, cost.phases["step"]
    causes = {
        name: Compared(getattr(step, name), measured[f"{name}_bytes"])
        for name in ("weights", "gradients", "optimizer", "master")
        if name != "gradients" or not case.fused
    }
    times, context = measured["times"], None
    if entry.get("alone") and measured["device_bytes"] is not None and entry.get("used_before_bytes") is not None:
        context = measured["device_bytes"] - measured["reserved_now_bytes"] - entry["used_before_bytes"]
    return Line(
        case,
        Compared(held.total, max(measured["phases"].values())),
        Compared(seconds, statistics.median(times)) if seconds and times else None,
        causes,
        measured["reserved_bytes"],
        context,
        others,
    )


def _others(case: Case, entry: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, int]:
    """What accelerate and MemTracker say of a case's peak."""
    found: dict[str, int] = {}
    accelerate = content.get("accelerate", {}).get(case.model)
    if accelerate:
        found["accelerate"] = accelerate["training" if isinstance(case, TrainCase) else "loading"]
    if "bytes" in entry.get("tracked", {}):
        found["MemTracker"] = entry["tracked"]["bytes"]
    return found


def _device(content: Mapping[str, Any]) -> Device:
    """The device of a run as plans know it: by its name, or by the rates that were measured."""
    try:
        return find(content["device"]["name"])
    except RequestError:
        return device_of(dict(content))
