"""IA³ and BitFit: against the paper's equations, what is trained, PEFT's files both ways, merging, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.forward import SCALE_IN, SCALE_OUT
from hayless.core.registry import configure, method_of
from hayless.methods.adapters.ia3 import reference
from hayless.methods.adapters.ia3.transform import Ia3, _scale_inputs, _scale_outputs
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted

DENSE = [name for name in tiny.NAMES if not tiny.config(name).to_dict().get("num_experts_per_tok")]
BIASED = ("gpt2", "opt", "gpt_neox", "bert")


def ia3_of(name: str) -> Any:
    return configure("ia3") if name in DENSE else configure("ia3", outputs=("k", "v"))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_ia3_is_as_predicted_changes_nothing_at_first_and_trains_alone(name: str) -> None:
    model = tiny.model(name)
    before, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    config = ia3_of(name)
    (change,) = apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    assert torch.equal(logits(model), before) and change.figures["trainable"] == ledger.trainable
    losses(model, steps=2)
    assert all(bool((p != 1).any()) for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in weights.items())
    method_of(config).load().remove(model, config)
    assert torch.equal(logits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("of_inputs", [False, True])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaling_is_the_papers(of_inputs: bool, conv: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = (Conv1D(5, 7) if conv else nn.Linear(7, 5)).to(dtype)
    nn.init.normal_(module.bias)
    vector = nn.Parameter(torch.randn(7 if of_inputs else 5))
    module.register_parameter(SCALE_IN if of_inputs else SCALE_OUT, vector)
    if of_inputs:
        module.register_forward_pre_hook(_scale_inputs)
    else:
        module.register_forward_hook(_scale_outputs)
    x = torch.randn(3, 7, dtype=dtype, requires_grad=True)
    weight = (module.weight.T if conv else module.weight).detach().double()
    plain_x, plain = x.detach().double().requires_grad_(), vector.detach().double().requires_grad_()
    formula = reference.scaled_input if of_inputs else reference.scaled_output
    expected = formula(plain_x, weight, module.bias.detach().double(), plain)
    found = module(x)
    assert found.dtype == dtype
    towards = torch.randn(3, 5)
    found.backward(towards.to(dtype))
    expected.backward(towards.double())
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 4e-2, "atol": 6e-2}
    for ours, theirs in ((found, expected), (x.grad, plain_x.grad), (vector.grad, plain.grad)):
        torch.testing.assert_close(ours.double(), theirs, **close)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "t5"])
def test_peft_reads_ours_and_we_read_pefts(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    config = ia3_of(name)
    apply(model, [config])
    losses(model, steps=3)
    save_model(tiny.model(name), tmp_path / "base")
    save_model(model, tmp_path / "ours", base=tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(tiny.model(name), tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.equal(theirs(**batch(model)).logits, logits(model))
    theirs.save_pretrained(tmp_path / "theirs")
    read = Ia3.read(json.loads((tmp_path / "theirs" / "adapter_config.json").read_text()))
    again = tiny.model(name)
    Ia3.restore(again, read)
    Ia3.load(again, read, load_file(tmp_path / "theirs" / "adapter_model.safetensors"))
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(load_model(tmp_path / "ours")), logits(model))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_merged_is_unmerged(name: str) -> None:
    model = tiny.model(name)
    config = ia3_of(name)
    apply(model, [config])
    losses(model, steps=3)
    before = logits(model)
    Ia3.merge(model, config)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_ia3_refuses() -> None:
    model = tiny.model("llama")
    with pytest.raises(RequestError, match="both"):
        apply(model, [configure("ia3", outputs="down", inputs="down")])
    with pytest.raises(NotSupported, match="experts"):
        apply(tiny.model("mixtral"), [configure("ia3")])
    apply(model, [configure("kmeans"), configure("ia3")])
    with pytest.raises(NotSupported, match="packed"):
        Ia3.merge(model, configure("ia3"))
    with pytest.raises(RequestError, match="adapter already"):
        Ia3.restore(model, configure("ia3"))
    with pytest.raises(NotSupported, match="modules_to_save"):
        Ia3.read({"peft_type": "IA3", "target_modules": ["q"], "feedforward_modules": [], "modules_to_save": ["x"]})
    with pytest.raises(FileDamaged, match="feedforward_modules"):
        Ia3.read({"peft_type": "IA3", "target_modules": ["q"]})


@pytest.mark.parametrize("name", BIASED)
def test_bitfit_trains_the_biases_and_nothing_else(name: str) -> None:
    model = tiny.model(name)
    before, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    (change,) = apply(model, [configure("bitfit")])
    ledger = predicted(model, [configure("bitfit")])
    check_held(model, ledger)
    assert change.figures["trainable"] == ledger.trainable and torch.equal(logits(model), before)
    losses(model, steps=3)
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, weights[key])}
    assert moved and all(key.endswith("bias") for key in moved)


def test_a_model_without_biases_is_refused_and_one_with_comes_back(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="no biases"):
        apply(tiny.model("llama"), [configure("bitfit")])
    model = tiny.model("gpt2")
    apply(model, [configure("bitfit")])
    losses(model, steps=2)
    save_model(model, tmp_path / "model")
    back = load_model(tmp_path / "model")
    assert torch.equal(logits(back), logits(model))
    assert {n for n, p in back.named_parameters() if p.requires_grad} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
