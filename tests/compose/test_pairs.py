"""Every pair of transforms: those that go together are run from end to end, the others are refused with a reason.

The pairs come from the catalogue, and what is expected of each from the claims its methods declare.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch

from hayless.core.compose import check_order, compose, conflict
from hayless.core.errors import NotSupported, RequestError
from hayless.core.method import MethodConfig, Need, Part
from hayless.core.registry import configure, find, methods
from hayless.methods.common import calibrated
from hayless.model.transform import Context, apply, record
from tests import tiny
from tests.methods.running import check_held, logits, losses, predicted

MODELS = ("llama", "gpt2", "mixtral")
NAMES = [method.name for method in methods([Part.TRANSFORM])]
PAIRS = list(product(NAMES, NAMES))
QUICK = {"gptq": {"group_size": "row", "clip": False}, "awq": {"group_size": "row", "clip": False, "grid": 2}}
"""What makes calibrated methods quick; in their own tests they are at their defaults."""
CONTEXT = Context(calibration=[torch.randint(3, 96, (4, 32), generator=torch.Generator().manual_seed(5))])


@pytest.fixture(autouse=True)
def _writer_known_to_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrated, "try_writer", lambda *arguments: None)


@cache
def suited(name: str, family: str) -> MethodConfig:
    """The method's defaults; only on attention where these include what the method does not reach in this family."""
    method = find(name)
    if Need.TRAINED_ADAPTER in method.needs:
        pytest.skip(f"{name} needs a trained adapter")
    for options in ({}, {"targets": ("attention",)}, {"outputs": ("k", "v")}):
        if not options.keys() <= method.config.model_fields.keys():
            continue
        config = configure(name, **QUICK.get(name, {}), **options)
        try:
            predicted(tiny.model(family), [config])
        except NotSupported:
            continue
        return config
    pytest.skip(f"{name} does not apply to {family}")


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_pair_runs_or_is_refused_with_a_reason(family: str, one: str, other: str) -> None:
    pair = [suited(one, family), suited(other, family)]
    model = tiny.model(family)
    reason = conflict(*pair)
    if reason:
        before = logits(model)
        with pytest.raises(RequestError, match="cannot be combined") as caught:
            apply(model, pair, CONTEXT)
        assert reason in str(caught.value)
        with pytest.raises(RequestError, match="cannot be combined"):
            check_order(pair)
        assert torch.equal(logits(model), before) and not record(model)
        return
    apply(model, pair, CONTEXT)
    ordered = compose(pair)
    assert record(model) == ordered
    check_held(model, predicted(model, ordered))
    found = losses(model, steps=2)
    assert all(loss == loss for loss in found)
    again = tiny.model(family, seed=1)
    for config in ordered:
        find(config.method).load().restore(again, config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_the_wrong_order_is_refused_with_the_right_one(one: str, other: str) -> None:
    pair = [suited(one, "llama"), suited(other, "llama")]
    if conflict(*pair) or compose(pair) == pair:
        return
    with pytest.raises(RequestError, match=f"{other} → {one}"):
        check_order(pair)
