"""The loss by chunks equals the loss of all logits: value and every gradient, against float64.

The kernel equals its reference. What a kernel must write is NaN first.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hayless.kernels.linear_loss import IGNORED, cross_entropy_reference, linear_cross_entropy

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, ENTRIES = 24, 103


def inputs(tokens: int, dtype: torch.dtype, bias: bool, seed: int = 0) -> tuple[list[Tensor], Tensor]:
    """Hidden states, a head and its bias that want gradients; targets, some of which count nothing."""
    torch.manual_seed(seed)
    made = [torch.randn(tokens, WIDTH), torch.randn(ENTRIES, WIDTH) * 0.6, *[torch.randn(ENTRIES)] * bias]
    targets = torch.randint(ENTRIES, (tokens,))
    targets[1::3] = IGNORED
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in made], targets.to(DEVICE)


def whole(leaves: list[Tensor], targets: Tensor, softcap: float | None, reduction: str) -> Tensor:
    """PyTorch's own, from all logits."""
    logits = F.linear(*leaves).double()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, reduction=reduction)


@pytest.fixture(autouse=True)
def _new_memory_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def gradients(total: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total * 0.37, leaves))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("softcap", [None, 2.5])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "chunk"), [(13, 4), (13, 64), (1, 1)])
def test_value_and_gradients_are_those_of_all_logits(tokens, chunk, bias, softcap, reduction):
    options: dict[str, Any] = {"softcap": softcap, "reduction": reduction, "chunk": chunk}
    exact, targets = inputs(tokens, torch.float64, bias)
    expected = whole(exact, targets, softcap, reduction)
    wanted = gradients(expected, exact)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5), (torch.bfloat16, 3e-2)):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
        named = {"bias_v": leaves[2] if bias else None, **options}
        total, right = linear_cross_entropy(*leaves[:2], targets, **named)
        assert total.dtype is torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(total.double(), expected, rtol=tolerance, atol=tolerance)
        if dtype is torch.float64:
            assert int(right) == int((F.linear(*exact).argmax(-1) == targets).sum())
        for leaf, found, other in zip(leaves, gradients(total, leaves), wanted, strict=True):
            assert found.dtype is leaf.dtype and found.isfinite().all()
            assert (found.double() - other).norm() <= tolerance * (1 + other.norm())


def test_no_tokens_and_nothing_but_masked_ones():
    for tokens in (0, 3):
        leaves, targets = inputs(tokens, torch.float32, bias=True)
        total, right = linear_cross_entropy(*leaves[:2], targets.fill_(IGNORED), bias_v=leaves[2], chunk=2)
        assert float(total) == 0 and int(right) == 0
        assert not any(gradient.any() for gradient in gradients(total, leaves))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(frozen):
    leaves, targets = inputs(9, torch.float64, bias=False)
    leaves[frozen].requires_grad_(False)
    total, _ = linear_cross_entropy(*leaves, targets, chunk=4)
    total.backward()
    expected = whole(leaves, targets, None, "sum")
    assert leaves[frozen].grad is None
    torch.testing.assert_close(leaves[1 - frozen].grad, torch.autograd.grad(expected, leaves[1 - frozen])[0])
    with torch.no_grad():
        assert not linear_cross_entropy(*leaves, targets)[0].requires_grad


def test_a_head_that_is_the_embedding_gets_both_gradients():
    leaves, targets = inputs(9, torch.float64, bias=False)
    table, ids = leaves[1], torch.arange(9, device=DEVICE) % ENTRIES
    for loss in (
        lambda x: linear_cross_entropy(x, table, targets, chunk=4)[0],
        lambda x: whole([x, table], targets, None, "sum"),
    ):
        table.grad = None
        loss(F.embedding(ids, table)).backward()
        leaves.append(table.grad)
    torch.testing.assert_close(leaves[-1], leaves[-2])


def test_the_gradient_of_the_head_is_not_copied():
    """It was made forward, and is what the weight gets: at the peak there is one of it."""
    leaves, targets = inputs(9, torch.float32, bias=False)
    total, _ = linear_cross_entropy(*leaves, targets, chunk=4)
    made = total.grad_fn.saved_tensors[1].data_ptr()
    total.backward()
    assert leaves[1].grad.data_ptr() == made


def test_a_second_pass_over_the_same_graph():
    """As updates that are fused into the backward pass need it, to clip."""
    leaves, targets = inputs(5, torch.float32, bias=False)
    total, _ = linear_cross_entropy(*leaves, targets)
    first = torch.autograd.grad(total * 2, leaves, retain_graph=True)
    for one, other in zip(first, torch.autograd.grad(total * 2, leaves), strict=True):
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast(kind):
    """Products in 16 bits, weights and their gradients in 32."""
    leaves, targets = inputs(13, torch.float32, bias=True)
    wanted = gradients(whole(leaves, targets, None, "sum"), leaves)
    with torch.autocast(DEVICE.type, kind):
        total, _ = linear_cross_entropy(*leaves[:2], targets, bias_v=leaves[2], chunk=4)
    for found, other in zip(gradients(total, leaves), wanted, strict=True):
        assert found.dtype is torch.float32
        assert (found - other).norm() <= 2e-2 * other.norm()


@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("rows", "entries"), [(5, 103), (3, 16), (1, 9000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16 if DEVICE.type == "cuda" else torch.float16])
def test_the_kernel_is_its_reference(dtype, rows, entries, softcap, gradient):
    kernel = pytest.importorskip("hayless.kernels.cross_entropy", reason="triton is not installed")
    torch.manual_seed(0)
    logits = (4 * torch.randn(rows, entries)).to(DEVICE, dtype)
    logits[0, 1::2] = -torch.inf if softcap is None else -1e4
    targets = torch.randint(entries, (rows,), device=DEVICE)
    targets[0], targets[-1] = 0, logits[-1].argmax()
    if rows > 2:
        targets[1] = IGNORED
    found, expected = logits.clone(), logits.double()
    losses, right = kernel.cross_entropy(found, targets, softcap=softcap, gradient=gradient)
    wanted = cross_entropy_reference(expected, targets, softcap=softcap, gradient=gradient)
    torch.testing.assert_close(losses, wanted[0].float(), rtol=2e-5, atol=2e-5)
    assert torch.equal(right, wanted[1]) and right[-1]
    if not gradient:
        assert torch.equal(found, logits)
        return
    tolerance = 1e-5 if dtype is torch.float32 else 5e-3
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("elements", [1, 5000, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16 if DEVICE.type == "cuda" else torch.float16])
def test_gradients_are_scaled_with_all_bits_of_the_factor(dtype, elements):
    kernel = pytest.importorskip("hayless.kernels.cross_entropy", reason="triton is not installed")
    torch.manual_seed(0)
    tensor, factor = torch.randn(elements).to(DEVICE, dtype), torch.tensor(1 / 16376, device=DEVICE)
    expected = (tensor.float() * factor).to(dtype)
    kernel.scale(tensor, factor)
    assert torch.equal(tensor, expected)
