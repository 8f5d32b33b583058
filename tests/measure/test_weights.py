"""The table of weights counts every tensor once and knows its figures."""

from __future__ import annotations

import pytest
import torch

from hayless.core.registry import configure
from hayless.measure.weights import inspect_weights
from hayless.model.transform import apply
from tests import tiny


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_parameter_is_explained_and_as_predicted(name):
    model = tiny.model(name)
    found = inspect_weights(model)
    assert found.unexplained == ()
    assert sum(row.elements for row in found.roles) == sum(parameter.numel() for parameter in model.parameters())
    for row in found.roles:
        assert (row.elements, row.bytes) == (row.predicted_elements, row.predicted_bytes), row.role


def test_figures_are_those_of_the_tensors():
    model = tiny.model("llama").to(torch.bfloat16)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight[:12] = 0
        model.model.layers[1].mlp.up_proj.weight[20, 3] = -7.5
        model.model.layers[0].mlp.up_proj.weight[20, 4] = torch.nan
    (row,) = [row for row in inspect_weights(model).roles if row.role == "up"]
    values = torch.stack([layer.mlp.up_proj.weight for layer in model.model.layers]).detach().double()
    values = values[values.isfinite()]
    assert row.mean == pytest.approx(float(values.mean()), rel=1e-6)
    assert row.std == pytest.approx(float(values.std(correction=0)), rel=1e-6)
    assert row.largest == 7.5 and row.not_finite == 1
    assert row.zeros == pytest.approx(float((values == 0).double().mean()))
    assert row.bytes == row.predicted_bytes == 2 * 2 * 48 * 32


def test_a_tensor_nobody_predicted_is_named():
    model = tiny.model("llama")
    model.model.layers[0].register_buffer("extra", torch.ones(3))
    assert inspect_weights(model).unexplained == ("model.layers.0.extra",)


def test_a_missing_tensor_shows_in_its_role():
    model = tiny.model("llama")
    model.model.layers[0].mlp.gate_proj = torch.nn.Identity()
    (row,) = [row for row in inspect_weights(model).roles if row.role == "gate"]
    assert row.elements * 2 == row.predicted_elements and row.bytes * 2 == row.predicted_bytes


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
@pytest.mark.parametrize("methods", [["kmeans"], ["magnitude"], ["lora"], ["magnitude", "kmeans", "lora"]])
def test_what_methods_change_is_predicted_and_still_read(name, methods):
    model = tiny.model(name)
    apply(model, [configure(method) for method in methods])
    found = inspect_weights(model)
    assert found.unexplained == ()
    for row in found.roles:
        assert (row.elements, row.bytes) == (row.predicted_elements, row.predicted_bytes), row.role
        assert (row.mean is not None) == (row.elements > 0), "packed weights are looked up; a tied head has none"
    if methods[0] == "magnitude":
        (up,) = [row for row in found.roles if row.role == "up"]
        assert up.zeros > 0.3, "half of each matrix is zero, packed or not"
