"""Replacing modules by path, and undoing it exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hayless.core.errors import RequestError
from hayless.model.surgery import get, replace, replaced
from tests import tiny

PATHS = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp", "model.embed_tokens")


def picture(model: nn.Module) -> list[tuple[str, int, bool, int]]:
    """Everything that must be as before: which objects stand where, in which order, mode, and with how many hooks."""
    return [(path, id(part), part.training, len(part._forward_hooks)) for path, part in model.named_modules()]


@torch.no_grad()
def test_undone_exactly() -> None:
    model = tiny.model("llama")
    model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda *_: None)
    model.model.layers[1].mlp.train()
    ids = torch.tensor([[3, 4, 5]])
    before, logits = picture(model), model(ids).logits
    with replaced(model, {PATHS[0]: nn.Linear(32, 32), PATHS[1]: nn.Identity(), PATHS[2]: nn.Embedding(96, 32)}):
        assert picture(model) != before
        assert not torch.equal(model(ids).logits, logits)
        get(model, PATHS[1]).train()
    assert picture(model) == before
    assert torch.equal(model(ids).logits, logits)


def test_undone_after_an_error() -> None:
    model = tiny.model("llama")
    before = picture(model)
    with pytest.raises(ZeroDivisionError), replaced(model, {PATHS[1]: nn.Identity()}):
        raise ZeroDivisionError
    with (
        pytest.raises(RequestError, match=r"no module 'model\.norn'.*\n.*Did you mean 'model\.norm'"),
        replaced(model, {PATHS[1]: nn.Identity(), "model.norn": nn.Identity()}),
    ):
        raise AssertionError("never reached")
    assert picture(model) == before


def test_a_path_inside_a_replacement() -> None:
    model = tiny.model("llama")
    before = picture(model)
    inner, outer = nn.Linear(32, 48), nn.ModuleDict({"up_proj": nn.Linear(32, 48)})
    original = outer["up_proj"]
    with replaced(model, {f"{PATHS[1]}.up_proj": inner, PATHS[1]: outer}):
        assert get(model, f"{PATHS[1]}.up_proj") is inner
    assert picture(model) == before and outer["up_proj"] is original


def test_replace_keeps_place_and_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    old, new = model[1], nn.Tanh()
    assert replace(model, "1", new) is old
    assert list(model) == [model[0], new, model[2]] and not new.training
    with pytest.raises(RequestError, match="model itself"):
        replace(model, "", nn.Identity())
