"""Packed indices: any number of bits, any length, to the bit."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.kernels.packed.bits import pack, unpack, unpack_at
from hayless.methods.quantize.kmeans import reference


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[list[int], int]:
    bits = draw(st.integers(1, 8))
    return draw(st.lists(st.integers(0, 2**bits - 1), max_size=70)), bits


@settings(deadline=None, max_examples=150)
@given(codes_and_bits())
def test_packing_is_the_long_number_of_the_reference_and_comes_back(case: tuple[list[int], int]) -> None:
    codes, bits = case
    stream = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert bytes(stream.tolist()) == reference.pack(codes, bits)
    assert unpack(stream, bits, len(codes)).tolist() == codes
    if codes:
        positions = torch.arange(len(codes)).flip(0)
        assert unpack_at(stream, bits, positions).tolist() == codes[::-1]


def test_shapes_and_strides_do_not_matter() -> None:
    codes = torch.randint(0, 8, (5, 7), dtype=torch.uint8)
    assert torch.equal(pack(codes.T, 3), pack(codes.T.contiguous(), 3))
    assert pack(codes, 3).shape == (-(-35 * 3 // 8),)


def test_a_four_bit_stream_is_half_a_byte_an_index() -> None:
    assert pack(torch.zeros(1001, dtype=torch.uint8), 4).numel() == 501
