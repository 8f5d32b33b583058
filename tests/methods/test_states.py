"""Optimizers with small states, or with states elsewhere, against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hayless.core.cost import TrainShape
from hayless.core.errors import NotSupported
from hayless.core.registry import configure, method_of
from hayless.kernels.blockwise import dequantize, dynamic_map, quantize
from hayless.methods.common.decay import decay_groups
from hayless.methods.memory.paged import optimizer as paged_optimizer
from hayless.methods.memory.paged.predict import resident_elements, scratch_bytes, state_bytes
from hayless.methods.optimizers.adamw8bit import optimizer as adamw8bit_optimizer
from hayless.methods.optimizers.adamw8bit.reference import adamw8bit, rounded
from hayless.methods.optimizers.standard import AdamW, KernelAdamW
from hayless.train.precision import trainables
from hayless.train.update import make_updater
from tests import tiny
from tests.train import source


def build(config, model):
    return method_of(config).load().build(config, trainables(model))


class TestDynamicMap:
    def test_the_256_values(self):
        """Ends, zero, decades and symmetry; the values are those of torchao 0.18, which are bitsandbytes'."""
        signed, unsigned = dynamic_map(True), dynamic_map(False)
        assert len(signed) == len(unsigned) == len(signed.unique()) == len(unsigned.unique()) == 256
        assert signed[127] == 0 == unsigned[0] and signed[-1] == unsigned[-1] == 1
        assert torch.equal(signed[:127], -signed[128:-1].flip(0))
        assert ((signed > 0.1) & (signed < 1)).sum() == 64 and ((unsigned > 0.1) & (unsigned < 1)).sum() == 128
        assert signed[128] == pytest.approx(5.5e-7) and unsigned[1] == pytest.approx(3.25e-7)

    @pytest.mark.parametrize("signed", [True, False])
    @pytest.mark.parametrize("elements", [1, 16, 50])
    def test_the_nearest_value_of_each_block(self, signed, elements):
        torch.manual_seed(0)
        values = torch.randn(elements) ** 3
        values = values if signed else values.abs()
        values[: elements // 3] = 0
        codes, scales = quantize(values, signed, 16)
        assert codes.dtype == torch.uint8 and codes.shape == values.shape and len(scales) == -(-elements // 16)
        found = dequantize(codes, scales, signed, 16)
        assert torch.equal(found, rounded(values, signed, 16))
        assert torch.equal(quantize(found, signed, 16)[0], codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw8bit_by_hand(monkeypatch, dtype):
    """Three updates of 50 elements in blocks of 16 and parts of two blocks; 10 elements keep float32 moments."""
    monkeypatch.setattr(adamw8bit_optimizer, "CHUNK_ELEMENTS", 32)
    torch.manual_seed(0)
    layer = nn.Linear(5, 10).to(dtype)
    options = {"learning_rate": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
    config = configure("adamw8bit", block_size=16, least_elements=20, **options)
    optimizer, plain = build(config, layer), nn.Linear(5, 10)
    plain.load_state_dict(layer.state_dict())
    small = build(configure("adamw", **options), plain)
    weight = layer.weight.detach().float().flatten().clone()
    first = second = torch.zeros_like(weight)
    for step in (1, 2, 3):
        layer.weight.grad, layer.bias.grad = torch.randn_like(layer.weight), torch.randn_like(layer.bias)
        plain.bias.grad = layer.bias.grad.float()
        optimizer.step()
        small.step()
        gradient = layer.weight.grad.float().flatten()
        weight, first, second = adamw8bit(weight, gradient, first, second, step, block=16, **options)
        weight = weight.to(dtype).float()
        torch.testing.assert_close(layer.weight.detach().float().flatten(), weight, rtol=1e-2, atol=1e-5)
    if dtype == torch.float32:
        torch.testing.assert_close(layer.bias, plain.bias)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "master"])
def test_adamw_of_gpus_has_torchs_bits_where_no_kernel_moves(monkeypatch, precision):
    """Clipped by the optimizer itself, and begun anew from a state after two updates."""

    def on_gpus(config, parameters):
        return KernelAdamW(decay_groups(parameters, config.weight_decay, config.decay), config)

    found, config = [], configure("adamw")
    for kernels in (False, True):
        if kernels:
            monkeypatch.setattr(AdamW, "build", on_gpus)
        model = tiny.model("llama")
        updater = make_updater(model, precision, config)
        torch.manual_seed(0)
        for number in range(4):
            updater.begin(1.0, 1.0)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            updater.step(updater.norm())
            if number == 1:
                weights, state = updater.weights(), updater.optimizer_state()
                updater = make_updater(model, precision, config)
                updater.load_weights(weights)
                updater.load_optimizer_state(*state)
        found.append((updater.weights(), updater.optimizer_state()[0]))
    assert source.same(found[0][0], found[1][0]) and source.same(found[0][1], found[1][1])


@pytest.mark.parametrize(("share", "precision"), [(0.0, "fp32"), (0.4, "bf16"), (0.4, "master"), (1.0, "fp32")])
def test_paged_has_adamws_bits(monkeypatch, share, precision):
    monkeypatch.setattr(paged_optimizer, "PAGE_ELEMENTS", 256)
    found = []
    for config in (configure("adamw"), configure("paged", device_share=share)):
        model = tiny.model("llama")
        updater = make_updater(model, precision, config)
        torch.manual_seed(0)
        for _ in range(3):
            updater.begin(1.0, 1.0)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            updater.step(updater.norm())
        found.append(updater.weights())
    assert source.same(*found)
    state, _ = updater.optimizer_state()
    whole = {name: tensor.numel() for name, tensor in updater.weights().items()}
    for name, elements in whole.items():
        resident = len(state[f"{name}/exp_avg"])
        assert resident == resident_elements(elements, share)
        assert resident + len(state[f"{name}/exp_avg_paged"]) == elements


def test_small_parameters_share_a_page_and_those_without_a_gradient_stay(monkeypatch):
    monkeypatch.setattr(paged_optimizer, "PAGE_ELEMENTS", 256)
    torch.manual_seed(0)
    start = [torch.randn(size) for size in (3, 70, 100, 1000, 5, 300)]
    gradients = [
        [torch.randn_like(weight) if place != left else None for place, weight in enumerate(start)] for left in (1, 3)
    ]
    found = []
    for name in ("adamw", "paged"):
        model = nn.ParameterList(nn.Parameter(weight.clone()) for weight in start)
        optimizer = build(configure(name), model)
        for each in gradients:
            for weight, gradient in zip(model, each, strict=True):
                weight.grad = gradient
            optimizer.step()
        found.append([weight.detach() for weight in model])
    assert all(map(torch.equal, *found))
    moments = {optimizer.state[weight]["exp_avg_paged"].untyped_storage().data_ptr() for weight in model}
    assert len(moments) == 5, "the first two fill a page"


def test_what_paging_is_predicted_to_take():
    assert state_bytes((1000, 1000), "bfloat16", 0.5) == 4 * (500_000 // 64 * 64) + 4
    assert state_bytes((10,), "float32", 1.0) == 84 and scratch_bytes((10,), "float32", 1.0) == 0
    assert scratch_bytes((2**23,), "float32", 0.0) == 2 * 4 * 2**23 == scratch_bytes((2**25,), "float32", 0.5)
    assert scratch_bytes((2**22 + 10,), "float32", 0.0) == 2 * 4 * (2**22 + 10)


@pytest.mark.parametrize("name", ["adalomo", "adamw8bit", "adafactor", "lomo"])
@pytest.mark.parametrize("shape", [(64, 128), (8192,)])
def test_an_update_launches_what_is_predicted(name, shape):
    """Of plain PyTorch; the second update, since the first makes the state."""
    model = nn.ParameterList([nn.Parameter(torch.randn(shape, dtype=torch.bfloat16))])
    optimizer = build(configure(name), model)
    for _ in range(2):
        model[0].grad = torch.randn_like(model[0])
        with Launches() as counted:
            optimizer.step()
    predicted = method_of(configure(name)).predict_training(
        TrainShape(1, 1, clips=False, device="cpu"), configure(name)
    )
    # Fused optimizers copy a gradient that is to stay.
    copies = int(predicted.fused)
    assert counted.number - copies == pytest.approx(predicted.move_launches(shape), rel=0.1)


class Launches(TorchDispatchMode):
    """Counts operations that make or change something."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        views = any(found.alias_info and not found.alias_info.is_write for found in function._schema.returns)
        self.number += not views and function.namespace == "aten"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["paged", "adamw8bit"])
def test_tensors_that_are_not_contiguous_are_refused(name):
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(4, 3).t())
    with pytest.raises(NotSupported, match="weight is not contiguous"):
        build(configure(name), model)
