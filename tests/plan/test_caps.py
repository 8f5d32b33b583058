"""The recommender put to the test: cells by what it says, and the worker that carries a recipe out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.caps import rows

from hayless.core.devices import find
from hayless.plan import caps, ways
from hayless.plan.caps import Capped, Cell
from hayless.plan.memory import CONTEXT_BYTES
from hayless.plan.recommend import recipe
from hayless.recipe import yaml
from hayless.recipe.load import load
from hayless.study.bench.results import plain
from hayless.train import capped
from hayless.train.capped import CappedTrial

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 64,
    "dtype": "bfloat16",
}
ON = find("H100")


def cells(*megabytes: float) -> list[Cell]:
    """Budgets beyond what the context and PyTorch's workspaces take."""
    return caps.cells(ON, {"small": SMALL}, [CONTEXT_BYTES + int(size * 1e6) for size in megabytes])


def test_a_cell_is_the_first_recipe_or_the_least_that_is_refused(tmp_path: Path) -> None:
    plenty, nothing = cells(400, 1)
    assert plenty.advised and plenty.choice.needed_bytes <= plenty.budget
    assert not nothing.advised and nothing.choice.needed_bytes > nothing.budget
    # What the worker is asked is what the recipe says, but for the number of micro-batches.
    asked = plenty.asked("cpu")
    content = recipe(plenty.choice, "", "llama-1b", "texts/", 10**6)
    (tmp_path / "r.yaml").write_text(yaml.write(content), encoding="utf-8")
    train = load(tmp_path / "r.yaml").steps[-1].train  # type: ignore[union-attr]
    settings = CappedTrial.model_validate(asked).settings
    for field in ("micro_batch_size", "sequence_length", "precision"):
        assert getattr(settings, field) == getattr(train, field)
    assert settings.accumulation == min(2, train.accumulation)
    assert asked["cap_bytes"] == plenty.budget - CONTEXT_BYTES


@pytest.mark.parametrize("place", [0, 1])
def test_the_worker_makes_and_trains_what_it_is_asked(place: int) -> None:
    packed = cells(1)[0]
    assert packed.choice.way.branches and ways.packed_bits(packed.choice.way.ledger)
    cell = (packed, cells(400)[0])[place]
    trial = CappedTrial.model_validate(cell.asked("cpu"))
    outcome = capped.run(trial)
    assert outcome.fits and not outcome.reason and outcome.peak_bytes > 0 and outcome.reserved_bytes is None
    model = capped.made(trial, torch.device("cpu"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == cell.choice.way.ledger.trainable
    assert all(p.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        logits = model(torch.arange(8)[None]).logits
    assert logits.isfinite().all() and logits.std() > 0


def test_verdicts_are_counted_against_their_goals() -> None:
    first, second, third, fourth = cells(400, 300, 1, 2)
    fits = {"fits": True, "reason": "", "peak_bytes": 350_000_000, "reserved_bytes": 360_000_000, "seconds": 1.0}
    found = [
        Capped(first, fits),
        Capped(second, fits | {"fits": False, "reason": "Memory ran out: of it"}),
        Capped(third, fits | {"fits": False, "reason": "Memory ran out: of it"}),
        Capped(fourth, fits),
    ]
    assert [each.ran_out for each in found] == [False, True, False, False]
    assert [each.wrongly_refused for each in found] == [False, False, False, True]
    share = (350_000_000 + CONTEXT_BYTES) / first.budget
    assert found[0].used_share == pytest.approx(share) and found[1].used_share is None
    content = [plain(row, []) for row in rows([*found, Capped(first, {}, "it was killed")])]
    assert [(row["value"], row["met"]) for row in content[:3]] == [
        (1, False),
        (pytest.approx(share, rel=1e-4), True),
        (1, True),
    ]
    assert "1 more could not be run" in content[0]["note"] and content[-1]["reason"] == "it was killed"
    assert content[4]["value"] is None and "ran out" in content[4]["reason"]


@pytest.mark.slow
def test_cells_run_in_fresh_processes_and_come_back_in_order() -> None:
    asked = cells(1, 400)
    said: list[str] = []
    found = caps.run(asked, "cpu", 10**9, at_once=2, say=said.append)
    assert [each.cell for each in found] == asked and all(each.found["fits"] for each in found)
    assert len(said) == 2 and any("refused, but fits" in line for line in said)
    late = caps.run(asked, "cpu", 10**9, until=-1.0)
    assert all("out of time" in each.failed and not each.ran_out for each in late)
