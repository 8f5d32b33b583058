"""Which ways to train a model fit into a memory, how fast they are, and the first of them as a recipe.

Ways (`hayless.plan.ways`) are tried in the order of what they give up, and nothing is given up without need: where one
fits, those that give up the same and more are not tried. Each uses the memory to be fast: of all micro-batches, with as
few blocks computed again as fit beside them, it takes the fastest by prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hayless.core.cost import TrainShape
from hayless.core.devices import Device
from hayless.core.dims import ModelDims
from hayless.core.errors import RequestError
from hayless.core.method import MethodConfig
from hayless.core.registry import configure, method_of
from hayless.core.units import format_bytes
from hayless.plan.memory import Plan, needed, plan, spent
from hayless.plan.presets import config_of
from hayless.plan.table import whole
from hayless.plan.ways import Ladder, Way, label, ladder, settings_of, ways

SHORTEST = 256
"""Tokens under which sequences are not shortened."""
FULL = 0.95
"""The share of the memory, allowances included, from which on it counts as used."""
ALIKE = 0.125
"""Speeds nearer to each other than this share are not told apart by predictions that err by a tenth each."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to train, at the micro-batch, memory methods and sequence that are planned for it.

    `shortened`: how often the sequence asked for was halved; `rows`: how many an update was asked to have.
    """

    way: Way
    memory: tuple[MethodConfig, ...]
    micro_batch: int
    accumulation: int
    sequence: int
    shortened: int
    rows: int
    plan: Plan

    @property
    def needed_bytes(self) -> int:
        """Bytes at the peak, allowances included."""
        assert self.plan.train
        return needed(self.plan.train.peak)["total"]

    @property
    def fits(self) -> bool:
        """Whether the device has so much."""
        return self.needed_bytes <= self.plan.device.memory_bytes

    @property
    def used_share(self) -> float:
        """The share of the device's memory that is needed."""
        return self.needed_bytes / self.plan.device.memory_bytes

    @property
    def rate(self) -> float:
        """Predicted tokens a second."""
        return self.plan.train_tokens_per_second() or 0.0

    @property
    def gives_up(self) -> tuple[str, ...]:
        """What this choice gives up, in words."""
        shorter = (f"sequences of {self.sequence:,} tokens",) if self.shortened else ()
        size = "one row" if self.micro_batch == 1 else f"{self.micro_batch} rows"
        fewer = (f"updates of {size}",) if self.micro_batch * self.accumulation < self.rows else ()
        return self.way.gives_up + shorter + fewer

    @property
    def name(self) -> str:
        """`lora, adamw, master, checkpointing(blocks=3)`."""
        return ", ".join([self.way.name, *map(label, self.memory)])

    def to_json(self, tokens: int) -> dict[str, Any]:
        """Plain data with units in its names."""
        memory = self.plan.device.memory_bytes
        return {
            "name": self.name,
            "transforms": [settings_of(config) for config in self.way.transforms],
            "optimizer": settings_of(self.way.optimizer),
            "precision": self.way.precision,
            "memory": [settings_of(config) for config in self.memory],
            "gives_up": list(self.gives_up),
            "micro_batch": self.micro_batch,
            "accumulation": self.accumulation,
            "sequence": self.sequence,
            "needed_bytes": self.needed_bytes,
            "left_bytes": memory - self.needed_bytes,
            "used_share": self.used_share,
            "fits": self.fits,
            "tokens_per_second": self.rate,
            **spent(self.plan, tokens),
        }


@dataclass(frozen=True, slots=True)
class Advice:
    """`fitting` ways, best first; `others`, which were tried before them and do not fit, each at its leanest; `least`,
    what needs least of all that does not fit, shorter sequences included; and what cannot be combined: name → why."""

    fitting: tuple[Choice, ...]
    others: tuple[Choice, ...]
    least: Choice | None
    impossible: dict[str, str]
    tokens: int

    @property
    def best(self) -> Choice:
        """The first that fits. RequestError where nothing does, with what would be needed."""
        if self.fitting:
            return self.fitting[0]
        if self.least is None:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.impossible.items())
            raise RequestError(f"No way to train this model is known. {reasons}")
        need = format_bytes(self.least.needed_bytes)
        raise RequestError(
            f"Nothing trains this model in {format_bytes(self.least.plan.device.memory_bytes)}: the least,"
            f" {self.least.name} with one row of {self.least.sequence:,} tokens, needs {need}.",
            hint=f"Give {need} or more, a shorter sequence, or a smaller model.",
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "fitting": [choice.to_json(self.tokens) for choice in self.fitting],
            "others": [choice.to_json(self.tokens) for choice in self.others],
            "impossible": self.impossible,
        }


def advise(
    dims: ModelDims,
    before: Sequence[MethodConfig],
    on: Device,
    *,
    batch: int,
    sequence: int,
    tokens: int,
    shorten: bool = False,
) -> Advice:
    """Ways to train on `tokens` tokens, `batch` rows of `sequence` tokens an update, in the memory of `on`.

    All weights and a branch alone are sought apart, since either may be wanted. With `shorten`, where nothing fits the
    sequence is halved, for twice as many rows.
    """
    whole("batch", batch)
    whole("sequence", sequence)
    whole("data_tokens", tokens)
    found, impossible = ways(dims, before)
    climb = ladder(dims)
    halves = [sequence >> count for count in range(1, sequence.bit_length())] if shorten else []
    lengths = [sequence, *(length for length in halves if length >= SHORTEST)]
    fitting: list[Choice] = []
    others: list[Choice] = []
    refused: list[Choice] = []
    for branches in (False, True):
        kind = [way for way in found if way.branches is branches]
        for shortened, length in enumerate(lengths):
            fits, unfit = _of_one_length(kind, climb, on, batch * sequence // length, length, shortened)
            fitting += fits
            refused += unfit
            others += () if shortened else unfit
            if fits:
                break
    best = sorted(fitting, key=lambda choice: (choice.shortened, *choice.way.rank, -choice.rate))
    least = min(refused, key=lambda choice: choice.needed_bytes, default=None)
    return Advice(tuple(best), tuple(others), least, impossible, tokens)


def recipe(choice: Choice, model: str, preset: str, data: str, tokens: int) -> dict[str, Any]:
    """A choice as the content of a recipe."""
    memory = {"memory": [settings_of(config) for config in choice.memory]} if choice.memory else {}
    train = {
        "tokens": tokens,
        "batch_size": choice.micro_batch * choice.accumulation,
        "micro_batch_size": choice.micro_batch,
        "sequence_length": choice.sequence,
        "precision": choice.way.precision,
        "optimizer": settings_of(choice.way.optimizer),
        **memory,
    }
    return {
        "name": "planned",
        "model": starting(model, preset),
        "data": {"sources": [{"path": data}]},
        "steps": [*({"apply": settings_of(config)} for config in choice.way.transforms), {"train": train}],
        "device": "cuda",
    }


def starting(model: str, preset: str) -> dict[str, Any]:
    """The model section of a recipe; a preset has random weights, and a tokenizer must be named."""
    if not preset:
        return {"path": model}
    config = config_of(preset)
    return {"config": config, "tokenizer": "path/to/tokenizer", "dtype": config["dtype"]}


def budgeted(on: Device, memory_bytes: int) -> Device:
    """A device of the same speed with so much memory."""
    return replace(on, memory_bytes=whole("memory", memory_bytes))


def _of_one_length(
    found: Sequence[Way], climb: Ladder, on: Device, rows: int, sequence: int, shortened: int
) -> tuple[list[Choice], list[Choice]]:
    """Ways that fit, each at its fastest, and those that do not, at their leanest; what gives up more is not tried."""
    fits: list[Choice] = []
    refused: list[Choice] = []
    for way in found:
        if any(set(other.way.gives_up) < set(way.gives_up) for other in fits):
            continue
        choice = _fastest(_Chooser(way, climb, on, rows, sequence, shortened), rows, len(climb))
        (fits if choice.fits else refused).append(choice)
    return fits, refused


class _Chooser:
    """Plans choices of one way by micro-batch and rung of the ladder, each once; whether one fits without its times."""

    def __init__(self, way: Way, climb: Ladder, on: Device, rows: int, sequence: int, shortened: int) -> None:
        self._way, self._climb, self._on = way, climb, on
        self._rows, self._sequence, self._shortened = rows, sequence, shortened
        self._fits: dict[tuple[int, int], bool] = {}
        self._found: dict[tuple[int, int], Choice] = {}

    def at(self, micro: int, rung: int) -> Choice:
        """The choice."""
        if (micro, rung) not in self._found:
            self._found[micro, rung] = self._made(micro, rung, timed=True)
        return self._found[micro, rung]

    def fits(self, micro: int, rung: int) -> bool:
        """Whether it fits."""
        if (micro, rung) not in self._fits:
            known = self._found.get((micro, rung)) or self._made(micro, rung, timed=False)
            self._fits[micro, rung] = known.fits
        return self._fits[micro, rung]

    def _made(self, micro: int, rung: int, *, timed: bool) -> Choice:
        way, memory = self._way, self._climb[rung]
        accumulation = 1 if way.fused else -(-self._rows // micro)
        shape = TrainShape(micro, self._sequence, accumulation=accumulation, precision=way.precision)
        for config in (configure("lm"), way.optimizer, *memory):
            shape = method_of(config).predict_training(shape, config)
        found = plan(way.name, way.ledger, shape, self._on, decode=False, timed=timed)
        return Choice(way, memory, micro, accumulation, self._sequence, self._shortened, self._rows, found)


def _fastest(choices: _Chooser, rows: int, rungs: int) -> Choice:
    """The fastest choice that fits, the fullest of those about as fast where it leaves much memory; the leanest of all
    where none fits.

    More rows at once and a faster rung both need more memory. Micro-batches are those that cut `rows` into a different
    number of pieces.
    """
    leanest = choices.at(1, rungs - 1)
    if not leanest.fits:
        return leanest
    micros = sorted({-(-rows // pieces) for pieces in range(1, rows + 1)})
    most = last_that_holds(len(micros), lambda place: choices.fits(micros[place], rungs - 1))
    found, rung = [leanest], rungs - 1
    for micro in reversed(micros[: most + 1]):
        rung = _first_rung(choices, micro, rung)
        found.append(choices.at(micro, rung))
        if not rung:
            # Fewer rows at once have nothing left to gain.
            break
    fastest = max(found, key=lambda choice: (choice.rate, choice.needed_bytes))
    if fastest.used_share >= FULL:
        return fastest
    return max((each for each in found if each.rate >= (1 - ALIKE) * fastest.rate), key=lambda each: each.needed_bytes)


def _first_rung(choices: _Chooser, micro: int, last: int) -> int:
    """The fastest rung at which so many rows fit, which they do at `last`."""
    return last - last_that_holds(last + 1, lambda up: choices.fits(micro, last - up))


def last_that_holds(count: int, holds: Callable[[int], bool]) -> int:
    """The last place of 0 to `count` − 1 where `holds`, which holds at 0 and, once it does not, never again."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
