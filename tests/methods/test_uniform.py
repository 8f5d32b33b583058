"""Integers: codes against the reference, packing of any shape, models against predictions, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hayless.core.errors import RequestError
from hayless.core.ledger import Layout
from hayless.core.registry import configure, method_of
from hayless.kernels.packed.bits import pack, pack_rows, unpack_rows
from hayless.kernels.packed.formats import dequantize_reference
from hayless.methods.common.integer_packing import Codes, IntegerPacking, in_groups, packed, rounded, squared_error
from hayless.methods.common.integers import IntegerFormat
from hayless.methods.quantize.uniform import reference
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import check_held, logits, predicted

GROUPS = (32, 64, 128, "row", "tensor")
FAMILIES = ("llama", "gpt2", "opt", "gpt_neox", "mixtral", "bert", "t5")


def form(shape: tuple[int, ...], bits: int = 4, group_size: object = 32, **more: object) -> IntegerFormat:
    layout = Layout.EXPERTS if len(shape) == 3 else Layout.LINEAR
    return IntegerFormat(shape=shape, layout=layout, bits=bits, group_size=group_size, **more)


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    bits=st.integers(1, 8),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_each_row_is_a_stream_of_its_own(rows: int, columns: int, bits: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (rows, columns), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    streams = pack_rows(codes, bits)
    assert torch.equal(streams, torch.stack([pack(row, bits) for row in codes]))
    assert torch.equal(unpack_rows(streams, bits, columns), codes)


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 4), st.integers(1, 150)),
        st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 70)),
    ),
    bits=st.sampled_from((2, 3, 4, 8)),
    group_size=st.sampled_from(GROUPS),
    symmetric=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_codes_scales_and_zeros_come_back(
    shape: tuple[int, ...], bits: int, group_size: object, symmetric: bool, seed: int
) -> None:
    found = form(shape, bits, group_size, symmetric=symmetric)
    generator = torch.Generator().manual_seed(seed)
    rows = found.matrices * found.rows
    codes = torch.randint(0, 2**bits, (rows, found.columns), generator=generator)
    scale = torch.rand(found.scales, generator=generator) + 0.1
    zero = torch.full(found.scales, 2 ** (bits - 1))
    if not symmetric:
        zero = torch.randint(0, 2**bits, found.scales, generator=generator)
    pieces = packed(Codes(codes, scale, zero), found, torch.float32)
    assert {piece.name: piece.shape for piece in found.pieces("float32")} == {
        name: tuple(tensor.shape) for name, tensor in pieces.items()
    }
    weight = IntegerPacking(found).unpack(pieces, torch.float32)
    assert weight.shape == (found.matrices, found.rows, found.columns)
    for row, column in ((0, 0), (rows - 1, found.columns - 1), (rows // 2, found.columns // 2)):
        place = (0, 0) if group_size == "tensor" else (row, column // found.width)
        expected = (codes[row, column] - zero[place]) * scale[place]
        assert weight.reshape(rows, -1)[row, column] == expected
    index = torch.tensor([[rows - 1, 0]])
    if len(shape) == 2:
        assert torch.equal(IntegerPacking(found).unpack_rows(index, pieces, torch.float32), weight[0][index])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", GROUPS)
def test_codes_are_the_reference(bits: int, group_size: object) -> None:
    weight = torch.randn(1, 6, 80, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        found = form((6, 80), bits, group_size, symmetric=symmetric)
        pieces = rounded(weight, found)
        codes = in_groups(unpack_rows(pieces["codes"], bits, 80), found)
        groups = in_groups(weight[0].double(), found)
        for number in range(groups.shape[0] * groups.shape[1]):
            group, place = groups.flatten(0, 1)[number].tolist(), divmod(number, groups.shape[1])
            if symmetric:
                expected, scale = reference.symmetric(group, bits)
                expected = [code + 2 ** (bits - 1) for code in expected]
            else:
                expected, scale, zero = reference.asymmetric(group, bits)
                assert zero == pieces["zero"][place]
            assert pieces["scale"][place].item() == pytest.approx(scale, rel=1e-6)
            filled = [code for code, value in zip(codes[place].tolist(), group, strict=True) if value]
            assert filled == [code for code, value in zip(expected, group, strict=True) if value]


@pytest.mark.parametrize("options", [{}, {"bits": 2, "twos_complement": True}, {"bits": 8, "symmetric": False}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_read_the_same_weights(options: dict[str, object], dtype: torch.dtype) -> None:
    found = form((16, 128), **{"bits": 4, "group_size": 64, **options})
    packing = IntegerPacking(found)
    pieces = rounded(torch.randn(1, 16, 128).to(dtype), found)
    integers = packing.held(pieces)
    assert integers is not None
    assert torch.equal(dequantize_reference(integers, dtype), packing.unpack(pieces, dtype)[0])
    assert found.product is not None
    whole = form((16, 128), 4, "tensor")
    pieces = rounded(torch.randn(1, 16, 128), whole)
    held = IntegerPacking(whole).held(pieces)
    assert torch.equal(
        dequantize_reference(held, torch.float32), IntegerPacking(whole).unpack(pieces, torch.float32)[0]
    )
    for other in (form((16, 100), 4, 64), form((16, 64), 3)):
        assert IntegerPacking(other).held(rounded(torch.randn(1, 16, other.columns), other)) is None
        assert other.product is None


def test_two_bits_are_as_published() -> None:
    found = form((1, 4), 2, "row", twos_complement=True)
    pieces = {"codes": torch.tensor([[0b10_11_00_01]], dtype=torch.uint8), "scale": torch.ones(1, 1)}
    assert IntegerPacking(found).unpack(pieces, torch.float32).flatten().tolist() == [1, 0, -1, -2]
    assert [reference.PUBLISHED[code] for code in (0b01, 0b00, 0b11, 0b10)] == [1, 0, -1, -2]
    weight = torch.randn(1, 8, 64)
    plain, flipped = form((8, 64), 2), form((8, 64), 2, twos_complement=True)
    one, other = rounded(weight, plain), rounded(weight, flipped)
    assert torch.equal(one["codes"] ^ 0b10101010, other["codes"])
    assert torch.equal(
        IntegerPacking(plain).unpack(one, torch.float32), IntegerPacking(flipped).unpack(other, torch.float32)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
def test_rounding_twice_changes_nothing_and_the_error_is_half_a_step(dtype: torch.dtype, symmetric: bool) -> None:
    weight = torch.randn(1, 7, 100).to(dtype)
    weight[0, 3, :32] = 0
    found = form((7, 100), 4, 32, symmetric=symmetric)
    pieces = rounded(weight, found)
    back = IntegerPacking(found).unpack(pieces, dtype)
    assert not back[0, 3, :32].any()
    step = pieces["scale"].float().repeat_interleave(32, dim=1)[:, :100]
    # Half a step, a zero that is rounded, and what the scale lost to the dtype over eight steps.
    slack = (1 if symmetric else 2) * 0.5 + 16 * torch.finfo(dtype).eps
    assert ((back[0] - weight[0]).float().abs() <= step * slack).all()


def test_clipping_is_never_worse() -> None:
    weight = torch.randn(1, 16, 128)
    for bits in (2, 3, 4, 8):
        found = form((16, 128), bits, 64)
        errors = [
            (IntegerPacking(found).unpack(rounded(weight, found, loss), torch.float32) - weight).square().sum()
            for loss in (None, squared_error)
        ]
        assert errors[1] <= errors[0]
        assert bits > 3 or errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_as_predicted_and_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    config = configure("uniform", bits=3, group_size=32, symmetric=name != "gpt2")
    apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    save_model(model, tmp_path / "model")
    assert ledger.file_bytes() == {"model": (tmp_path / "model" / "model.safetensors").stat().st_size}
    back = load_model(tmp_path / "model")
    assert torch.equal(logits(back), logits(model))


def test_a_cast_model_keeps_its_codes() -> None:
    model = tiny.model("llama")
    config = configure("uniform", bits=4, group_size="row", symmetric=False)
    apply(model, [config])
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "weight_" in name}
    model.to(torch.bfloat16)
    assert before and all(torch.equal(model.get_buffer(name), buffer) for name, buffer in before.items())
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    method_of(config).load().restore(tiny.model("llama"), config)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 5}, "bits"),
        ({"group_size": 48}, "group_size"),
        ({"group_size": "column"}, "group_size"),
        ({"twos_complement": True}, "bits=2"),
        ({"twos_complement": True, "bits": 2, "symmetric": False}, "symmetric"),
    ],
)
def test_wrong_options_say_what_is_allowed(options: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        configure("uniform", **options)


def test_numbers_may_be_text() -> None:
    assert configure("uniform", bits="8", group_size="128") == configure("uniform", bits=8, group_size=128)
