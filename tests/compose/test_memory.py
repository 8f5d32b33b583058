"""Every pair of memory methods: gradients are the plain ones to rounding, or the pair is refused with a reason.

The pairs come from the catalogue; in which order a pair may stand follows from what a card says it works upon.
"""

from __future__ import annotations

from functools import cache
from itertools import permutations

import pytest
import torch

from hayless.core.cost import TrainShape
from hayless.core.errors import RequestError
from hayless.core.method import Part
from hayless.core.registry import configure, find, methods
from hayless.methods.memory import eight_bits
from tests import tiny
from tests.methods.test_offload import gradients
from tests.train.conftest import one_thread  # noqa: F401

NAMES = [method.name for method in methods([Part.MEMORY])]
ROUGH = {"float8_linears"}
"""Methods that round by more than the model does."""


@cache
def plain() -> dict[str, torch.Tensor]:
    return gradients(tiny.model("llama"), [])


@pytest.mark.parametrize(("one", "other"), [*permutations(NAMES, 2)])
def test_a_pair_gives_the_plain_gradients_or_is_refused(one: str, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eight_bits, "check_device", lambda device: None)
    pair, model, shape = [configure(one), configure(other)], tiny.model("llama"), TrainShape(1, 8)
    before: list[str] = []
    for config in pair:
        card = find(config.method)
        if card.upon and card.upon not in before:
            with pytest.raises(RequestError, match=f"{card.name} .* before it"):
                card.predict_training(shape, config)
            with pytest.raises(RequestError, match=f"{card.name} .* before it"):
                gradients(model, pair)
            return
        shape = card.predict_training(shape, config)
        before.append(card.name)
    found = gradients(model, pair)
    tolerance = 0.3 if ROUGH & set(before) else 1e-4
    for name, gradient in plain().items():
        assert (found[name] - gradient).norm() <= tolerance * gradient.norm() + 1e-5, name
    assert all("forward" not in vars(module) for module in model.modules())
