"""Bottlenecks: against the papers' equations, what is trained, their files, where they go, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.registry import configure, method_of
from hayless.methods.adapters.bottleneck import layer, reference
from hayless.methods.adapters.bottleneck.config import BottleneckConfig
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import check_held, logits, losses, predicted

DENSE = [name for name in tiny.NAMES if not tiny.config(name).to_dict().get("num_experts_per_tok")]


@pytest.mark.parametrize("form", ["serial", "parallel"])
@pytest.mark.parametrize("name", DENSE)
def test_it_is_as_predicted_trains_alone_and_comes_off(name: str, form: str) -> None:
    model = tiny.model(name)
    before, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    config = configure("bottleneck", width=5, form=form, initial="zero")
    (change,) = apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    assert torch.equal(logits(model), before) and change.figures["trainable"] == ledger.trainable
    losses(model, steps=2)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    assert all(parameter.abs().sum() > 0 for parameter in model.parameters() if parameter.requires_grad)
    other = copy.deepcopy(model)
    after = logits(model)
    losses(other)
    assert torch.equal(logits(model), after) and not torch.equal(logits(other), after)
    method_of(config).load().remove(model, config)
    assert torch.equal(logits(model), before) and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("form", ["serial", "parallel"])
def test_the_network_is_the_papers(form: Any, activation: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first, last = nn.Linear(6, 9).to(dtype), nn.Linear(9, 6).to(dtype)
    config = BottleneckConfig(width=4, form=form, activation=activation, scaling=1.5)
    layer.attach(last, first, 6, config)
    network: Any = getattr(last, config.kind)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 6, dtype=dtype, requires_grad=True)
    found = last(first(x).tanh())
    towards = torch.randn(2, 3, 6)
    found.backward(towards.to(dtype))
    plain = copy.deepcopy([first, last, network])
    for module in plain:
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module.double()
    wide_x, (one, two, own) = x.detach().double().requires_grad_(), plain
    h = two(one(wide_x).tanh())
    f = F.gelu if activation == "gelu" else F.relu
    down, up = (own.down.weight, own.down.bias), (own.up.weight, own.up.bias)
    expected = h + reference.bottleneck(h if form == "serial" else wide_x, down, up, f, 1.5)
    for parameter in own.parameters():
        parameter.grad = None
    expected.backward(towards.double())
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 5e-2, "atol": 0.15}
    torch.testing.assert_close(found.double(), expected, **close)
    torch.testing.assert_close(x.grad.double(), wide_x.grad, **close)
    for ours, theirs in zip(network.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, **close)


def test_it_begins_near_the_identity_by_the_seed() -> None:
    model = tiny.model("llama")
    before = logits(model)
    apply(model, [configure("bottleneck", width=16)])
    network = model.model.layers[0].mlp.down_proj.serial_gelu
    assert network.up.weight.abs().max() <= 0.02 and network.up.weight.std().item() == pytest.approx(0.0088, rel=0.1)
    assert not torch.equal(logits(model), before)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-3)


def test_where_they_go() -> None:
    def places(name: str, **options: Any) -> set[str]:
        (change,) = apply(tiny.model(name), [configure("bottleneck", width=8, **options)])
        return {path.rpartition(".")[2] for path in change.changed}

    assert places("llama") == {"o_proj", "down_proj"}
    assert places("llama", sublayers="feed_forward") == {"down_proj"}
    assert places("mixtral", sublayers="attention", form="parallel") == {"o_proj"}
    assert places("t5", sublayers="attention") == {"o"}


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_files_come_back_and_peft_refuses_them(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    config = configure("bottleneck", width=8, form="parallel", scaling=2.0)
    apply(model, [config])
    losses(model, steps=2)
    save_model(tiny.model(name), tmp_path / "base")
    save_model(model, tmp_path / "ours", base=tmp_path / "base")
    assert (tmp_path / "ours/adapter_model.safetensors").stat().st_size == predicted(model, [config]).file_bytes()[
        "adapter"
    ]
    assert torch.equal(logits(load_model(tmp_path / "ours")), logits(model))
    with pytest.raises((KeyError, ValueError, TypeError), match="BOTTLENECK"):
        peft.PeftModel.from_pretrained(tiny.model(name), tmp_path / "ours")


def test_what_is_refused() -> None:
    with pytest.raises(NotSupported, match="sublayers: attention"):
        apply(tiny.model("mixtral"), [configure("bottleneck")])
    with pytest.raises(RequestError, match="1 to 31"):
        apply(tiny.model("llama"), [configure("bottleneck", width=32)])
    model, config = tiny.model("llama"), configure("bottleneck", width=8)
    part = method_of(config).load()
    apply(model, [configure("kmeans"), config])
    losses(model)
    with pytest.raises(NotSupported, match="cannot be merged"):
        part.merge(model, config)
    with pytest.raises(RequestError, match="adapter already"):
        part.restore(model, config)
    with pytest.raises(FileDamaged, match="activation"):
        part.read({"peft_type": "BOTTLENECK"})
    with pytest.raises(NotSupported, match="a_field_of_tomorrow"):
        part.read(part.export(model, config).config | {"a_field_of_tomorrow": 1})
