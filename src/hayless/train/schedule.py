"""The learning rate over time.

Warm-up-stable-decay is MiniCPM's (Hu et al., 2024, arXiv:2404.06395): a constant rate, then a short fall. Cosine is
Loshchilov and Hutter's SGDR without restarts (2017, arXiv:1608.03983), down to `floor` instead of 0.
"""

from __future__ import annotations

import math

from hayless.train.settings import ScheduleSettings


def rate(settings: ScheduleSettings, step: int, total: int) -> float:
    """The share of the peak learning rate at update `step` (0 to `total` − 1).

    The rate rises linearly over the first ⌈warmup·total⌉ updates, of which the first already moves the weights, is 1
    at the end of the warm-up and `floor` at the last update (except for `constant`).
    """
    warmup = math.ceil(settings.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    if settings.shape == "constant":
        return 1.0
    length = total - warmup if settings.shape == "cosine" else min(math.ceil(settings.decay * total), total - warmup)
    # `length` updates follow the peak; the last of them has the floor.
    done = min(1.0, max(0.0, (step + 1 - (total - length)) / length)) if length else 1.0
    fall = 0.5 * (1 - math.cos(math.pi * done)) if settings.shape == "cosine" else done
    return 1.0 - (1.0 - settings.floor) * fall
