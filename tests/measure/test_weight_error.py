"""Errors of changed weights are value − changed value, tensor by tensor and together."""

from __future__ import annotations

import pytest
import torch

from hayless.core.errors import NotSupported
from hayless.core.registry import configure
from hayless.measure.weight_error import draw, together, weight_errors
from tests import tiny


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
@pytest.mark.parametrize("method", ["int8", "magnitude"])
def test_they_are_those_of_the_tensors(name: str, method: str) -> None:
    plain, model = tiny.model(name), tiny.model(name)
    errors = weight_errors(model, [configure(method, targets=("blocks", "router") if name == "mixtral" else "blocks")])
    values = dict(plain.named_parameters())
    for each in errors:
        owner, _, own = each.name.rpartition(".")
        changed = getattr(model.get_submodule(owner), own).detach()
        error = (values[each.name].detach() - changed).double()
        assert each.elements == error.numel() and f".{each.layer}." in each.name
        assert each.mean == pytest.approx(float(error.mean()), abs=1e-12)
        assert each.rms == pytest.approx(float(error.square().mean().sqrt())) and each.rms > 0
        assert each.largest == pytest.approx(float(error.abs().max()))
        assert each.relative == pytest.approx(float(error.norm() / values[each.name].detach().double().norm()))
    assert len(errors) == {"gpt2": 8, "mixtral": 14}[name]
    whole = together(errors, "all")
    everything = torch.cat([values[each.name].detach().flatten() for each in errors]).double()
    squares = sum(each.elements * each.rms**2 for each in errors)
    assert whole.elements == len(everything) and whole.largest == max(each.largest for each in errors)
    assert whole.relative == pytest.approx((squares / float(everything.square().sum())) ** 0.5)
    assert draw(errors, "title", "png").startswith(b"\x89PNG")


def test_what_changes_no_values_is_refused() -> None:
    with pytest.raises(NotSupported, match="lora changes no values"):
        weight_errors(tiny.model("llama"), [configure("lora")])
