"""The equality gate: nothing is timed that computes something else.

An answer is numbers by name: losses, tokens, logits. It is compared with the reference's, name by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Numbers = Tensor | Sequence[float] | Sequence[int] | NDArray[np.float64]
Answer = Mapping[str, Numbers]
Plain = dict[str, NDArray[np.float64]]
Same = Callable[[Plain, Plain], str]
"""From the reference's answer and a contender's: what differs, in words, or an empty string."""


def plain(answer: Answer) -> Plain:
    """The answer as float64 arrays on the host."""
    return {
        name: (numbers.detach().double().cpu().numpy() if isinstance(numbers, Tensor) else np.asarray(numbers, float))
        for name, numbers in answer.items()
    }


def close(*, absolute: float = 0.0, relative: float = 0.0) -> Same:
    """Every number within absolute + relative · |the reference's|; numbers that are not finite are never the same."""

    def same(reference: Plain, other: Plain) -> str:
        if reference.keys() != other.keys():
            return f"answers {', '.join(sorted(other))} instead of {', '.join(sorted(reference))}"
        for name, wanted in reference.items():
            found = other[name]
            if found.shape != wanted.shape:
                return f"{name} has shape {found.shape} instead of {wanted.shape}"
            if not np.isfinite(found).all():
                return f"{name} is not finite"
            if not np.isfinite(wanted).all():
                return f"{name} of the reference is not finite"
            off = np.abs(found - wanted)
            if not (off <= absolute + relative * np.abs(wanted)).all():
                worst = np.unravel_index(np.argmax(off), off.shape)
                return (
                    f"{name} is off by up to {off[worst]:.3g} ({found[worst]:.6g} instead of {wanted[worst]:.6g});"
                    f" allowed: {absolute:g} + {relative:g} of the value"
                )
        return ""

    return same


ERROR, SHORTFALL = "error", "shortfall"
"""Names in answers to `as_exact`."""


def as_exact(*, times: float = 2.0, worst: float = 6.0, rounding: float = 1e-3) -> Same:
    """For arithmetic in 16 bits, whose results never equal each other's: as near to float32 as the reference is.

    An answer has the `error` of each figure, itself minus what float32 gives, and where something is chosen the
    `shortfall` of each choice: by how much float32 finds another better. With r the reference's error (root mean
    square), a contender's may be `times` · r + `rounding`, and its worst shortfall `worst` · r + `rounding`.
    """

    def same(reference: Plain, other: Plain) -> str:
        missing = [name for name in (ERROR, SHORTFALL) if name in reference and name not in other]
        if missing or ERROR not in reference:
            return f"answers no {' and no '.join(missing or [ERROR])}"
        if not all(np.isfinite(numbers).all() for numbers in (*reference.values(), *other.values())):
            return "not every figure is finite"
        near, found = (float(np.sqrt(np.square(answer[ERROR]).mean())) for answer in (reference, other))
        if found > times * near + rounding:
            return f"{found:.3g} off float32, where the reference is {near:.3g} off"
        short = float(other.get(SHORTFALL, np.zeros(1)).max())
        if short > worst * near + rounding:
            return f"chooses what is {short:.3g} short of the best, where the reference is {near:.3g} off float32"
        return ""

    return same


def rejected(answers: Mapping[str, Plain], same: Same) -> dict[str, str]:
    """Contenders whose answer is not that of the first, each with the reason."""
    if not answers:
        return {}
    reference, *others = answers
    found = {name: same(answers[reference], answers[name]) for name in others}
    found[reference] = same(answers[reference], answers[reference])  # not finite: nobody can be compared with it
    return {name: f"does not compute the same as {reference}: {why}" for name, why in found.items() if why}
