"""On a CUDA device: gradients that go at once by the allocator, pages that really cross, 8 bits as on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hayless.core.registry import configure, method_of
from hayless.kernels.adalomo_sizes import scratch_bytes
from hayless.kernels.adamw import moved_alone
from hayless.methods.memory.paged import optimizer as paged_optimizer
from hayless.train.precision import trainables
from hayless.train.update import make_updater
from tests.train import source

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WIDTH, LAYERS = 2**11, 8
MATRIX = WIDTH * WIDTH


def stack(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False, device="cuda", dtype=dtype) for _ in range(LAYERS)))


def moved(model: nn.Sequential, optimizer: str, clip_norm: float | None, steps: int = 3, **options) -> dict:
    """The weights after some updates; the model's hooks are gone."""
    move(model, optimizer, clip_norm, steps, **options)
    return source.weights(model)


def move(model: nn.Sequential, optimizer: str, clip_norm: float | None, steps: int, **options) -> None:
    updater = make_updater(model, "fp32", configure(optimizer, **options))
    torch.manual_seed(1)
    for _ in range(steps):
        x = torch.randn(4, WIDTH, device="cuda")
        updater.begin(1.0, clip_norm)
        updater.backward(model(x).square().mean())
        assert updater.step(updater.norm())
    updater.close()


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_lomo_moves_as_sgd_does(clip_norm, exact_float32):
    ours, sgd = (moved(stack(), name, clip_norm, learning_rate=0.1) for name in ("lomo", "sgd"))
    for name, weight in sgd.items():
        # SGD's kernel for many tensors may contract a product and a sum.
        torch.testing.assert_close(ours[name], weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("optimizer", ["lomo", "adalomo"])
def test_one_gradient_exists_at_a_time(optimizer, clip_norm):
    model = stack()
    move(model, optimizer, clip_norm, steps=1)  # cuBLAS's workspace
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    move(model, optimizer, clip_norm, steps=1)
    scratch = scratch_bytes((WIDTH, WIDTH), "cuda") if optimizer == "adalomo" else 0
    # A gradient, sums of its squares, and activations of four rows; eight gradients would be 128 MiB.
    assert torch.cuda.max_memory_allocated() - before <= 4 * MATRIX + scratch + 2**21


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adamw_moves_as_torch_does_and_goes_on_from_a_state(dtype):
    """Matrices that have a kernel of their own, and gains that have none; clipped, and begun anew after two updates."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH, bias=False), nn.RMSNorm(WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)]
    model, other = (nn.Sequential(*copy.deepcopy(layers)).to("cuda", dtype) for _ in range(2))
    assert [moved_alone(weight) for weight in model.parameters()] == [True, False, True]
    options = {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    config = configure("adamw", learning_rate=1e-2, decay="all", **options)
    updater = make_updater(model, "bf16" if dtype is torch.bfloat16 else "fp32", config)
    wanted = torch.optim.AdamW(other.parameters(), lr=1e-2, fused=True, **options)
    for number in range(4):
        gradients = [torch.randn_like(weight) for weight in other.parameters()]
        norm = torch.cat([gradient.float().flatten() for gradient in gradients]).norm()
        for weight, same, gradient in zip(model.parameters(), other.parameters(), gradients, strict=True):
            weight.grad, same.grad = gradient.clone(), (gradient.float() * (1.5 / norm)).to(dtype)
        updater.begin(1.0, 1.5)
        assert updater.step(updater.norm())
        wanted.step()
        if number == 1:
            state = updater.optimizer_state()
            updater = make_updater(model, "bf16" if dtype is torch.bfloat16 else "fp32", config)
            updater.load_optimizer_state(*state)
    assert {name.rpartition("/")[2] for name in updater.optimizer_state()[0]} == {"step", "exp_avg", "exp_avg_sq"}
    # Weights of 16 bits, and moments that round an update of 1e-2 to as many.
    narrow = {"rtol": 2e-2, "atol": 1e-3}
    for weight, same in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, same, **narrow if dtype is torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6})


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_paged_has_adamws_bits_and_its_moments_lie_on_the_host(monkeypatch, share, exact_float32):
    """Five pages a matrix, the last one short, so that buffers are used again and again."""
    monkeypatch.setattr(paged_optimizer, "PAGE_ELEMENTS", MATRIX // 4 - 64)
    wanted = moved(stack(), "adamw", 1.0)
    model = stack()
    updater = make_updater(model, "fp32", configure("paged", device_share=share))
    torch.manual_seed(1)
    for _ in range(3):
        updater.begin(1.0, 1.0)
        updater.backward(model(torch.randn(4, WIDTH, device="cuda")).square().mean())
        updater.step(updater.norm())
    assert source.same(wanted, source.weights(model))
    state, numbers = updater.optimizer_state()
    for name, tensor in state.items():
        paged = name.endswith("_paged")
        assert tensor.is_cuda != paged and (not paged or not tensor.numel() or tensor.is_pinned())
    held = sum(tensor.nbytes for tensor in state.values() if tensor.is_cuda)
    assert held == pytest.approx(share * 8 * MATRIX * LAYERS, rel=1e-3, abs=1e3)
    again = make_updater(model, "fp32", configure("paged", device_share=share))
    again.load_optimizer_state({name: tensor.cpu() for name, tensor in state.items()}, numbers)
    for name, tensor in again.optimizer_state()[0].items():
        assert torch.equal(tensor, state[name]) and tensor.device == state[name].device


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adalomo_moves_as_on_the_cpu(dtype):
    """A matrix, a stack of three and a vector, by kernels and plainly."""
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in ((300, 700), (3, 40, 50), (70,)))
        gradients = [[torch.randn_like(weight).to(dtype) for weight in model] for _ in range(3)]
        model = model.to(device, dtype)
        optimizer = method_of(configure("adalomo")).load().build(configure("adalomo"), trainables(model))
        for each in gradients:
            for weight, gradient in zip(model, each, strict=True):
                weight.grad = gradient.to(device)
            optimizer.step()
        found.append([weight.detach().cpu() for weight in model])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-5)


def test_eight_bits_are_those_of_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        layer = nn.Linear(300, 70)
        gradients = [torch.randn(70, 300) for _ in range(3)]
        layer = layer.to(device)
        updater = make_updater(layer, "fp32", configure("adamw8bit"))
        for gradient in gradients:
            updater.begin(1.0, None)
            layer.weight.grad = gradient.to(device)
            updater.step(updater.norm())
        found.append((layer.weight.detach().cpu(), updater.optimizer_state()[0]["weight/first"].cpu().int()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-5)
    # A quotient between two values may fall to either side.
    assert (found[0][1] - found[1][1]).abs().max() <= 1 and (found[0][1] != found[1][1]).float().mean() < 1e-3
