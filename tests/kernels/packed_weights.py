"""Packed weights of every form with random contents, and what tests of their kernels share."""

from __future__ import annotations

import torch
from torch import Tensor

from hayless.kernels.packed.formats import Integers, Nested, Palette, Table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# bf16 is wrong in Triton's interpreter.
DTYPES = [torch.float32, torch.bfloat16] if DEVICE.type == "cuda" else [torch.float32, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Of the largest magnitude of what is expected."""


def _random_bytes(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8).to(DEVICE)


def integers(
    rows: int,
    width: int,
    bits: int,
    groups: int,
    *,
    zero: bool = False,
    twos_complement: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Integers:
    scale = (0.1 * torch.rand(rows, groups) + 0.05).to(DEVICE, dtype)  # results stay within fp16
    zeros = torch.randint(2**bits, (rows, groups), dtype=torch.uint8).to(DEVICE) if zero else None
    return Integers(_random_bytes(rows, width * bits // 8), scale, bits, zeros, twos_complement)


def table(rows: int, width: int, block: int, *, nested: bool = False) -> Table:
    blocks = rows * width // block
    values = torch.linspace(-1, 1, 16).add(torch.rand(16) * 0.1).to(DEVICE)
    codes = _random_bytes(rows * width // 2, 1)
    if not nested:
        return Table(codes, torch.rand(blocks, device=DEVICE) + 0.5, values, (rows, width), block)
    seconds = torch.rand(-(-blocks // 256), device=DEVICE) + 0.5
    second = Nested(torch.randn(256, device=DEVICE), seconds, torch.rand(1, device=DEVICE))
    return Table(codes, _random_bytes(blocks), values, (rows, width), block, second)


def palette(rows: int, width: int, bits: int, group_size: int, dtype: torch.dtype = torch.float32) -> Palette:
    book = torch.randn(-(-rows // group_size), 2**bits).to(DEVICE, dtype)
    return Palette(_random_bytes(-(-rows * width * bits // 8)), book, (rows, width), bits, group_size)


def forms() -> list[Integers | Table | Palette]:
    """Weights of every form that is multiplied packed, of odd sizes, in words and in bytes."""
    return [
        integers(21, 96, 4, 3),
        integers(21, 96, 4, 3, zero=True, dtype=torch.float16),
        integers(21, 96, 4, 1, twos_complement=True),
        integers(40, 256, 4, 2, zero=True, twos_complement=True),
        integers(7, 6, 4, 1),
        integers(5, 100, 2, 5, zero=True, twos_complement=True),
        integers(9, 30, 8, 5, zero=True),
        integers(9, 44, 8, 1, twos_complement=True),
        table(7, 64, 32),
        table(9, 192, 64, nested=True),
        palette(9, 40, 4, 4),
        palette(5, 24, 1, 5),
        palette(5, 20, 2, 2),
        palette(3, 7, 8, 1),
    ]


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=DEVICE)


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape).to(DEVICE, dtype)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """As near to float32's `expected` as arithmetic in `found`'s dtype comes."""
    allowed = TOLERANCE[found.dtype] * float(expected.abs().max())
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=allowed)
