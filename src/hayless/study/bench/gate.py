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


def rejected(answers: Mapping[str, Plain], same: Same) -> dict[str, str]:
    """Contenders whose answer is not that of the first, each with the reason."""
    if not answers:
        return {}
    reference, *others = answers
    found = {name: same(answers[reference], answers[name]) for name in others}
    found[reference] = same(answers[reference], answers[reference])  # not finite: nobody can be compared with it
    return {name: f"does not compute the same as {reference}: {why}" for name, why in found.items() if why}
