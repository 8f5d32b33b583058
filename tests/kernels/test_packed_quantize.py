"""Quantize-and-pack kernels make the bits of their plain references, and codes mean the nearest values."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.core.errors import RequestError
from hayless.kernels.packed.bits import unpack
from hayless.kernels.packed.formats import dequantize_reference
from hayless.kernels.packed.quantize import (
    quantize_integers,
    quantize_integers_reference,
    quantize_table,
    quantize_table_reference,
)
from hayless.methods.common.integer_packing import rounded
from hayless.methods.common.integers import IntegerFormat
from hayless.methods.quantize.nf4.blocks import quantized
from hayless.methods.quantize.nf4.tables import values_of
from tests.kernels.packed_weights import DEVICE, DTYPES, random


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("rows", "width", "bits", "group"),
    [(5, 96, 4, 32), (3, 40, 2, 4), (3, 40, 2, 40), (4, 36, 8, 9), (2, 5000, 4, 5000)],
)
def test_integers(rows, width, bits, group, symmetric, dtype):
    weight = random(rows, width, dtype=dtype)
    weight[0, :group] = 0
    weight[-1] = weight[-1].abs() + 1
    for twos_complement, scale_dtype in ((False, None), (True, torch.float32)):
        options = {"symmetric": symmetric, "twos_complement": twos_complement, "scale_dtype": scale_dtype}
        found = quantize_integers(weight, bits, group, **options)
        expected = quantize_integers_reference(weight, bits, group, **options)
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.scale, expected.scale)
        assert symmetric == (found.zero is None)
        assert symmetric or torch.equal(found.zero, expected.zero)
        step = found.scale.float().repeat_interleave(group, 1)
        off = (dequantize_reference(found, torch.float32) - weight.float()).abs()
        # The largest of 2^bits − 1 steps is half a step off; a scale that was rounded down leaves it a little farther.
        assert (off <= step * (0.5 + 2**bits * 2**-8)).all()


def test_integers_are_those_of_the_method():
    weight = random(6, 64, dtype=torch.float32)
    for bits, symmetric, twos_complement in ((4, True, False), (4, False, False), (2, True, True), (8, False, True)):
        form = IntegerFormat(
            shape=(6, 64), layout="rows", bits=bits, group_size=32, symmetric=symmetric, twos_complement=twos_complement
        )
        expected = rounded(weight.cpu()[None], form)
        found = quantize_integers(weight, bits, 32, symmetric=symmetric, twos_complement=twos_complement)
        assert torch.equal(found.codes.cpu(), expected["codes"]) and torch.equal(found.scale.cpu(), expected["scale"])
        assert symmetric or torch.equal(found.zero.cpu(), expected["zero"])


@pytest.mark.parametrize(("rows", "width", "block"), [(5, 96, 32), (3, 192, 64), (4, 192, 96)])
def test_tables(rows, width, block):
    weight = random(rows, width, dtype=torch.float32)
    weight[0, :block] = 0
    for kind in ("nf4", "fp4", "int4"):
        values = values_of(kind).to(DEVICE)
        found, expected = quantize_table(weight, values, block), quantize_table_reference(weight, values, block)
        assert torch.equal(found.codes, expected.codes) and torch.equal(found.absmax, expected.absmax)
        codes, absmax = quantized(weight.cpu().flatten(), block, values_of(kind))
        high_first = unpack(found.codes.flatten(), 4, 2 * found.codes.numel()).view(-1, 2).flip(1).flatten()
        assert torch.equal(high_first.cpu(), codes) and torch.equal(found.absmax.cpu(), absmax)


def test_the_lower_of_equally_near_values():
    table = torch.arange(15, -1, -1, device=DEVICE) / 16
    table[0] = 1
    weight = torch.zeros(1, 32, device=DEVICE)
    weight[0, :3] = torch.tensor([1.0, 0.5 / 16, 1.5 / 16])
    for made in (quantize_table(weight, table, 32), quantize_table_reference(weight, table, 32)):
        assert made.codes[:2].flatten().tolist() == [0x0F, 0xEF]


def test_what_cannot_be():
    weight = torch.ones(2, 48, device=DEVICE)
    for wrong, match in (
        (lambda: quantize_integers(weight, 3, 16), "bits = 3"),
        (lambda: quantize_integers(weight, 4, 32), "group_size = 32"),
        (lambda: quantize_integers(weight, 4, 3), "group_size = 3"),
        (lambda: quantize_table(weight, torch.ones(16, device=DEVICE), 32), "block_size = 32"),
    ):
        with pytest.raises(RequestError, match=match):
            wrong()
