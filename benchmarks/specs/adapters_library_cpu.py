"""Finding modules in a library of 10,000: one product with a mapped matrix, beside scans of its rows.

The vectors are drawn, 512 normal numbers each, with a mean of their own as states of language models have; no module
lies behind them, since a search reads none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np
from parts.scratch import folder

from hayless.core import atomic
from hayless.core.measurement import Goal
from hayless.methods.adapters.library.store import INDEX, VECTORS, Library, Module, Vector
from hayless.study.bench.gate import Answer, close
from hayless.study.bench.spec import TIME, Contender, Prepared, Spec, Work

_MODULES, _WIDTH, _TOP, _ASKED = 10_000, 512, 10, 16
_GOAL = {TIME: Goal(op="<=", value=5.0)}

Find = Callable[[Vector], Sequence[int]]


@cache
def drawn() -> tuple[Vector, Vector]:
    """Vectors of modules (modules, width), and vectors to ask for (asked, width)."""
    generator = np.random.default_rng(0)
    mean = 3 * generator.standard_normal(_WIDTH)
    found = (generator.standard_normal((_MODULES + _ASKED, _WIDTH)) + mean).astype(np.float32)
    return found[:_MODULES], found[_MODULES:]


@cache
def library() -> Path:
    """The folder of the library, written at once: adding one by one writes the index 10,000 times."""
    made = folder() / "library"
    made.mkdir()
    modules = [asdict(Module(f"module-{row}", "LORA", 8)) for row in range(_MODULES)]
    index = {"base_fingerprint": "none", "embedding": {"model": None, "layer": -1}, "width": _WIDTH, "modules": modules}
    atomic.write_json(made / INDEX, index)
    atomic.write_bytes(made / VECTORS, drawn()[0].tobytes())
    return made


def sorted_whole() -> Find:
    """In float64, every cosine, sorted: what is right."""
    vectors = drawn()[0].astype(np.float64)
    centred = vectors - vectors.mean(0)
    lengths = np.linalg.norm(centred, axis=1)

    def find(asked: Vector) -> Sequence[int]:
        near = centred @ (asked - vectors.mean(0)) / lengths
        return np.argsort(-near, kind="stable")[:_TOP].tolist()

    return find


def rows_in_numpy() -> Find:
    """A loop over rows that are centred already, a product of two vectors each."""
    vectors = drawn()[0]
    mean = vectors.mean(0)
    centred = vectors - mean
    rows = list(centred / np.linalg.norm(centred, axis=1, keepdims=True))

    def find(asked: Vector) -> Sequence[int]:
        direction = asked - mean
        near = [float(row @ direction) for row in rows]
        return sorted(range(len(near)), key=lambda row: -near[row])[:_TOP]

    return find


def rows_in_python() -> Find:
    """The same without numpy."""
    vectors = drawn()[0]
    mean = vectors.mean(0)
    centred = vectors - mean
    rows: list[list[float]] = (centred / np.linalg.norm(centred, axis=1, keepdims=True)).tolist()

    def find(asked: Vector) -> Sequence[int]:
        direction = (asked - mean).tolist()
        near = [sum(map(float.__mul__, row, direction)) for row in rows]
        return sorted(range(len(near)), key=lambda row: -near[row])[:_TOP]

    return find


def hayless() -> Find:
    """A library that is open."""
    opened = Library(library())
    return lambda asked: _rows(opened, asked)


def hayless_opened_anew() -> Find:
    """Opening it too: its index is read, and the mean and lengths of its vectors are found."""
    made = library()
    return lambda asked: _rows(Library(made), asked)


def _rows(library: Library, asked: Vector) -> Sequence[int]:
    return [int(found.module.name.rpartition("-")[2]) for found in library.search(asked, _TOP)]


def _contender(name: str, make: Callable[[], Find], goals: dict[str, Goal] | None = None) -> Contender:
    def prepare() -> Prepared:
        find, asked = make(), drawn()[1]
        turn = itertools.cycle(asked)

        def answer() -> Answer:
            return {"rows": np.array([find(each) for each in asked], float)}

        return Prepared(lambda: find(next(turn)), answer)

    return Contender(name, prepare, goals=goals or {})


SPEC = Spec(
    name="adapters_library_cpu",
    threads=1,
    works=[
        Work(
            f"the {_TOP} nearest of {_MODULES:,} modules, drawn vectors of {_WIDTH} numbers, one thread",
            [
                _contender("every cosine in float64, sorted", sorted_whole),
                _contender("linear scan, Python", rows_in_python),
                _contender("linear scan, numpy", rows_in_numpy),
                _contender("hayless", hayless, _GOAL),
                _contender("hayless, library opened anew", hayless_opened_anew),
            ],
            same=close(),
            piece="search",
            peaks=False,
        )
    ],
)
