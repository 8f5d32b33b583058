"""Attention over codes equals its plain reference, and takes new tokens in to the same bits, or to a code's rounding.

What must not be read is NaN first.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.kernels.attention import Scratch
from hayless.kernels.linear import Norm
from hayless.kernels.quantized_attention import quantized_attention, quantized_attention_reference
from hayless.kernels.quantized_cache import Held, fill

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("bits", "group", "channels", "residual", "kv_heads", "heads", "dim", "splits", "normed"),
    [
        (4, 32, 16, 32, 2, 3, 32, 4, False),
        (8, 8, 16, 24, 1, 1, 64, 1, True),
        (2, 128, 64, 128, 1, 4, 64, 2, False),
        (2, 1, 8, 3, 1, 1, 32, 2, True),
        *(
            pytest.param(*case, marks=[pytest.mark.gpu, pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")])
            for case in (
                (4, 32, 32, 32, 2, 1, 128, 4, False),
                (8, 64, 32, 64, 1, 3, 64, 2, True),
                (2, 128, 64, 128, 1, 5, 128, 8, False),
                (4, 32, 32, 32, 2, 4, 128, 2, True),
            )
        ),
    ],
)
def test_equals_the_reference(dtype, bits, group, channels, residual, kv_heads, heads, dim, splits, normed):
    """Rows of every length: empty, shorter than the residual, about to be quantized, quantized in part."""
    torch.manual_seed(0)
    lengths = [0, residual - 1, residual, 2 * residual + 5, 140]
    rows, slots = len(lengths), -(-300 // residual) * residual
    scratch = Scratch(rows, kv_heads * heads, kv_heads, dim, splits, DEVICE)
    angles = torch.outer(torch.arange(slots), 100.0 ** -(torch.arange(dim // 2) / (dim // 2))).to(DEVICE)
    cos, sin = angles.cos(), angles.sin()
    norms = [Norm(torch.rand(dim).to(DEVICE, dtype), 1e-6) if normed else None for _ in range(2)]
    found = Held.empty(
        (rows, kv_heads), slots, dim,
        bits=bits, group=group, channels=channels, residual=residual, dtype=dtype, device=DEVICE,
    )  # fmt: skip
    for tensor in found.tensors:
        tensor.fill_(255 if tensor.dtype is torch.uint8 else torch.nan)

    def fresh() -> tuple[torch.Tensor, ...]:
        joined = torch.randn(rows, (heads + 2) * kv_heads * dim).to(DEVICE, dtype)
        return joined.split([heads * kv_heads * dim, kv_heads * dim, kv_heads * dim], 1)

    for row, n in enumerate(lengths):
        fill(found[row], *(torch.randn(kv_heads, n, dim).to(DEVICE, dtype) for _ in range(2)))
    wanted = Held(bits, *(tensor.clone() for tensor in found.tensors))
    at = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    for _ in range(2):
        q, k, v = fresh()
        expected = quantized_attention_reference(q, k, v, cos, sin, at, wanted, q_norm=norms[0], k_norm=norms[1])
        out = torch.full((rows, heads * kv_heads * dim), torch.nan, dtype=dtype, device=DEVICE)
        quantized_attention(q, k, v, cos, sin, at, found, out, scratch, q_norm=norms[0], k_norm=norms[1])
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
        torch.testing.assert_close(out.float(), expected.float(), **close)
        at += 1
    assert not scratch.done.any()
    for mine, theirs in zip(found.tensors, wanted.tensors, strict=True):
        if mine.dtype is torch.uint8:
            # A key turned in another order of operations may fall on the other side of a half.
            assert (mine != theirs).float().mean() < 1e-3
        else:
            torch.testing.assert_close(mine.float(), theirs.float(), rtol=1e-2, atol=1e-2, equal_nan=True)
