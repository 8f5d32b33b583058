"""Palettized models: layers against the reference, structure against the prediction, and what must be refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from hayless.core.errors import HaylessError, NotSupported, RequestError
from hayless.core.ledger import Layout
from hayless.core.registry import configure, method_of
from hayless.kernels.packed.bits import pack, unpack
from hayless.methods.common.packing import matrices_of
from hayless.methods.quantize.kmeans import reference
from hayless.methods.quantize.kmeans.config import KMeansConfig
from hayless.methods.quantize.kmeans.form import PaletteFormat
from hayless.methods.quantize.kmeans.palette import Palette, clustered, pack_palette
from hayless.model.packing import install
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted

CASES = [(name, 3, 5) for name in tiny.NAMES]
CASES += [(name, *kind) for name in ("llama", "gpt2", "mixtral") for kind in ((4, None), (8, 1), (1, 64))]


@pytest.mark.parametrize(("name", "bits", "group_size"), CASES)
def test_the_structure_is_the_predicted_one(name: str, bits: int, group_size: int | None) -> None:
    model = tiny.model(name)
    config = configure("kmeans", bits=bits, group_size=group_size, iterations=3)
    elements = predicted(model, []).parameters
    apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    assert ledger.parameters == elements


@pytest.mark.parametrize("name", tiny.NAMES)
def test_file_bytes_are_exact(name: str, tmp_path: Path) -> None:
    model = tiny.model(name)
    config = configure("kmeans", bits=5, group_size=3, iterations=3, targets="attention")
    apply(model, [config])
    shared: dict[int, str] = {}
    for key, value in model.state_dict().items():
        shared.setdefault(value.data_ptr(), key)
    kept = {key: model.state_dict()[key] for key in shared.values()}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    size = (tmp_path / "model.safetensors").stat().st_size
    assert predicted(model, [config]).file_bytes() == {"model": size}


@pytest.mark.parametrize("name", tiny.NAMES)
def test_an_empty_copy_restored_and_loaded_computes_the_same(name: str) -> None:
    model = tiny.model(name)
    config = configure("kmeans", bits=3, group_size=7, iterations=3)
    apply(model, [config])
    other = tiny.model(name, seed=1)
    method_of(config).load().restore(other, config)
    check_held(other, predicted(model, [config]))
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))
    assert torch.equal(logits(copy.deepcopy(model)), logits(model))


@pytest.mark.parametrize("name", tiny.NAMES)
def test_a_model_computes_with_the_weights_that_its_modules_show(name: str) -> None:
    model, plain = tiny.model(name), tiny.model(name)
    apply(model, [configure("kmeans", bits=4, group_size=3, iterations=3)])
    with torch.no_grad():
        for path, parameter in plain.named_parameters():
            owner, _, own_name = path.rpartition(".")
            parameter.copy_(getattr(model.get_submodule(owner), own_name))
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (3, 5, 7), (0, 4, 3), (6, 33, 17)])
def test_linear_layers_are_the_reference(dtype: torch.dtype, conv: bool, rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    module = (Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs)).to(dtype)
    nn.init.normal_(module.bias)
    weight = module.weight.detach().T if conv else module.weight.detach()
    config = KMeansConfig(bits=3)
    layout = Layout.CONV1D if conv else Layout.LINEAR
    palette = Palette(PaletteFormat(shape=tuple(module.weight.shape), layout=layout, bits=3, group_size=outputs))
    codebook, codes = clustered(weight[None], palette.form, config)
    install(module, "weight", palette, {"codes": pack(codes, 3), "codebook": codebook})
    x = torch.randn(2, rows, inputs, dtype=dtype, requires_grad=True)
    expected_x, expected_bias = x.detach().clone().requires_grad_(), module.bias.detach().clone().requires_grad_()
    expected = reference.linear(expected_x, codes[0], codebook[0], expected_bias)
    found = module(x)
    towards = torch.randn_like(found)
    found.backward(towards)
    expected.backward(towards)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 1.6e-2, "atol": 1.6e-2}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(x.grad, expected_x.grad, **tolerance)
    torch.testing.assert_close(module.bias.grad, expected_bias.grad, **tolerance)
    shown = module.weight.T if conv else module.weight
    assert torch.equal(shown, codebook[0][codes[0].long()]) and shown.shape == weight.shape


@pytest.mark.parametrize("layout", [Layout.LINEAR, Layout.CONV1D, Layout.EXPERTS, Layout.TABLE])
@pytest.mark.parametrize("group_size", [1, 3, 5])
def test_a_group_is_some_output_channels_of_one_matrix(layout: Layout, group_size: int) -> None:
    torch.manual_seed(0)
    shape = {Layout.EXPERTS: (2, 5, 4), Layout.CONV1D: (4, 5)}.get(layout, (5, 4))
    weight = torch.randn(shape)
    config = KMeansConfig(bits=1, group_size=group_size)
    palette = Palette(PaletteFormat(shape=shape, layout=layout, bits=1, group_size=group_size))
    matrices = matrices_of(weight, palette.form)
    pieces = pack_palette(matrices, palette, config)
    codebook, shown = pieces["codebook"], palette.unpack(pieces, torch.float32)
    number = 0
    for matrix, approximated in zip(matrices, shown, strict=True):
        for first in range(0, 5, group_size):
            group = approximated[first : first + group_size]
            alone, index = reference.lloyd(
                matrix[first : first + group_size].reshape(-1, 1), codebook[number, :, None], 50
            )
            torch.testing.assert_close(group.reshape(-1), alone[index, 0])
            number += 1
    assert number == len(codebook)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 8)])
def test_looking_up_gives_each_index_its_value(bits: int, shape: tuple[int, int]) -> None:
    codes = torch.randint(0, 2**bits, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codebook = torch.randn(1, 2**bits)
    palette = Palette(PaletteFormat(shape=shape, layout=Layout.LINEAR, bits=bits, group_size=shape[0]))
    found = palette.unpack({"codes": pack(codes, bits), "codebook": codebook}, torch.float32)
    assert torch.equal(found, codebook[:, codes.long()])


def test_an_embedding_looks_up_rows_only() -> None:
    torch.manual_seed(0)
    module = nn.Embedding(11, 5)
    palette = Palette(PaletteFormat(shape=(11, 5), layout=Layout.TABLE, bits=3, group_size=4))
    pieces = pack_palette(module.weight.detach()[None], palette, KMeansConfig(bits=3, group_size=4))
    install(module, "weight", palette, pieces)
    ids = torch.tensor([[0, 10, 3], [3, 7, 1]])
    assert torch.equal(module(ids), module.weight[ids])


@pytest.mark.parametrize("name", ["llama", "gemma", "opt", "mixtral", "gpt2"])
def test_embedding_head_and_router_can_be_packed(name: str) -> None:
    model = tiny.model(name) if name not in ("gemma", "opt", "gpt2") else _untied(name)
    targets = {"llama": ("embedding", "head"), "mixtral": ("router", "blocks"), "opt": ("position", "embedding")}
    config = configure("kmeans", bits=8, targets=targets.get(name, ("embedding", "head")))
    before = logits(model)
    apply(model, [config])
    check_held(model, predicted(model, [config]))
    torch.testing.assert_close(logits(model), before, rtol=0.2, atol=0.02)


def _untied(name: str) -> torch.nn.Module:
    config = tiny.config(name)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    import transformers

    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["gpt2", "llama-tied", "t5"])
@pytest.mark.parametrize("target", ["embedding", "head"])
def test_tied_tables_are_refused_by_name(name: str, target: str) -> None:
    model = tiny.model(name)
    before = copy.deepcopy(model.state_dict())
    config = configure("kmeans", targets=("blocks", target))
    for attempt in (lambda: apply(model, [config]), lambda: predicted(model, [config])):
        with pytest.raises(HaylessError, match=r"tied"):
            attempt()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(bad: float) -> None:
    model = tiny.model("llama")
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = bad
    with pytest.raises(RequestError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        apply(model, [configure("kmeans")])
    assert isinstance(model.model.layers[0].self_attn.q_proj.weight, nn.Parameter)


def test_packing_twice_is_refused_and_other_roles_are_not() -> None:
    model = tiny.model("mixtral")
    first = configure("kmeans", bits=2, targets="gate_up")
    second = configure("kmeans", bits=5, targets=("attention", "down"))
    apply(model, [first])
    apply(model, [second])
    check_held(model, predicted(model, [first, second]))
    logits(model)
    with pytest.raises(RequestError, match="packed again"):
        apply(model, [configure("kmeans", targets="down")])
    with pytest.raises(NotSupported, match="not an ordinary parameter"):
        method_of(second).load().apply(model, second, None)
    with pytest.raises(RequestError, match="packed"):
        predicted(model, [first, first])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 0}, "bits"),
        ({"bits": 9}, "bits"),
        ({"bits": 3.5}, "bits"),
        ({"group_size": 0}, "group_size"),
        ({"targets": ("atention",)}, "attention"),
        ({"targets": ()}, "at least one"),
        ({"group": 4}, "group_size"),
    ],
)
def test_wrong_options_say_what_is_allowed(options: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        configure("kmeans", **options)


def test_a_role_the_model_lacks_is_named_with_those_it_has() -> None:
    with pytest.raises(RequestError, match="qkv"):
        apply(tiny.model("gpt2"), [configure("kmeans", targets=("q",))])


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "t5"])
def test_gradients_pass_through_and_the_rest_trains(name: str) -> None:
    model = tiny.model(name)
    apply(model, [configure("kmeans", bits=2)])
    codes = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("_codes")}
    found = losses(model, steps=8)
    assert found[-1] < found[0]
    assert codes and all(torch.equal(buffer, model.get_buffer(name)) for name, buffer in codes.items())


@pytest.mark.parametrize(("name", "matrix"), [("llama", 1536), ("gpt2", 4096), ("mixtral", 12288)])
def test_nothing_dense_is_kept_for_the_backward_pass(name: str, matrix: int) -> None:
    def saved(model: nn.Module) -> set[int]:
        sizes: set[int] = set()
        model.requires_grad_(False)
        model.get_input_embeddings().requires_grad_(True)
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.add(x.numel()) or x, lambda x: x):
            model.train()(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
        return sizes

    model = tiny.model(name)
    assert matrix in saved(model)
    apply(model, [configure("kmeans")])
    assert matrix not in saved(model)


def test_autocast_and_bfloat16_run() -> None:
    model = tiny.model("llama")
    apply(model, [configure("kmeans")])
    inputs = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert model.get_input_embeddings().weight.grad.dtype is torch.float32
    model = model.to(torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype is torch.bfloat16
    assert logits(model).isfinite().all()


def test_figures_are_those_of_the_tensors() -> None:
    model, plain = tiny.model("gpt2"), tiny.model("gpt2")
    (change,) = apply(model, [configure("kmeans", bits=2, group_size=16)])
    squared, count, largest, packed = 0.0, 0, 0.0, 0
    for path in change.changed:
        module = model.get_submodule(path)
        error = (module.weight - plain.get_submodule(path).weight.detach()).double()
        assert change.figures[f"mean_squared_error/{path}.weight"] == pytest.approx(float(error.square().mean()))
        squared, count = squared + float(error.square().sum()), count + error.numel()
        largest = max(largest, float(error.abs().max()))
        packed += module.weight_codes.nbytes + module.weight_codebook.nbytes
        assert torch.equal(unpack(module.weight_codes, 2, error.numel()).max(), torch.tensor(3, dtype=torch.uint8))
    assert change.figures["mean_squared_error"] == pytest.approx(squared / count)
    assert change.figures["largest_error"] == pytest.approx(largest)
    assert change.figures["bytes_after"] == packed and change.figures["bytes_before"] == count * 4


def test_the_same_model_packs_to_the_same_bits() -> None:
    one, other = tiny.model("mixtral"), tiny.model("mixtral")
    for model in (one, other):
        apply(model, [configure("kmeans", bits=5, group_size=9)])
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
