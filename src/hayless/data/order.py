"""Which row comes when: a pure function of (seed, number, proportions), with no state to save.

Within an epoch the rows of a domain come in an order given by a Feistel permutation, computed for one number at a time
(Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002, with cycle walking). Each epoch has its own order.

Domains take turns by a low-discrepancy sequence: after r rows a domain with share p has had p·r of them, give or take
less than the number of domains, and exactly p·r whenever that and the shares before it come out whole. Where shares
change, the sequence starts anew, and each domain goes on with the rows that it has not had.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, inf, lcm

from hayless.core.errors import RequestError, bad_value, unknown

_ROUNDS = 6
_MASK = (1 << 64) - 1


def shuffled(position: int, size: int, *key: int) -> int:
    """The image of `position` under a permutation of range(size) that `key` chooses."""
    if not 0 <= position < size:
        raise ValueError(f"position {position} is outside of 0 to {size - 1}")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    seed = 0
    for part in key:
        seed = _mix(seed ^ _mix(part & _MASK))
    while True:
        left, right = position >> half, position & low
        for step in range(_ROUNDS):
            left, right = right, left ^ (_mix(seed ^ _mix(right << 8 | step)) & low)
        position = left << half | right
        if position < size:
            return position


class Order:
    """Row numbers 0, 1, 2, … → (pool, index in the pool).

    `sizes` are rows a pool (a domain) has. Without `stages` all rows form one sequence that is reshuffled each epoch;
    with them each pool has its own epochs, and the pools take turns by weights. A stage is the number of the row it
    starts with and the pools' weights from there on; the first starts with row 0.
    """

    def __init__(self, sizes: Sequence[int], seed: int, stages: Sequence[tuple[int, Sequence[int]]] = ()) -> None:
        self._sizes = list(sizes)
        self._seed = seed
        self._total = sum(self._sizes)
        self._stages: list[tuple[int, list[int]]] = []
        self._had: list[list[int]] = []
        for start, weights in stages:
            self._begin(start, weights)

    def at(self, number: int) -> tuple[int, int]:
        """The row that comes as `number`: its pool and its index there."""
        if not self._stages:
            epoch, position = divmod(number, self._total)
            index = shuffled(position, self._total, self._seed, 0, epoch)
            for pool, size in enumerate(self._sizes):
                if index < size:
                    return pool, index
                index -= size
            raise AssertionError("the sizes of all pools add up to the total")
        stage = bisect_right(self._stages, number, key=lambda stage: stage[0]) - 1
        start, weights = self._stages[stage]
        pool, count = turn(number - start, weights)
        epoch, position = divmod(self._had[stage][pool] + count, self._sizes[pool])
        return pool, shuffled(position, self._sizes[pool], self._seed, pool + 1, epoch)

    def _begin(self, start: int, weights: Sequence[int]) -> None:
        """Add a stage, and count what each pool has had before it."""
        had = [0] * len(self._sizes)
        if self._stages:
            last, before = self._stages[-1]
            if start <= last:
                raise ValueError(f"a stage from row {start} cannot follow one from row {last}")
            had = [one + other for one, other in zip(self._had[-1], dealt(start - last, before), strict=True)]
        elif start:
            raise ValueError(f"the first stage starts with row {start}, not 0")
        self._stages.append((start, list(weights)))
        self._had.append(had)


def dealt(rows: int, weights: Sequence[int]) -> list[int]:
    """How many of the first `rows` turns each pool has."""
    found, rest = [], sum(weights)
    for weight in weights:
        count = rows if weight == rest else rows * weight // rest
        found.append(count)
        rows, rest = rows - count, rest - weight
    return found


def turn(number: int, weights: Sequence[int]) -> tuple[int, int]:
    """Whose turn it is at `number`, and how many turns that pool had before.

    A pool's share p is its weight over the sum of all. The first pool gets ⌊p·r⌋ of r rows; what is left is dealt among
    the others by their shares of the rest in the same way. All counts only grow, and exactly one of them with each row.
    """
    before, after, rest = number, number + 1, sum(weights)
    for pool, weight in enumerate(weights):
        if weight == rest:
            return pool, before
        had, has = before * weight // rest, after * weight // rest
        if has > had:
            return pool, had
        before, after, rest = before - had, after - has, rest - weight
    raise ValueError("the weights are all zero")


def whole_weights(domains: Sequence[str], proportions: Mapping[str, float]) -> list[int]:
    """Proportions, in any scale, as the smallest whole numbers in the same ratio, for `domains` in their order.

    A domain that is not named gets 0. The decimals are taken as written: 0.1 is one tenth. RequestError for a name that
    is no domain, and where all are zero.
    """
    for name in proportions:
        if name not in domains:
            raise unknown("domain in proportions", name, domains)
    for name, share in proportions.items():
        if not 0 <= share < inf:
            raise bad_value(f"proportions.{name}", share, allowed="0 or more")
    exact = [Fraction(str(proportions.get(domain, 0))) for domain in domains]
    if not any(exact):
        raise RequestError("All proportions are zero.", hint="Give at least one domain a share.")
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    return [weight // gcd(*whole) for weight in whole]


def _mix(value: int) -> int:
    """SplitMix64's finaliser on Python integers."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)
