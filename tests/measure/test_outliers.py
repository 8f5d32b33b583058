"""Outliers are counted as a plain run of the model shows them."""

from __future__ import annotations

import pytest
import torch

from hayless.core.errors import NotSupported
from hayless.core.registry import configure
from hayless.measure.outliers import draw, find_outliers, inputs_of
from hayless.model.transform import apply
from tests import tiny

DOCUMENTS = [torch.arange(3, 40), torch.arange(50, 90), torch.tensor([7])]


def _loud(name: str) -> torch.nn.Module:
    """A model whose second layer is given large numbers in two columns."""
    model = tiny.model(name)
    norm = model.model.layers[1].input_layernorm if name != "gpt2" else model.transformer.h[1].ln_1
    with torch.no_grad():
        norm.weight[5], norm.weight[20] = 9.0, -40.0
    return model


@pytest.mark.parametrize("context", [16, 64])
def test_they_are_those_of_the_inputs(context: int) -> None:
    model = _loud("llama")
    inputs: list[torch.Tensor] = []
    q_proj = model.model.layers[1].self_attn.q_proj
    handle = q_proj.register_forward_pre_hook(lambda module, given: inputs.append(given[0][0].detach()))
    windows = [window for document in DOCUMENTS for window in document.split(context)]
    with torch.no_grad():
        for window in windows:
            model(input_ids=window[None])
    handle.remove()
    out = [x.abs() >= 6 for x in inputs]
    found = find_outliers(model.train(), DOCUMENTS, context=context)
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())
    assert (found.tokens, found.context, found.layers, found.skipped) == (78, context, 2, ())
    by_name = {each.module: each for each in found.modules}
    loud = by_name["model.layers.1.self_attn.q_proj"]
    assert loud.columns == int(torch.cat(out).any(dim=0).sum()) >= 1 and (loud.width, loud.layer) == (32, 1)
    assert loud.columns_a_window == pytest.approx(sum(int(each.any(dim=0).sum()) for each in out) / len(windows))
    assert loud.tokens_with == sum(int(each.any(dim=1).sum()) for each in out)
    assert loud.largest == pytest.approx(max(float(x.abs().max()) for x in inputs))
    assert found.layers_with == 1 and found.tokens_with == loud.tokens_with
    assert list(inputs_of(found)) == ["q, k, v", "o", "gate, up", "down"]
    assert not find_outliers(model, DOCUMENTS, context=context, threshold=1e6).layers_with


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_packed_models_and_experts(name: str) -> None:
    model = _loud(name)
    before = find_outliers(model, DOCUMENTS, context=64)
    apply(model, [configure("int8")])
    after = find_outliers(model, DOCUMENTS, context=64)
    assert before.layers_with == after.layers_with == 1
    assert len(before.skipped) == (4 if name == "mixtral" else 0)
    for form, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        picture = draw(after, form)  # type: ignore[arg-type]
        assert picture.startswith(start) and picture == draw(after, form)  # type: ignore[arg-type]


def test_other_models_are_refused() -> None:
    with pytest.raises(NotSupported, match="decoders"):
        find_outliers(tiny.model("bert"), DOCUMENTS, context=64)
