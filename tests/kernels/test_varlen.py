"""Attention by cumulative lengths equals softmax under a mask; on a GPU PyTorch's kernel equals the plain reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hayless.kernels.varlen import varlen_attention, varlen_attention_reference

LENGTHS = [(1,), (1, 1, 1), (5, 1, 13, 7)]
LONGER = [*LENGTHS, (5, 1, 130, 64, 33), (128, 257, 1)]
HEADS = [(4, 4, 16), (6, 2, 24), (8, 1, 64)]
WINDOWS = [None, 1, 6]


def inputs(lengths: tuple[int, ...], heads: tuple[int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the gradient of the answer."""
    torch.manual_seed(0)
    many, few, dim = heads
    return [torch.randn(sum(lengths), count, dim).to(dtype) for count in (many, few, few, many)]


def cumulative(lengths: tuple[int, ...]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def results(attend, tensors: list[Tensor]) -> list[Tensor]:
    """What `attend` answers, and the gradients of q, k and v."""
    *leaves, gradient = (tensor.detach().clone().requires_grad_(True) for tensor in tensors)
    out = attend(*leaves)
    out.backward(gradient.detach())
    return [out.detach(), *(leaf.grad for leaf in leaves)]


def masked_softmax(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float, window: int | None):
    """The definition, with all scores written down."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    distance = torch.arange(len(document))[:, None] - torch.arange(len(document))
    seen = (document[:, None] == document) & (distance >= 0) & (distance < (window or len(document)))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_reference_is_softmax_under_a_mask(lengths, heads, window):
    tensors = inputs(lengths, heads, torch.float64)
    where = cumulative(lengths)
    found = results(lambda q, k, v: varlen_attention_reference(q, k, v, where, scale=0.3, window=window), tensors)
    expected = results(lambda q, k, v: masked_softmax(q, k, v, lengths, 0.3, window), tensors)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_the_reference_drops_weights():
    *tensors, _ = inputs((6, 3), (2, 2, 8), torch.float32)
    dropped = varlen_attention_reference(*tensors, cumulative((6, 3)), dropout=0.5)
    assert not torch.allclose(dropped, varlen_attention_reference(*tensors, cumulative((6, 3))))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("lengths", LONGER)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_kernel_is_the_reference(lengths, heads, window, dtype):
    """Outputs and gradients against float32; what is not written would be NaN; the last document is padding of NaN."""
    lengths = (*lengths, 3)
    tensors = inputs(lengths, heads, dtype)
    expected = results(
        lambda q, k, v: varlen_attention_reference(q, k, v, cumulative(lengths), window=window),
        [tensor.float() for tensor in tensors],
    )
    for tensor in tensors[:3]:
        tensor[-3:] = torch.nan
    tensors[3][-3:] = 0
    where = cumulative(lengths).cuda()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        found = results(
            lambda q, k, v: varlen_attention(q, k, v, where, max(lengths), window=window),
            [tensor.cuda() for tensor in tensors],
        )
    finally:
        torch.use_deterministic_algorithms(False)
    for one, other in zip(found, expected, strict=True):
        one, other = one[:-3].cpu().float(), other[:-3]
        assert one.isfinite().all()
        assert (one - other).norm() <= 1e-2 * other.norm() + 1e-4 * other.numel() ** 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_kernel_takes_views_and_autocast():
    """Queries, keys and values cut from one tensor, as GPT-2 has them, and of mixed dtypes, as rotation leaves them."""
    lengths = (9, 1, 22)
    fused = torch.randn(sum(lengths), 3, 4, 16, device="cuda")
    where = cumulative(lengths).cuda()
    expected = varlen_attention_reference(*fused.unbind(1), where)
    q, k, v = fused.to(torch.bfloat16).unbind(1)
    torch.testing.assert_close(varlen_attention(q, k, v, where, 22).float(), expected, rtol=2e-2, atol=2e-2)
    with torch.autocast("cuda", torch.bfloat16):
        found = varlen_attention(q.float(), k.float(), v, where, 22)
    assert found.dtype is torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
