"""Linear layers of 8-bit floats give what their codes give as numbers, forward and backward."""

from __future__ import annotations

import pytest
import torch

from hayless.core.errors import NotSupported
from hayless.core.registry import configure, method_of
from hayless.kernels import fp8_training
from hayless.kernels.fp8 import rows_quantized
from hayless.kernels.fp8_training import fp8_linear, fp8_linear_reference
from hayless.methods.memory import eight_bits
from tests import tiny
from tests.methods.test_offload import gradients
from tests.train.conftest import one_thread  # noqa: F401

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FLOAT8 = configure("float8_linears")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    made = [torch.randn(2, 5, 32), torch.randn(48, 32) / 6, *[torch.randn(48)] * bias]
    x, weight, *rest = leaves = [tensor.to(DEVICE, dtype).requires_grad_() for tensor in made]
    offset = rest[0] if rest else None
    y = fp8_linear(x, weight, offset)
    with torch.no_grad():
        expected = fp8_linear_reference(x, weight, offset)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    assert y.dtype is dtype and (y.float() - expected).norm() <= tolerance * expected.norm()
    slope = torch.randn_like(y)
    dx, dw, *db = torch.autograd.grad(y, leaves, slope)
    (g, g_scale), (w, w_scale) = rows_quantized(slope), rows_quantized(weight.detach().t().contiguous())
    exact_dx = (g.float() * g_scale[..., None]) @ (w.float() * w_scale[:, None]).t()
    assert (dx.float() - exact_dx).norm() <= tolerance * exact_dx.norm()
    exact_dw = slope.flatten(0, 1).float().t() @ x.flatten(0, 1).float()
    assert dw.dtype is dtype and (dw.float() - exact_dw).norm() <= tolerance * exact_dw.norm()
    # Three bits of mantissa on both sides: a few percent off the product of the numbers themselves.
    plain = torch.nn.functional.linear(x, weight, offset).float()
    assert 1e-3 < (y.float() - plain).norm() / plain.norm() < 0.06
    if bias:
        assert (db[0].float() - slope.float().sum((0, 1))).norm() <= tolerance * db[0].float().norm()


def test_frozen_weights_get_no_gradient_and_keep_no_input() -> None:
    x, weight = torch.randn(3, 16, requires_grad=True), torch.randn(16, 16)
    y = fp8_linear(x, weight, None)
    assert y.grad_fn is not None
    y.sum().backward()
    assert x.grad is not None and weight.grad is None


def test_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks' layers in training mode, and the model handed back."""
    monkeypatch.setattr(eight_bits, "check_device", lambda device: None)
    model = tiny.model("llama")
    plain, found = gradients(model, []), gradients(model, [FLOAT8])
    for name, gradient in plain.items():
        off = float((found[name] - gradient).norm() / (gradient.norm() + 1e-6))
        assert off < 0.3, name
    assert any(not torch.equal(found[name], gradient) for name, gradient in plain.items())
    assert all("forward" not in vars(module) for module in model.modules())
    ids = torch.arange(3, 9)[None]
    expected = model.eval()(ids).logits
    with method_of(FLOAT8).load().install(model, FLOAT8):
        assert torch.equal(model(ids).logits, expected)


def test_checkpointing_that_keeps_products_keeps_these(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what runs again multiplies no 8-bit floats, and gradients keep their bits."""
    monkeypatch.setattr(eight_bits, "check_device", lambda device: None)
    model = tiny.model("llama")
    expected = gradients(model, [FLOAT8])
    multiplied: list[int] = []
    real = fp8_training.product
    monkeypatch.setattr(fp8_training, "product", lambda *each: multiplied.append(1) or real(*each))
    counts = []
    for memory in ([FLOAT8], [FLOAT8, configure("checkpointing", keep="products")]):
        multiplied.clear()
        found = gradients(model, memory)
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
        counts.append(len(multiplied))
    assert counts[0] == counts[1] > 0


def test_compiled_layers_have_the_same_gradients() -> None:
    torch.manual_seed(0)
    leaves = [each.to(DEVICE).requires_grad_() for each in (torch.randn(6, 32), torch.randn(48, 32) / 6)]
    slope = torch.randn(6, 48, device=DEVICE)
    compiled = torch.compile(fp8_linear, backend="aot_eager", fullgraph=True)
    expected = torch.autograd.grad(fp8_linear(*leaves, None), leaves, slope)
    found = torch.autograd.grad(compiled(*leaves, None), leaves, slope)
    for each, plain in zip(found, expected, strict=True):
        assert (each - plain).norm() <= 1e-5 * plain.norm()


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    install = method_of(FLOAT8).load().install
    with pytest.raises(NotSupported, match="needs an NVIDIA GPU that multiplies 8-bit floats; the model is on cpu"):
        install(tiny.model("llama"), FLOAT8)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(NotSupported, match=r"needs compute capability 8\.9; cuda has 8\.0"):
        eight_bits.check_device(torch.device("cuda"))
    monkeypatch.setattr(eight_bits, "check_device", lambda device: None)
    with pytest.raises(NotSupported, match="no linear layers"):
        install(tiny.model("gpt2"), FLOAT8)
    with pytest.raises(NotSupported, match=r"gate_proj is 24 × 32; 8-bit products take multiples of 16"):
        model = tiny.model("llama")
        model.model.layers[0].mlp.gate_proj = torch.nn.Linear(32, 24)
        install(model, FLOAT8)
