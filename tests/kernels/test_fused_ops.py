"""Fused norms, rotations and gates: PyTorch's own formulas in outputs and every gradient; kernels their reference.

What a kernel must write is NaN first.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

from hayless.kernels import fused_ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
NARROW = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels, whatever the device; new memory is NaN."""
    found = pytest.importorskip("hayless.kernels.fused_kernels", reason="triton is not installed")
    monkeypatch.setattr(fused_ops, "_of", lambda x: found)
    monkeypatch.setattr(found, "_PROGRAMS", 4)  # which then have several rows each, the last one fewer
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def close(one: Tensor, other: Tensor, dtype: torch.dtype) -> None:
    assert one.dtype is other.dtype and one.shape == other.shape
    largest = float(other.abs().max())
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=TOLERANCE[dtype] * max(1.0, largest))


def agree(compute: Any, expected: Any, leaves: list[Tensor], dtype: torch.dtype) -> None:
    """Equal outputs, and equal gradients of all leaves."""
    found = []
    for function in (compute, expected):
        mine = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
        out = function(*mine)
        torch.manual_seed(1)
        gradient = torch.randn(out.shape).to(DEVICE, out.dtype)
        found.append([out, *torch.autograd.grad(out, mine, gradient)])
    for one, other in zip(*found, strict=True):
        assert one.isfinite().all()
        close(one, other, dtype)


def norm(leaf: Tensor, gain: Tensor, gemma: bool) -> Tensor:
    """Transformers' own."""
    module = (GemmaRMSNorm if gemma else LlamaRMSNorm)(gain.shape[0], eps=1e-5)
    del module.weight
    module.weight = gain
    return module(leaf)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return apply_rotary_pos_emb(x, x, cos, sin)[0]


def check(dtype: torch.dtype, gain_dtype: torch.dtype) -> None:
    for gemma in (False, True):
        for shape in ((3, 5, 33), (1, 64)):
            leaves = [random(*shape, dtype=dtype), random(shape[-1], dtype=gain_dtype)]
            agree(
                lambda x, gain, gemma=gemma: fused_ops.rms_norm(x, gain, 1e-5, gemma=gemma),
                lambda x, gain, gemma=gemma: norm(x, gain, gemma),
                leaves,
                dtype,
            )
    heads_first = random(2, 5, 3, 16, dtype=dtype).transpose(1, 2)
    assert fused_ops.rms_norm(heads_first, random(16, dtype=gain_dtype), 1e-5).stride() == heads_first.stride()
    agree(
        lambda x, gain: fused_ops.rms_norm(x, gain, 1e-5),
        lambda x, gain: norm(x, gain, False),
        [heads_first, random(16, dtype=gain_dtype)],
        dtype,
    )
    for heads, dim, rows in ((3, 10, 2), (1, 16, 1)):
        angles = torch.rand(rows, 7, dim // 2).repeat(1, 1, 2)
        cos, sin = angles.cos().to(DEVICE, gain_dtype), angles.sin().to(DEVICE, gain_dtype)
        # As attention has it: heads after tokens in memory.
        x = random(2, 7, heads, dim, dtype=dtype).transpose(1, 2)
        out = fused_ops.rotary(x, cos, sin)
        assert out.stride() == x.stride()
        agree(lambda x, c=cos, s=sin: fused_ops.rotary(x, c, s), lambda x, c=cos, s=sin: rotated(x, c, s), [x], dtype)
    for shape in ((3, 33), (1, 1), (2, 3, 400)):
        leaves = [random(*shape, dtype=dtype), random(*shape, dtype=dtype)]
        agree(fused_ops.swiglu, lambda gate, up: F.silu(gate) * up, leaves, dtype)


def test_gradients_are_those_of_the_formulas() -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    angles = torch.rand(1, 3, 4, dtype=torch.float64)
    for gemma in (False, True):
        torch.autograd.gradcheck(
            lambda x, w, g=gemma: fused_ops.rms_norm(x, w, 1e-3, gemma=g), (leaf(2, 3, 5), leaf(5))
        )
    torch.autograd.gradcheck(lambda x: fused_ops.rotary(x, angles.cos(), angles.sin()), leaf(2, 2, 3, 4))
    torch.autograd.gradcheck(fused_ops.swiglu, (leaf(2, 3), leaf(2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_pytorch_computes_what_transformers_computes(dtype: torch.dtype) -> None:
    check(dtype, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, NARROW])
def test_kernels_compute_what_transformers_computes(dtype: torch.dtype, kernels: Any) -> None:
    check(dtype, dtype)


def test_kernels_take_weights_of_another_dtype(kernels: Any) -> None:
    """As autocast leaves them: float32 gains and rotations beside 16-bit states."""
    check(NARROW, torch.float32)


def test_kernels_take_no_rows(kernels: Any) -> None:
    x, gain = random(0, 8).requires_grad_(), random(8).requires_grad_()
    fused_ops.rms_norm(x, gain, 1e-5).sum().backward()
    assert x.grad is not None and gain.grad is not None and not gain.grad.any()
    assert fused_ops.swiglu(x, x).shape == fused_ops.rotary(x.view(0, 1, 1, 8), x[None], x[None])[:, 0, 0].shape
