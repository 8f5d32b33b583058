"""The recommender: what it names fits, what it writes is a recipe of the same cost, and it says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from hayless.core.errors import RequestError
from hayless.core.families import dims_of
from hayless.plan import memory
from hayless.plan.presets import config_of
from hayless.plan.recommend import WAYS, Advice, advise, budgeted, recipe
from hayless.recipe import yaml
from hayless.recipe.load import load
from hayless.recipe.prediction import predict

LLAMA_1B = dims_of(config_of("llama-1b"))


def advice(gigabytes: float, batch: int = 8) -> Advice:
    on = budgeted(memory.device("H200"), int(gigabytes * 1e9))
    return advise(LLAMA_1B, [], on, batch=batch, sequence=512, tokens=10**7)


@pytest.mark.parametrize("gigabytes", [5, 24, 80])
def test_what_is_named_fits_and_makes_up_the_batch(gigabytes: float) -> None:
    found = advice(gigabytes)
    for choice in found.fitting:
        assert choice.needed_bytes <= gigabytes * 1e9
        assert 8 <= choice.micro_batch * choice.accumulation < 8 + choice.accumulation
    for choice in found.others:
        assert choice.needed_bytes > gigabytes * 1e9 and choice.micro_batch == 1
    places = [WAYS.index(choice.way) for choice in found.fitting]
    assert places == sorted(places)


def test_more_memory_never_offers_less() -> None:
    ways = [{(choice.way, choice.precision) for choice in advice(size, batch=4).fitting} for size in (5, 16, 80)]
    assert ways[0] < ways[1] < ways[2]


def test_a_recipe_costs_what_was_planned(tmp_path: Path) -> None:
    for choice in advice(24).fitting:
        content = recipe(choice, "", "llama-1b", "texts/", 512, 10**7)
        (tmp_path / "planned.yaml").write_text(yaml.write(content), encoding="utf-8")
        predicted = predict(load(tmp_path / "planned.yaml"), "cuda").figures["train_peak_bytes"]
        assert choice.plan.train and predicted == choice.plan.train.peak.total, choice.name


def test_too_little_memory_names_the_least_that_is_needed() -> None:
    with pytest.raises(RequestError, match=r"Nothing trains this model in 1\.00 GB: the least, kmeans\+lora") as error:
        advice(1)
    least = float(str(error.value).split("needs ")[1].split(" GB")[0])
    assert advice(least + 0.01).fitting
    with pytest.raises(RequestError, match="batch = 0"):
        advice(24, batch=0)
