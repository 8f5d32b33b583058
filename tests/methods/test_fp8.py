"""8-bit floats: codes and layers against their definition, structure against the prediction."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hayless.core.ledger import Layout
from hayless.core.registry import configure, method_of
from hayless.kernels import fp8
from hayless.methods.quantize.fp8 import reference
from hayless.methods.quantize.fp8.config import Fp8Config
from hayless.methods.quantize.fp8.form import Fp8Format
from hayless.methods.quantize.fp8.layer import Fp8, pack_fp8
from hayless.model.packing import install
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import check_held, logits, losses, predicted


def test_codes_are_the_nearest_numbers_of_e4m3() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 200) * torch.logspace(-5, 3, 200)
    x[0, :4] = torch.tensor([448.0, 17.0, 19.0, 2.0**-10])
    x[0, 4:], x[1] = 0.0, 0.0
    codes, scale = fp8.rows_quantized(x)
    assert torch.equal(scale[:2], torch.ones(2)) and not codes[1].float().any()
    # 17 and 19 lie between two numbers, and so does the last, between nothing and the least.
    assert codes[0, :4].float().tolist() == [448.0, 16.0, 20.0, 0.0]
    expected = reference.quantized(x.double())
    torch.testing.assert_close(codes.double() * scale.double()[:, None], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (3, 5, 7), (4, 70, 33)])
def test_layers_are_the_reference(dtype: torch.dtype, conv: bool, rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    module = (Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs)).to(dtype)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    weight = (module.weight.T if conv else module.weight).detach().double()
    packing = Fp8(Fp8Format(shape=tuple(module.weight.shape), layout=Layout.CONV1D if conv else Layout.LINEAR))
    install(module, "weight", packing, pack_fp8(weight[None], packing, Fp8Config()))
    x = (torch.randn(2, rows, inputs) * 30).to(dtype).requires_grad_()
    wide = x.detach().double().view(-1, inputs)
    expected = reference.linear(wide, weight, module.bias.double())
    found = module(x)
    assert found.dtype is dtype
    # Products of codes are exact; they are summed in float32, rounded once, scaled and rounded again.
    step = 2 * max(torch.finfo(dtype).eps, 1e-6)
    assert (found.double().view(-1, outputs) - expected).abs().max() <= step * expected.abs().max()
    towards = torch.randn_like(found)
    found.backward(towards)
    gradient = reference.gradient(towards.double().view(-1, outputs), weight).view_as(x)
    assert (x.grad.double() - gradient).abs().max() <= 4 * step * gradient.abs().max()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(bad: float) -> None:
    codes, scale = fp8.rows_quantized(torch.randn(4, 8))
    x = torch.ones(3, 8)
    x[1, 2] = bad
    found = fp8.product(x, codes, scale, None)
    assert not found[1].isfinite().any() and found[[0, 2]].isfinite().all()
    assert fp8.product(torch.zeros(0, 8), codes, scale, None).shape == (0, 4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "opt-350m", "bert", "t5-gated"])
def test_models_are_as_predicted_and_come_back(name: str) -> None:
    model = tiny.model(name)
    config = configure("fp8")
    before = logits(model)
    apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    assert (logits(model) - before).norm() < 0.1 * before.norm()
    other = tiny.model(name, seed=1)
    method_of(config).load().restore(other, config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


def test_codes_keep_their_dtype_and_the_rest_trains() -> None:
    model = tiny.model("mixtral")
    apply(model, [configure("fp8", targets=("blocks", "router", "embedding"))])
    found = losses(model, steps=6)
    assert found[-1] < found[0]
    layer = model.to(torch.bfloat16).model.layers[0]
    assert layer.self_attn.q_proj.weight_codes.dtype is torch.float8_e4m3fn
    assert layer.mlp.experts.gate_up_scale.dtype is torch.float32
    assert layer.mlp.experts.down_proj.dtype is torch.bfloat16
    embedding = model.get_input_embeddings()
    ids = torch.tensor([[0, 90], [3, 3]])
    assert torch.equal(embedding(ids), embedding.weight[ids]) and logits(model).isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("tokens", [1, 16, 300])
def test_the_kernel_of_the_device_is_the_plain_product(tokens: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(tokens, 512, device="cuda", dtype=torch.bfloat16)
    weight, weight_scale = fp8.rows_quantized(torch.randn(256, 512, device="cuda"))
    if not fp8.has_kernel(x, weight):
        pytest.skip("this GPU has no units for e4m3")
    bias = torch.randn(256, device="cuda", dtype=torch.bfloat16)
    codes, scale = fp8.rows_quantized(x)
    on_host = fp8.rows_quantized(x.cpu())[0].float()
    # Devices may divide to another last bit; what lies between two codes then goes to the other.
    torch.testing.assert_close(codes.float().cpu(), on_host, rtol=0.15, atol=2**-9)
    assert (codes.float().cpu() != on_host).float().mean() < 1e-3
    expected = fp8.multiplied(codes, scale, weight, weight_scale, bias, torch.float32)
    found = fp8.product(x, weight, weight_scale, bias)
    torch.testing.assert_close(found.float(), expected, rtol=1.6e-2, atol=1e-2 * float(expected.abs().max()))
