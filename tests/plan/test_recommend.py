"""The recommender: what it names fits, what it writes is a recipe of the same cost, and it says what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest

from hayless.core import registry
from hayless.core.cost import TrainShape
from hayless.core.devices import DEVICES
from hayless.core.errors import NotSupported, RequestError
from hayless.core.families import dims_of
from hayless.core.method import MethodConfig, Part
from hayless.core.registry import configure, method_of
from hayless.plan import ways
from hayless.plan.memory import Plan, plan
from hayless.plan.presets import config_of
from hayless.plan.recommend import Advice, advise, budgeted, recipe
from hayless.recipe import yaml
from hayless.recipe.load import load
from hayless.recipe.prediction import predict
from tests import tiny

LLAMA_1B = replace(dims_of(config_of("llama-1b")), num_layers=6)
"""Llama's 1B shape with fewer layers, which is as telling and sooner planned."""


def advice(gigabytes: float, batch: int = 8, *, sequence: int = 512, shorten: bool = False) -> Advice:
    on = budgeted(DEVICES["H200"], int(gigabytes * 1e9))
    return advise(LLAMA_1B, [], on, batch=batch, sequence=sequence, tokens=10**7, shorten=shorten)


@pytest.mark.parametrize("gigabytes", [3, 8, 40])
def test_what_is_named_fits_and_makes_up_the_batch(gigabytes: float) -> None:
    found = advice(gigabytes)
    for choice in found.fitting:
        assert choice.needed_bytes <= gigabytes * 1e9
        rows = choice.micro_batch * choice.accumulation
        fewer = (
            choice.way.fused and (f"updates of {rows} rows" if rows > 1 else "updates of one row") in choice.gives_up
        )
        assert 8 <= rows < 8 + choice.accumulation or (fewer and rows < 8)
    for choice in found.others:
        assert choice.needed_bytes > gigabytes * 1e9 and choice.micro_batch == 1
    assert [choice.way.rank for choice in found.fitting] == sorted(choice.way.rank for choice in found.fitting)
    assert found.best is found.fitting[0]


def test_more_memory_never_gives_up_more_nor_is_slower() -> None:
    best = [advice(size).best for size in (2.5, 3, 4, 8, 12, 16)]
    ranks = [choice.way.rank for choice in best]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] > ranks[-1]
    for less, more in pairwise(best):
        assert more.way.rank < less.way.rank or more.rate >= less.rate


@pytest.mark.parametrize("gigabytes", [3.5, 4, 6, 10, 14])
def test_the_memory_is_used(gigabytes: float) -> None:
    # A block of so few layers is a large part of what there is to give back; with all 16 it is 90% and more.
    assert advice(gigabytes, 32, sequence=1024).best.needed_bytes > 0.85 * gigabytes * 1e9


def test_nothing_is_given_up_without_need() -> None:
    plenty = advice(100)
    assert [choice.gives_up for choice in plenty.fitting] == [(), ("all but a branch stays as it is",)]
    # A loss by chunks moves fewer bytes; what is computed again costs time.
    used = {config.method for config in plenty.best.memory}
    assert not plenty.others and {"fused_kernels"} <= used <= {"fused_kernels", "chunked_loss"}
    tight = advice(6)
    assert len({choice.way.branches for choice in tight.fitting}) == 2 and tight.others
    for choice in tight.fitting:
        for other in tight.fitting:
            assert other.way.branches != choice.way.branches or not set(other.gives_up) < set(choice.gives_up)


def test_a_recipe_costs_what_was_planned(tmp_path: Path) -> None:
    on = budgeted(DEVICES["H200"], 7 * 10**9)
    found = advise(dims_of(config_of("llama-1b")), [], on, batch=8, sequence=512, tokens=10**7)
    assert any(choice.memory for choice in found.fitting)
    for choice in found.fitting:
        content = recipe(choice, "", "llama-1b", "texts/", 10**7)
        (tmp_path / "planned.yaml").write_text(yaml.write(content), encoding="utf-8")
        predicted = predict(load(tmp_path / "planned.yaml"), "cuda").figures["train_peak_bytes"]
        assert choice.plan.train and predicted == choice.plan.train.peak.total, choice.name


def test_too_little_memory_names_the_least_that_is_needed() -> None:
    with pytest.raises(RequestError, match=r"Nothing trains this model in 1\.00 GB: the least, kmeans\+lora") as error:
        assert advice(1).best
    least = float(str(error.value).split("needs ")[1].split(" GB")[0])
    assert advice(least + 0.01).fitting and not advice(least - 0.01).fitting
    for wrong in ({"batch": 0}, {"sequence": 0}):
        with pytest.raises(RequestError, match=f"{next(iter(wrong))} = 0"):
            advice(24, **wrong)  # type: ignore[arg-type]


def test_sequences_are_halved_only_where_they_may_be_and_must() -> None:
    assert not advice(1.9, sequence=2048).fitting
    found = advice(1.9, sequence=2048, shorten=True)
    assert found.best.sequence < 2048 and found.best.shortened and found.best.needed_bytes <= 1.9e9
    assert f"sequences of {found.best.sequence:,} tokens" in found.best.gives_up
    tokens = found.best.micro_batch * found.best.accumulation * found.best.sequence
    assert 8 * 2048 <= tokens < 8 * 2048 + found.best.accumulation * found.best.sequence
    assert all(choice.sequence == 2048 for choice in found.others)
    assert not advice(24, sequence=2048, shorten=True).best.shortened


def test_packed_weights_train_with_a_branch_alone() -> None:
    found, impossible = ways.ways(LLAMA_1B, [configure("kmeans")])
    assert found and all(way.branches for way in found) and "do not train" in impossible["full"]
    assert "cannot be packed again" in impossible["kmeans+lora"]


def test_a_method_joins_by_its_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A memory method nobody has heard of is tried, without checkpointing and together with it."""

    class HalverConfig(MethodConfig):
        method: Literal["halver"] = "halver"

    card = replace(registry.find("checkpointing"), name="halver", config=HalverConfig, ladder=None)
    known = registry.methods
    monkeypatch.setattr(ways, "methods", lambda parts: [*known(parts), *([card] if card.part in parts else [])])
    climb = [[config.method for config in rung] for rung in ways.ladder(LLAMA_1B)]
    first = ["fused_kernels"]
    assert climb[:3] == [first, [*first, "chunked_loss"], [*first, "chunked_loss", "halver"]]
    assert len(climb) == 3 + LLAMA_1B.num_layers + 1 and climb[-2] == [*climb[2], "checkpointing"]
    assert climb[-1] == [*climb[-2], "offload"], "what works upon another comes last"


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_rung_is_accepted_by_the_model(name: str) -> None:
    """Methods are named only for models on which they can be put, and free ones for all of those."""
    model, climb = tiny.model(name), ways.ladder(dims_of(tiny.config(name).to_dict()))
    for rung in (climb[0], climb[-1]):
        with ExitStack() as stack:
            for config in rung:
                stack.enter_context(method_of(config).load().install(model, config))
    for card in registry.methods([Part.MEMORY]):
        config = configure(card.name)
        if card.free and config not in climb[0]:
            with pytest.raises(NotSupported), card.load().install(model, config):
                pass
    # Precision is given up only by those who ask for it.
    assert "float8_linears" not in {config.method for config in climb[-1]}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mixtral"])
def test_what_is_free_takes_neither_memory_nor_time(name: str) -> None:
    dims = dims_of({**tiny.config(name).to_dict(), "hidden_size": 512, "intermediate_size": 1024})
    found, _ = ways.ways(dims, [])
    free, *_, most = ways.ladder(dims)
    assert free
    paid = most[len(free) :]
    for way in {(way.branches, way.precision, bool(ways.packed_bits(way.ledger))): way for way in found}.values():
        for memory in ((), paid[:1], paid[:2], paid):
            for rows, tokens in ((1, 8), (3, 512)):
                plain, fused = (cost(way, methods, rows, tokens) for methods in (memory, (*free, *memory)))
                assert fused.train.peak.total <= plain.train.peak.total, (way.name, memory)  # type: ignore[union-attr]
                for device in ("B200", "RTX 4090", "T4"):
                    seconds = [replace(each, device=DEVICES[device]).step_seconds() for each in (plain, fused)]
                    assert seconds[1] <= seconds[0], (way.name, memory, device)  # type: ignore[operator]


def cost(way: ways.Way, memory: Sequence[MethodConfig], rows: int, tokens: int) -> Plan:
    shape = TrainShape(rows, tokens, precision=way.precision)
    for config in (way.optimizer, *memory):
        shape = method_of(config).predict_training(shape, config)
    return plan(way.name, way.ledger, shape, DEVICES["H100"], decode=False)
