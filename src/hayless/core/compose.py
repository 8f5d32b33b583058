"""Which methods go together, and in which order: one function, from what methods claim.

The rules, in words:

1. Changes are made in the order shape, values, storage, forward, branch: a weight is pruned before it is packed, and a
   branch is added last, because it is trained against what the base then is.
2. No two methods may claim the storage, the forward computation or the branch of the same role.
3. Values and shapes may be claimed more than once; they are changed in the order given.
"""

from __future__ import annotations

from collections.abc import Sequence

from hayless.core.errors import NotSupported, RequestError
from hayless.core.ledger import Ledger
from hayless.core.method import Aspect, MethodConfig, Part
from hayless.core.registry import method_of

_ORDER = list(Aspect)
_EXCLUSIVE = (Aspect.STORAGE, Aspect.FORWARD, Aspect.BRANCH)
_WHY = {
    Aspect.STORAGE: "both pack the same weights, and packed weights cannot be packed again",
    Aspect.FORWARD: "both replace what the same modules compute",
    Aspect.BRANCH: "both add a branch to the same modules",
}


def compose(configs: Sequence[MethodConfig]) -> list[MethodConfig]:
    """The transforms `configs` in the order in which they must be applied.

    The sort is stable, so methods that claim the same aspect stay in the given order. Raises RequestError with the
    reason for two methods that exclude each other and for a method that is no transform.
    """
    for config in configs:
        method = method_of(config)
        if method.part is not Part.TRANSFORM:
            raise RequestError(
                f"{method.name} is part of {method.part.kind}ing, not a change of the model.",
                hint=f"Give it to a {method.part.kind} step as its {method.part.value}.",
            )
    for position, later in enumerate(configs):
        for earlier in configs[:position]:
            reason = conflict(earlier, later)
            if reason:
                raise RequestError(f"{earlier.method} and {later.method} cannot be combined: {reason}.")
    return sorted(configs, key=_rank)


def conflict(one: MethodConfig, other: MethodConfig) -> str | None:
    """Why two transforms exclude each other on some role, or None."""
    for a in method_of(one).claims(one):
        for b in method_of(other).claims(other):
            shared = a.roles & b.roles
            if a.aspect is b.aspect and a.aspect in _EXCLUSIVE and shared:
                return f"{_WHY[a.aspect]} ({', '.join(sorted(shared))})"
    return None


def check_order(configs: Sequence[MethodConfig]) -> None:
    """Raise RequestError where transforms stand in an order that `compose` would change."""
    ordered = compose(configs)
    if list(configs) != ordered:
        names = " → ".join(config.method for config in ordered)
        given = " → ".join(config.method for config in configs)
        raise RequestError(
            f"The order {given} cannot work: weights are changed before they are packed, and branches come last.",
            hint=f"Apply them as {names}.",
        )


def unmergeable(config: MethodConfig) -> NotSupported:
    """The refusal to fold what a method adds into the base, for methods that never can be."""
    return NotSupported(
        f"What {config.method} adds cannot be merged: {method_of(config).unmerged}.",
        hint="Save base and adapter side by side (merge: false).",
    )


def predict(ledger: Ledger, configs: Sequence[MethodConfig]) -> Ledger:
    """The ledger after the transforms `configs`, in that order."""
    for config in configs:
        ledger = method_of(config).predict(ledger, config)
    return ledger


def _rank(config: MethodConfig) -> int:
    claims = method_of(config).claims(config)
    return min((_ORDER.index(claim.aspect) for claim in claims), default=0)
