"""Mixtures of LoRAs: against the equations, experts of stacks one by one, what is trained, files, merging, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.ledger import Layout, Row
from hayless.core.registry import configure, method_of
from hayless.core.roles import Role
from hayless.methods.adapters.lora_moe import layer, reference
from hayless.methods.common.sites import Target
from hayless.model.load import load_model
from hayless.model.routed import grouped
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted

STACKS = ("mixtral", "qwen3_moe")


def randomized(model: nn.Module) -> None:
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize("name", tiny.NAMES)
def test_it_is_as_predicted_without_effect_at_first_trains_alone_and_comes_off(name: str, top_k: int | None) -> None:
    model = tiny.model(name)
    before, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    config = configure("lora_moe", experts=3, rank=2, top_k=top_k)
    (change,) = apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)
    assert change.figures["trainable"] == ledger.trainable
    losses(model, steps=3)
    assert not torch.allclose(logits(model), before, atol=1e-3)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    other, after = copy.deepcopy(model), logits(model)
    losses(other)
    assert torch.equal(logits(model), after) and not torch.equal(logits(other), after)
    method_of(config).load().remove(model, config)
    assert torch.equal(logits(model), before) and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, 5])
def test_the_mixture_is_the_papers(top_k: int, conv: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module: Any = (Conv1D(7, 9) if conv else nn.Linear(9, 7)).to(dtype)
    row = Row(Role.Q, "q", "weight", (9, 7) if conv else (7, 9), "float32", Layout.CONV1D if conv else Layout.LINEAR)
    layer.attach(module, Target(row, ()), configure("lora_moe", experts=5, rank=3, alpha=6, top_k=top_k))
    module.requires_grad_(False)
    own = module.lora_moe
    for parameter in own.parameters():
        nn.init.normal_(parameter)
        parameter.requires_grad_(True)
    x = torch.randn(2, 4, 9, dtype=dtype, requires_grad=True)
    found = module(x)
    towards = torch.randn(2, 4, 7)
    found.backward(towards.to(dtype))
    same = [x, own.gate.weight, own.lora_A.weight, own.lora_B.weight]
    wide = [tensor.detach().to(dtype).double().requires_grad_() for tensor in same]
    w0, bias = module.weight.detach().double(), module.bias.detach().double()
    a, b = wide[2].unflatten(0, (5, 3)), wide[3].unflatten(1, (5, 3)).transpose(0, 1)
    expected = wide[0] @ (w0 if conv else w0.T) + bias + reference.mixture(wide[0], wide[1], a, b, 2.0, top_k)
    expected.backward(towards.double())
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 6e-2, "atol": 1.5}
    torch.testing.assert_close(found.double(), expected, **close)
    for ours, theirs in zip(same, wide, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, **close)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("name", STACKS)
def test_a_stack_computes_what_experts_with_their_sums_would(name: str, implementation: str) -> None:
    model = tiny.model(name)
    model.set_experts_implementation(implementation)
    config = configure("lora_moe", rank=3, targets=("gate_up", "down"))
    apply(model, [config])
    randomized(model)
    dense = tiny.model(name)
    dense.set_experts_implementation(implementation)
    for module, plain in zip(model.modules(), dense.modules(), strict=True):
        for part in ("gate_up", "down"):
            if hasattr(module, f"lora_{part}_A"):
                a, b = getattr(module, f"lora_{part}_A").detach(), getattr(module, f"lora_{part}_B").detach()
                getattr(plain, f"{part}_proj").data += 16 / 3 * b @ a
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-5)
    gradients = []
    for each in (model, dense):
        inputs = batch(each)
        each.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
        gradients.append(each)
    for module, plain in zip(model.modules(), dense.modules(), strict=True):
        if hasattr(module, "lora_down_A"):
            by_sum: torch.Tensor = 16 / 3 * plain.down_proj.grad @ module.lora_down_A.detach().mT
            torch.testing.assert_close(module.lora_down_B.grad, by_sum, rtol=1e-3, atol=1e-5)
    before = logits(model)
    method_of(config).load().merge(model, config)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == tiny.model(name).state_dict().keys()


def test_grouped_products_with_experts_that_nobody_chose() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(6, 5), torch.randn(4, 3, 5)
    found = grouped(x, weight, torch.tensor([0, 4, 4, 6], dtype=torch.int32))
    expected = torch.cat([x[:4] @ weight[1].T, x[4:] @ weight[3].T])
    torch.testing.assert_close(found, expected)
    assert grouped(x[:0], weight, torch.zeros(4, dtype=torch.int32)).shape == (0, 3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mixtral"])
def test_files_come_back_and_peft_refuses_them(name: str, tmp_path: Path) -> None:
    targets = ("o", "down") if name == "mixtral" else ("blocks",)
    model, config = tiny.model(name), configure("lora_moe", rank=3, top_k=2, targets=targets)
    apply(model, [config])
    losses(model, steps=2)
    save_model(tiny.model(name), tmp_path / "base")
    save_model(model, tmp_path / "ours", base=tmp_path / "base")
    assert (tmp_path / "ours/adapter_model.safetensors").stat().st_size == predicted(model, [config]).file_bytes()[
        "adapter"
    ]
    assert torch.equal(logits(load_model(tmp_path / "ours")), logits(model))
    with pytest.raises((KeyError, ValueError, TypeError), match="LORA_MOE"):
        peft.PeftModel.from_pretrained(tiny.model(name), tmp_path / "ours")


@pytest.mark.parametrize("packing", ["kmeans", "nf4"])
def test_packed_stacks_train_their_loras(packing: str) -> None:
    model = tiny.model("mixtral")
    configs = [configure(packing, targets="blocks"), configure("lora_moe", rank=2)]
    apply(model, configs[:1])
    before = logits(model)
    apply(model, configs[1:])
    check_held(model, predicted(model, configs))
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    losses(model, steps=3)
    assert all(p.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    part = method_of(configs[1]).load()
    part.remove(model, configs[1])
    assert torch.equal(logits(model), before)


def test_what_is_refused() -> None:
    with pytest.raises(RequestError, match="1 to 16"):
        apply(tiny.model("llama"), [configure("lora_moe", rank=17)])
    with pytest.raises(RequestError, match="top_k = 5"):
        configure("lora_moe", top_k=5)
    with pytest.raises(NotSupported, match="router"):
        apply(tiny.model("mixtral"), [configure("lora_moe", targets="router")])
    model, config = tiny.model("llama"), configure("lora_moe", rank=2)
    part = method_of(config).load()
    apply(model, [config])
    with pytest.raises(NotSupported, match="cannot be merged"):
        part.merge(model, config)
    with pytest.raises(RequestError, match="adapter already"):
        part.restore(model, config)
    with pytest.raises(FileDamaged, match="alpha"):
        part.read({"peft_type": "LORA_MOE"})
