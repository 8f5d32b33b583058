"""AdamW and SGD: options checked, decay only where it belongs, steps against the formulas."""

import pytest
import torch

from hayless.core.errors import RequestError
from hayless.core.registry import configure, method_of
from hayless.train.precision import trainables
from hayless.train.slots import Kind
from tests import tiny


def build(config, model):
    return method_of(config).load().build(config, trainables(model))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_what_decays(name, decay):
    model = tiny.model("gpt2")
    optimizer = build(configure(name, weight_decay=0.3, decay=decay), model)
    decayed = {p for group in optimizer.param_groups if group["weight_decay"] == 0.3 for p in group["params"]}
    wanted = {item.tensor for item in trainables(model) if decay == "all" or item.kind is Kind.MATRIX}
    assert decayed == wanted
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_a_model_of_vectors_alone_has_one_group():
    model = tiny.model("llama").requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    assert len(build(configure("adamw"), model).param_groups) == 1


def test_adamw_by_hand():
    """Algorithm 2 of Loshchilov and Hutter, three steps in float64."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(3, 2, bias=False).double()
    weight = layer.weight.detach().clone()
    config = configure("adamw", learning_rate=0.1, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2)
    optimizer = build(config, layer)
    first = second = torch.zeros_like(weight)
    for step in (1, 2, 3):
        gradient = torch.randn_like(weight)
        layer.weight.grad = gradient
        optimizer.step()
        first = 0.8 * first + 0.2 * gradient
        second = 0.9 * second + 0.1 * gradient**2
        corrected = (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-3)
        weight = weight - 0.1 * (corrected + 0.2 * weight)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_by_hand(nesterov):
    layer = torch.nn.Linear(3, 2, bias=False).double()
    weight = layer.weight.detach().clone()
    config = configure("sgd", learning_rate=0.1, momentum=0.5, nesterov=nesterov, weight_decay=0.2)
    optimizer = build(config, layer)
    velocity = torch.zeros_like(weight)
    for _ in range(3):
        gradient = torch.randn_like(weight)
        layer.weight.grad = gradient.clone()
        optimizer.step()
        decayed = gradient + 0.2 * weight
        velocity = 0.5 * velocity + decayed
        weight = weight - 0.1 * (decayed + 0.5 * velocity if nesterov else velocity)
        torch.testing.assert_close(layer.weight.detach(), weight, rtol=1e-10, atol=1e-12)


def test_sgd_without_momentum_holds_nothing():
    model = tiny.model("llama")
    optimizer = build(configure("sgd"), model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not any(isinstance(value, torch.Tensor) for state in optimizer.state.values() for value in state.values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"learning_rate": 0}, "learning_rate"),
        ("adamw", {"learning_rate": float("nan")}, "learning_rate"),
        ("adamw", {"betas": (0.9, 1.0)}, "betas"),
        ("adamw", {"betas": (0.9,)}, "betas"),
        ("adamw", {"weight_decay": -1}, "weight_decay"),
        ("adamw", {"decay": "none"}, "decay"),
        ("adamw", {"lr": 1}, "has no option 'lr'"),
        ("sgd", {"momentum": 1.0}, "momentum"),
        ("sgd", {"nesterov": True}, "nesterov needs a momentum"),
    ],
)
def test_impossible_options(name, options, message):
    with pytest.raises(RequestError, match=message):
        configure(name, **options)
