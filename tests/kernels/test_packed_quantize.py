"""Quantize-and-pack kernels make the bits of their plain references, and codes mean the nearest values."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from hayless.core.errors import RequestError
from hayless.kernels.packed.formats import dequantize_reference, unpacked
from hayless.kernels.packed.quantize import (
    quantize_integers,
    quantize_integers_reference,
    quantize_table,
    quantize_table_reference,
)
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
        # A scale in 16 bits, rounded down, leaves the largest magnitude a little farther than half a step away.
        assert (off <= step * (0.5 + 2**bits * 2**-8)).all()


@pytest.mark.parametrize(("rows", "width", "block"), [(5, 96, 32), (3, 192, 64), (4, 192, 96)])
def test_tables(rows, width, block):
    table = torch.linspace(-1, 1, 16).to(DEVICE)
    weight = random(rows, width, dtype=torch.float32)
    weight[0, :block] = 0
    weight[1, 0], weight[1, 1] = 9, float(table[3] + table[4]) / 2 * 9
    found, expected = quantize_table(weight, table, block), quantize_table_reference(weight, table, block)
    assert torch.equal(found.codes, expected.codes) and torch.equal(found.absmax, expected.absmax)
    values = (weight.view(-1, block) / found.absmax.clamp(min=1e-9)[:, None]).view(-1, 1)
    code = unpacked(found.codes.flatten(), 4).view(-1, 2).flip(1).flatten()
    distances = (values - table).abs()
    assert torch.equal(distances.gather(1, code.long()[:, None]).squeeze(1), distances.amin(1))


def test_the_first_of_equally_near_values():
    table = torch.arange(16.0, device=DEVICE) / 16
    table[15] = 1
    weight = torch.zeros(1, 32, device=DEVICE)
    weight[0, :3] = torch.tensor([1.0, 0.5 / 16, 1.5 / 16])
    for made in (quantize_table(weight, table, 32), quantize_table_reference(weight, table, 32)):
        assert made.codes[:2].flatten().tolist() == [0xF0, 0x10]


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
