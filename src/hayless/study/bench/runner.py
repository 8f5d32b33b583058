"""Running a benchmark: first the gate, then the times in turn, then each contender's memory in a fresh process.

A contender that cannot take part, fails, or computes something else is a row without a value, with the reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hayless.core.errors import HaylessError
from hayless.measure.speed import Spread
from hayless.study.bench import gate, worker
from hayless.study.bench.results import Row
from hayless.study.bench.spec import PEAK, RATE, TIME, Contender, Figure, Prepared, Spec, Work
from hayless.study.bench.timing import Stopwatch, in_turn

Say = Callable[[str], object]
_Columns = dict[str, tuple[str, Literal["lower", "higher"], tuple[float, ...]]]
"""By metric: its unit, which way is better, a figure for each repeat."""


@dataclass
class _Found:
    """What is known of the contenders of a work so far, by name. Whoever has a reason is out."""

    answers: dict[str, gate.Plain] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peaks: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, Sequence[Figure]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def judge(self, work: Work) -> None:
        """Let the gate reject whoever answers something else."""
        self.reasons |= gate.rejected(self.answers, work.same)

    def still_in(self, work: Work) -> Iterator[Contender]:
        """The contenders without a reason."""
        return (one for one in work.contenders if one.name not in self.reasons)


def run(
    spec: Spec,
    path: Path,
    *,
    stopwatch: Stopwatch | None = None,
    say: Say = print,
    keep: Callable[[list[Row]], object] = lambda rows: None,
) -> list[Row]:
    """The rows of a spec; `path` is its file, for fresh processes. `stopwatch` stands in for the spec's own.

    `keep` gets the rows so far after each work, so that an end half way loses none.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    rows: list[Row] = []
    absent = "there is no CUDA device" if spec.device == "cuda" and not torch.cuda.is_available() else ""
    for work in spec.works:
        say(work.name)
        if absent:
            found = _Found(reasons={contender.name: absent for contender in work.contenders})
        elif spec.turns == "alone":
            found = _alone(work, path)
        else:
            found = _together(work, path, stopwatch or worker.stopwatch_of(spec, work))
        made = [*_limit(work, absent), *_rows(work, found, paired=spec.turns == "interleaved")]
        for row in made:
            say(
                f"  {row.contender}: {row.metric} {f'{row.spread.median:.5g} {row.unit}' if row.spread else row.reason}"
            )
        rows += made
        keep(rows)
    return rows


def _together(work: Work, path: Path, stopwatch: Stopwatch) -> _Found:
    """All contenders in this process, a repeat of each in turn."""
    found = _Found()
    ready: dict[str, Prepared] = {}
    for contender in work.contenders:
        try:
            ready[contender.name] = contender.ready()
            found.answers[contender.name] = gate.plain(ready[contender.name].answer())
        except Exception as error:  # whatever a peer raises is the reason of its row
            found.reasons[contender.name] = _said(error)
    found.judge(work)
    for contender in list(found.still_in(work)):
        try:
            for _ in range(work.warmup):
                ready[contender.name].run()
        except Exception as error:
            found.reasons[contender.name] = _said(error)
    timed = {one.name: ready[one.name].seconds for one in found.still_in(work)}
    repeats = {one.name: work.repeats_of(one) for one in work.contenders}
    found.seconds, failed = in_turn(timed, stopwatch, repeats)
    found.reasons |= {name: _said(error) for name, error in failed.items()}
    found.figures = {one.name: ready[one.name].figures() for one in found.still_in(work)}
    del timed, ready
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()  # fresh processes share the device with this one
    if work.peaks:
        for contender in list(found.still_in(work)):
            try:
                found.peaks[contender.name] = worker.alone(path, work, contender, timed=False)
            except HaylessError as error:
                found.peaks[contender.name] = {"reason": _said(error)}
    return found


def _alone(work: Work, path: Path) -> _Found:
    """One contender after the other, each in a fresh process, which also times it."""
    found = _Found()
    for contender in work.contenders:
        try:
            outcome = worker.alone(path, work, contender, timed=True)
        except HaylessError as error:
            found.reasons[contender.name] = _said(error)
            continue
        found.answers[contender.name] = {name: np.asarray(value) for name, value in outcome["answer"].items()}
        found.seconds[contender.name] = outcome["seconds"]
        found.figures[contender.name] = [Figure(**figure) for figure in outcome["figures"]]
        if work.peaks:
            found.peaks[contender.name] = outcome
    found.judge(work)
    return found


def _limit(work: Work, absent: str) -> Iterator[Row]:
    """What the work takes at least, as a contender whose time nobody took."""
    if work.limit is None:
        return
    row = partial(Row, work.name, work.limit.name)
    try:
        bound = None if absent else work.limit.bound()
    except Exception as error:
        bound, absent = None, _said(error)
    for metric, (unit, better, figures) in _columns(work, [bound.seconds] if bound else []).items():
        spread = Spread.of(figures) if figures else None
        yield row(metric, unit, spread, better=better, note=bound.note if bound else "", reason=absent)


def _columns(work: Work, seconds: Sequence[float]) -> _Columns:
    """Time, and rate where the work has tokens, from the seconds of a piece in each repeat.

    Of a work that is not timed only a row for the reason why it was not done, where there are no seconds.
    """
    if seconds and not work.timed:
        return {}
    found: _Columns = {TIME: (f"ms/{work.piece}", "lower", tuple(taken * 1e3 for taken in seconds))}
    if work.tokens is not None:
        found[RATE] = ("tokens/s", "higher", tuple(work.tokens / taken for taken in seconds))
    return found


def _rows(work: Work, found: _Found, *, paired: bool) -> Iterator[Row]:
    """A row for every metric of every contender, one a goal where it has several, also where there is nothing in it."""
    reference = work.contenders[0].name if work.compared else None
    for contender in work.contenders:
        name = contender.name
        reason = found.reasons.get(name, "")
        row = partial(Row, work.name, name, against=reference, reason=reason)
        seconds = [] if reason else [taken / work.pieces for taken in found.seconds[name]]
        rows = [
            row(metric, unit, Spread.of(samples) if samples else None, better=better, samples=samples, paired=paired)
            for metric, (unit, better, samples) in _columns(work, seconds).items()
        ]
        for one in found.figures[name] if not reason else ():
            rows.append(row(one.metric, one.unit, Spread.single(one.value), better=one.better))
        if work.peaks:
            peak = {"reason": reason} if reason else found.peaks[name]
            size = float(peak["peak_bytes"]) if "peak_bytes" in peak else None
            spread = Spread.single(size) if size is not None else None
            rows.append(row(PEAK, "B", spread, note=peak.get("note", ""), reason=peak.get("reason", "")))
        for one_row in rows:
            for goal in contender.goals_of(one_row.metric) or (None,):
                yield replace(one_row, goal=goal)


def _said(error: Exception) -> str:
    """An error in a line: of a process that failed, also the last line that it printed."""
    if not isinstance(error, HaylessError):
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    first, *printed = error.message.splitlines()
    return f"{first} ({printed[-1].strip(' |')})" if printed else first
