"""Functions in the Python that predictions are written in, for the translation to JavaScript to be held against."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cache
from typing import Any, Literal

from pydantic import Field

from hayless.core.errors import NotSupported, RequestError, bad_value, unknown
from hayless.core.options import Options


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"

    @property
    def warm(self) -> bool:
        return self is Colour.RED


@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: int = 2
    tags: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        if self.x < 0:
            raise bad_value("x", self.x, allowed="at least 0")
        if not self.tags:
            object.__setattr__(self, "tags", (f"{self.x:,}",))

    @property
    def area(self) -> int:
        return self.x * self.y

    def grown(self, by: int = 1, *, both: bool = True) -> Point:
        return replace(self, x=self.x + by, y=self.y + by if both else self.y)

    def __add__(self, other: Point) -> Point:
        return Point(self.x + other.x, self.y + other.y)


class Base:
    kind = "base"

    def __init__(self, size: int) -> None:
        self.size = size

    def named(self) -> str:
        return f"{self.kind} {self.size}"


class Derived(Base):
    kind = "derived"

    def __init__(self, size: int, more: int = 3) -> None:
        super().__init__(size + more)
        self.more = more

    @staticmethod
    def twice(value: int) -> int:
        return 2 * value

    @classmethod
    def of(cls, size: int) -> str:
        return cls.kind + str(size)


class Settings(Options):
    method: Literal["tried"] = "tried"
    rank: int = Field(8, ge=1)
    targets: tuple[str, ...] = ("blocks",)


TABLE: Mapping[str, tuple[int, str | None]] = {"a": (1, None), "b": (2, "two")}
SHARED = frozenset({Colour.RED})
MADE = Settings(rank=4)
HALF = functools.partial(lambda a, b: a / b, b=2)


def numbers(a: float, b: float) -> list[Any]:
    ties = [round(0.5), round(1.5), round(2.5), round(-1.5), round(2.675, 2)]
    return [a + b, a - b, a * b, a / b, a // b, a % b, -a // b, -a % b, b**2, divmod(a, b), abs(-a), min(a, b), *ties]


def large(n: int, by: int) -> list[int]:
    return [n // by, n % by, -n // by, n - 1, *divmod(n, by)]


def wholes(n: int) -> list[Any]:
    return [n >> 1, 1 << 4, n.bit_length(), -(-n // 3), math.ceil(n / 3), math.prod([n, 2, 3]), int(n / 4)]


def truths(values: list[Any]) -> list[Any]:
    return [[bool(value), value or "other", value and "both", not value] for value in values]


def compared(a: Any, b: Any) -> list[bool]:
    return [a == b, a != b, a is None, b is not None, [a] == [b], {"k": a} == {"k": b}]


def ordered(a: Any, b: Any, c: Any) -> list[bool]:
    return [a < b, a <= b, a > b, a >= b, a < b < c, a <= b <= c]


def text(name: str, count: int, share: float) -> list[str]:
    return [
        f"{name!r} {count:,} {share:.2f} {share:.0%} {share:g} {count:>6}|{name:<5}|{name:^7}|{count:03d}",
        name.removeprefix("a").removesuffix("c") + "-".join(["x", "y"]),
        "{layer}.w".replace("{layer}", str(count)),
        str(None) + str(True) + repr([1, "a", None]),
        f"{1e-05:g} {1234567.0:g} {0.5:.0f} {1.5:.0f} {2.5:.1f}",
        *"a.b.c".rpartition("."),
        *name.split("b"),
        " x ".strip().upper(),
    ]


def collections(names: list[str]) -> list[Any]:
    counted = Counter(names)
    counted["extra"] += 2
    found: dict[Any, list[int]] = {}
    for place, name in enumerate(names):
        found.setdefault((name, len(name)), []).append(place)
    seen = {name for name in names if name != "a"}
    merged = {**dict.fromkeys(names, 0), "z": 1} | {"y": 2}
    merged.pop("z")
    first, *rest = sorted(seen, reverse=True)
    return [
        [list(key) + value for key, value in found.items()],
        dict(counted),
        counted["absent"],
        sorted(seen | {"q"}),
        sorted(seen & {"b"}),
        sorted(seen - {"b"}),
        merged,
        first,
        rest,
        names[-1],
        names[1:],
        names[::-1],
        names[::2],
        ("b", 1) in found,
        [1, 2] + [3] * 2,
        max(names, key=len),
        sorted(names, key=lambda name: (-len(name), name)),
        list(zip(names, range(3), strict=False)),
        next((name for name in names if name == "nothing"), None),
        any(name == "a" for name in names),
        sum(len(name) for name in names),
        [a + b for a in names for b in names if a < b],
        list(map(len, names)),
        list(filter(None, ["", "x"])),
    ]


def objects(x: int) -> list[Any]:
    point = Point(x)
    load = point.grown
    grown = load(2, both=False)
    known = {point: "first", Point(x + 1, 3): "second"}
    child = Derived(x)
    return [
        point.area,
        list(grown.tags),
        (point + grown).area,
        known[Point(x)],
        point == Point(x),
        Point(x=1, tags=("t",)).tags[0],
        child.named(),
        child.more,
        Derived.twice(x),
        Derived.of(x),
        isinstance(child, Base),
        isinstance(x, int | str),
        isinstance(True, bool) and not isinstance("s", (int, float)),
        getattr(point, "xy"[1]),
        hasattr(point, "z"),
    ]


def enums(value: str) -> list[Any]:
    colour = Colour(value)
    return [
        colour.value,
        colour == value,
        colour in SHARED,
        colour.warm,
        f"{colour}",
        [each.name for each in Colour],
        ", ".join(sorted(Colour)),
        {colour: 1}[value],
    ]


def settings(rank: int) -> list[Any]:
    changed = MADE.model_copy(update={"rank": rank})
    made = Settings(rank=rank)
    return [MADE.rank, changed.rank, made == changed, made.model_dump(exclude_defaults=True, exclude={"method"})]


@contextmanager
def noting(notes: list[str], name: str) -> Iterator[str]:
    notes.append(f"in {name}")
    yield name.upper()
    notes.append(f"out {name}")


def contexts(stop: bool) -> list[str]:
    notes: list[str] = []

    def inside() -> str:
        with noting(notes, "a") as upper, noting(notes, "b"):
            notes.append(upper)
            if stop:
                return "stopped"
        return "through"

    return [inside(), *notes]


def counting(limit: int) -> Iterator[int]:
    number = 0
    while True:
        number += 1
        if number % 2:
            continue
        if number > limit:
            break
        yield number
    yield from (-1, -2)


def generated(limit: int) -> list[int]:
    return list(counting(limit))


def with_rest(first: int, *rest: int, scale: int = 1, **named: int) -> list[Any]:
    return [first, list(rest), scale, dict(named)]


def calls(a: int) -> list[Any]:
    options = {"scale": a, "other": 5}
    more = (2, 3)
    bound = functools.partial(with_rest, a, 1, scale=3)
    return [with_rest(a), with_rest(a, *more, scale=2), with_rest(a, **options), HALF(a), bound(4), defaulted(a, c=4)]


def defaulted(a: int, b: int | None = None, *, c: int = 3) -> list[Any]:
    return [a, b is None, c]


def closures(n: int) -> list[int]:
    tried: list[int] = []

    @cache
    def squared(value: int) -> int:
        tried.append(value)
        return value * value

    total = 0

    def add(value: int) -> None:
        nonlocal total
        total += value

    for value in (n, n, n + 1):
        add(squared(value))
    return [total, *tried]


def errors(kind: str) -> list[str]:
    try:
        if kind == "bad":
            Point(-1)
        elif kind == "unknown":
            raise unknown("colour", "rde", ["red", "blue"])
        elif kind == "division":
            return [str(1 // 0)]
        elif kind == "key":
            return [str(TABLE["c"])]
        else:
            raise NotSupported("not built", hint="wait")
    except NotSupported as error:
        return ["not supported", error.message, error.hint or ""]
    except RequestError as error:
        return [type_of(error), error.message, error.hint or ""]
    except (ZeroDivisionError, KeyError):
        return ["arithmetic or key"]
    return []


def type_of(error: Exception) -> str:
    return "request" if isinstance(error, RequestError) else "other"


def tables(name: str) -> list[Any]:
    number, word = TABLE[name]
    return [number, word, name in TABLE, list(TABLE), (lambda value: value or "none")(word)]
