"""Timing contenders in turn, and what the times say about each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

Run = Callable[[], object]
_RESAMPLES = 2000


class Stopwatch(Protocol):
    """Takes the time of one call."""

    def __call__(self, run: Run) -> float:
        """Seconds that `run` takes."""
        ...


class HostClock:
    """The time as the caller sees it: until the device has done all that was asked of it."""

    def __init__(self, device: str = "cpu", now: Callable[[], float] = time.perf_counter) -> None:
        self._wait = torch.cuda.synchronize if device == "cuda" else None
        self._now = now

    def __call__(self, run: Run) -> float:
        """Seconds from before the call until its work is done."""
        if self._wait:
            self._wait()
        start = self._now()
        run()
        if self._wait:
            self._wait()
        return self._now() - start


class DeviceClock:
    """The time on the CUDA device, between an event before and one after: for kernels shorter than their launch."""

    def __call__(self, run: Run) -> float:
        """Seconds between the two events."""
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3


def in_turn(
    timed: Mapping[str, Callable[[Stopwatch], float]], stopwatch: Stopwatch, repeats: Mapping[str, int]
) -> tuple[dict[str, list[float]], dict[str, Exception]]:
    """Seconds of so many `repeats` of each, and what went wrong with whom, who then has no further turn.

    One call of each in every round, so that whatever else the machine does falls on all; who has fewer repeats is in
    the first rounds. Each round starts with another, so that none always follows the same.
    """
    names = list(timed)
    found: dict[str, list[float]] = {name: [] for name in names}
    failed: dict[str, Exception] = {}
    for round_ in range(max((repeats[name] for name in names), default=0)):
        first = round_ % len(names) if names else 0
        for name in names[first:] + names[:first]:
            if name in failed or round_ >= repeats[name]:
                continue
            try:
                found[name].append(timed[name](stopwatch))
            except Exception as error:
                failed[name] = error
    return found, failed


def ratio(above: Sequence[float], below: Sequence[float], *, paired: bool) -> tuple[float, float, float]:
    """Median of `above` over median of `below`, with its 95% bootstrap interval: value, low, high.

    `paired`: times of the same place were taken in the same round, and are drawn together if there are as many.
    """
    tops, bottoms = np.asarray(above, float), np.asarray(below, float)
    paired = paired and len(tops) == len(bottoms)
    generator = np.random.default_rng(0)
    drawn = generator.integers(len(tops), size=(_RESAMPLES, len(tops)))
    other = drawn if paired else generator.integers(len(bottoms), size=(_RESAMPLES, len(bottoms)))
    ratios = np.median(tops[drawn], axis=1) / np.median(bottoms[other], axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(np.median(tops) / np.median(bottoms)), float(low), float(high)
