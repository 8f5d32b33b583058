"""4-bit blocks: their tables, packing and looking up as bitsandbytes does it, and layers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from transformers.pytorch_utils import Conv1D

from hayless.core.errors import NotSupported, RequestError
from hayless.core.ledger import Layout
from hayless.core.registry import configure, method_of
from hayless.kernels.packed.formats import dequantize_reference
from hayless.methods.common.packing import matrices_of
from hayless.methods.quantize.nf4 import reference
from hayless.methods.quantize.nf4.blocks import Blocks, pack_blocks
from hayless.methods.quantize.nf4.config import NF4Config
from hayless.methods.quantize.nf4.form import BlockFormat
from hayless.methods.quantize.nf4.tables import nearest, scale_values, values_of
from hayless.model.packing import install
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import check_held, logits, losses, predicted

GOLDEN = json.loads((Path(__file__).parent / "bitsandbytes.json").read_text())
KINDS = [(kind, double) for kind in ("nf4", "fp4") for double in (False, True)]


def packing_of(shape: tuple[int, ...], config: NF4Config, layout: Layout = Layout.LINEAR) -> Blocks:
    return Blocks(
        BlockFormat(shape=shape, layout=layout, type=config.type, block_size=config.block_size, double=config.double)
    )


def packed(weight: Tensor, **options: Any) -> tuple[Blocks, dict[str, Tensor]]:
    """A matrix (rows, columns), packed."""
    config = NF4Config(**options)
    packing = packing_of(tuple(weight.shape), config)
    return packing, dict(pack_blocks(weight[None], packing, config))


def test_tables() -> None:
    assert scale_values().numel() == 256 and scale_values()[0] == pytest.approx(-0.99296875)
    for kind in ("nf4", "fp4", "int4"):
        values = values_of(kind)
        assert len(values) == 16 and 0 in values
        used = values[nearest(torch.linspace(-1, 1, 10001), values).long()]
        assert used.max() == 1 and used.min() == -1
    assert [int(nearest(torch.tensor([x / 7]), values_of("int4"))) for x in range(-7, 8)] == [
        x % 16 for x in range(-7, 8)
    ]


@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_a_tensor_that_bitsandbytes_packed(kind: str, double: bool) -> None:
    weight = torch.tensor(GOLDEN["weight"])
    theirs = GOLDEN["packed"][kind + (" double" if double else "")]
    packing, pieces = packed(weight, type=kind, block_size=32, double=double)
    ours = packing.to_disk(pieces, torch.float32)
    state = packing.form.state_name
    for name, tensor in ours.items():
        if name != "weight.nested_quant_map" and name != state:
            assert torch.equal(tensor, torch.tensor(theirs[name], dtype=tensor.dtype)), name
    assert bytes(ours[state].numpy()).decode().rstrip() == theirs[state]
    expected = {piece.name: (piece.shape, piece.dtype) for piece in packing.form.disk("float32")}
    assert {name: (tuple(t.shape), str(t.dtype)[6:]) for name, t in ours.items()} == expected
    back = packing.from_disk(ours, "weight")
    assert all(torch.equal(back[name], tensor) for name, tensor in pieces.items())
    assert torch.equal(packing.unpack(back, torch.float32)[0], torch.tensor(theirs["dequantized"]))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    some.integers(1, 9),
    some.integers(1, 150),
    some.sampled_from(["nf4", "fp4", "int4"]),
    some.sampled_from([32, 64, 128]),
    some.booleans(),
    some.integers(0, 2**31),
)
def test_packing_is_the_reference(rows: int, columns: int, kind: str, block_size: int, double: bool, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0, :3] = 0
    packing, pieces = packed(weight, type=kind, block_size=block_size, double=double)
    assert {name: (tuple(t.shape), str(t.dtype)[6:]) for name, t in pieces.items()} == {
        piece.name: (piece.shape, piece.dtype) for piece in packing.form.pieces("float32")
    }
    codes, absmax = reference.quantize(weight.view(-1), values_of(kind), block_size)
    found = torch.stack([pieces["codes"] >> 4, pieces["codes"] & 15], dim=1).view(-1)[: weight.numel()]
    values = values_of(kind)
    assert torch.equal(values[found.int()], values[codes.int()])
    if double:
        absmax = reference.doubled(absmax, scale_values())
    for dtype in (torch.float32, torch.bfloat16):
        expected = reference.dequantize(codes, absmax, values_of(kind), block_size).to(dtype).view(rows, columns)
        assert torch.equal(packing.unpack(pieces, dtype)[0], expected)
        index = torch.tensor([[rows - 1], [0]])
        assert torch.equal(packing.unpack_rows(index, pieces, dtype), expected[index])


@pytest.mark.parametrize(("kind", "double"), [("nf4", True), ("fp4", False), ("int4", True)])
def test_kernels_are_given_the_same_numbers(kind: str, double: bool) -> None:
    packing, pieces = packed(torch.randn(48, 128), type=kind, double=double)
    table = packing.held(pieces)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantize_reference(table, dtype), packing.unpack(pieces, dtype)[0])
    assert packed(torch.randn(48, 96))[0].held(pieces) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("dtype", "tokens"), [(torch.bfloat16, 1), (torch.float16, 16), (torch.bfloat16, 80)])
def test_a_layer_on_a_gpu(dtype: torch.dtype, tokens: int) -> None:
    torch.manual_seed(0)
    module = nn.Linear(512, 768, dtype=dtype)
    packing, pieces = packed(module.weight.detach())
    install(module, "weight", packing, pieces)
    x, towards = torch.randn(tokens, 512, dtype=dtype), torch.randn(tokens, 768, dtype=dtype)
    matrix = packing.unpack(pieces, dtype)[0].double()
    there = x.cuda().requires_grad_()
    found = module.cuda()(there)
    found.backward(towards.cuda())
    expected = nn.functional.linear(x.double(), matrix, module.bias.cpu().double())
    torch.testing.assert_close(found.cpu().double(), expected, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(there.grad.cpu().double(), towards.double() @ matrix, rtol=2e-2, atol=4e-2)


def test_large_tensors_are_packed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(70, 233, generator=torch.Generator().manual_seed(0))
    packing, whole = packed(weight, block_size=64)
    shown = packing.unpack(whole, torch.bfloat16)
    monkeypatch.setattr("hayless.methods.quantize.nf4.blocks._AT_ONCE", 4096)
    _, parts = packed(weight, block_size=64)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    assert torch.equal(packing.unpack(parts, torch.bfloat16), shown)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (3, 5, 7), (0, 4, 3), (6, 33, 17)])
def test_layers_are_plain_ones_of_what_they_show(
    dtype: torch.dtype, conv: bool, rows: int, inputs: int, outputs: int
) -> None:
    torch.manual_seed(0)
    module = (Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs)).to(dtype)
    config = NF4Config(block_size=32)
    packing = packing_of(tuple(module.weight.shape), config, Layout.CONV1D if conv else Layout.LINEAR)
    weight = matrices_of(module.weight.detach(), packing.form)
    pieces = pack_blocks(weight, packing, config)
    shown = packing.unpack(pieces, dtype)[0]
    install(module, "weight", packing, pieces)
    assert torch.equal(module.weight.T if conv else module.weight, shown)
    x = torch.randn(2, rows, inputs, dtype=dtype, requires_grad=True)
    plain_x = x.detach().clone().requires_grad_()
    found, expected = module(x), nn.functional.linear(plain_x, shown, module.bias)
    towards = torch.randn_like(found)
    found.backward(towards)
    expected.backward(towards)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(x.grad, plain_x.grad)


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in tiny.NAMES), ("llama", {"type": "int4"}), ("mixtral", {"type": "fp4", "double": False})],
)
def test_the_structure_is_the_predicted_one_and_comes_back(name: str, options: dict[str, Any]) -> None:
    model, config = tiny.model(name), configure("nf4", **options)
    apply(model, [config])
    check_held(model, predicted(model, [config]))
    other = tiny.model(name, seed=1)
    method_of(config).load().restore(other, config)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(copy.deepcopy(model)))


def test_tables_and_heads_can_be_packed() -> None:
    model, config = tiny.model("llama"), configure("nf4", targets=("embedding", "head"))
    apply(model, [config])
    check_held(model, predicted(model, [config]))
    ids = torch.tensor([[0, 95, 3]])
    table = model.get_input_embeddings()
    assert torch.equal(table(ids), table.weight[ids])


def test_casts_leave_scales_in_float32() -> None:
    model, config = tiny.model("llama"), configure("nf4")
    apply(model, [config])
    before = {name: tensor.clone() for name, tensor in model.named_buffers() if "_absmax" in name or "_offset" in name}
    model = model.to(torch.bfloat16)
    assert len(before) == 4 * 14
    assert all(torch.equal(model.get_buffer(name), tensor) for name, tensor in before.items())
    assert model.model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    check_held(model, predicted(model, [config]))


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_gradients_pass_through(name: str) -> None:
    model = tiny.model(name)
    apply(model, [configure("nf4")])
    found = losses(model, steps=3)
    assert found[-1] < found[0]


def test_wrong_requests() -> None:
    for options in ({"block_size": 48}, {"type": "nf3"}, {"double": 2}, {"blocksize": 64}):
        with pytest.raises(RequestError, match=next(iter(options))):
            configure("nf4", **options)
    packing, pieces = packed(torch.randn(4, 64))
    disk = packing.to_disk(pieces, torch.float32)
    with pytest.raises(NotSupported, match="quant_map"):
        packing.from_disk({**disk, "weight.quant_map": disk["weight.quant_map"] * 0.5}, "w")


def test_a_compiled_block_has_one_graph_and_keeps_no_unpacked_matrix() -> None:
    model = tiny.model("llama")
    apply(model, [configure("nf4"), configure("lora", rank=2)])
    compiles = CompileCounterWithBackend("aot_eager")
    kept: list[tuple[int, ...]] = []
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        x = torch.randn(2, 7, 32, requires_grad=True)
        position = model.model.rotary_emb(x, torch.arange(7)[None])
        out = x
        with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each.shape) or each, lambda each: each):
            for block in model.model.layers:
                run = torch.compile(block.forward, backend=compiles, fullgraph=True) if compiled else block.forward
                out = run(out, position_embeddings=position, attention_mask=None)
        out.square().sum().backward()
        gradients.append([out, x.grad])
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)
    assert compiles.frame_count == 1, "blocks share a compilation"
    assert not {(32, 32), (16, 32), (48, 32), (32, 48)} & {tuple(shape) for shape in kept}
