"""LLM.int8(): layers against the paper's formula, structure against the prediction, and what must be refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hayless.core.activations import record
from hayless.core.errors import RequestError
from hayless.core.forward import RunShape
from hayless.core.ledger import Layout
from hayless.core.registry import configure, method_of
from hayless.core.work import forward_work
from hayless.kernels.int8 import plain
from hayless.methods.quantize.int8 import reference
from hayless.methods.quantize.int8.config import Int8Config
from hayless.methods.quantize.int8.form import Int8Format
from hayless.methods.quantize.int8.layer import Int8, pack_int8
from hayless.model.packing import install
from hayless.model.transform import apply
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted


def _layer(
    conv: bool, inputs: int, outputs: int, threshold: float, dtype: torch.dtype
) -> tuple[nn.Module, torch.Tensor]:
    """A layer that was packed, and its weight before, (out, in)."""
    module = (Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs)).to(dtype)
    nn.init.normal_(module.weight)
    nn.init.normal_(module.bias)
    weight = (module.weight.T if conv else module.weight).detach().clone()
    layout = Layout.CONV1D if conv else Layout.LINEAR
    packing = Int8(Int8Format(shape=tuple(module.weight.shape), layout=layout), threshold)
    install(module, "weight", packing, pack_int8(weight[None], packing, Int8Config()))
    return module, weight


def _input(rows: int, inputs: int, outliers: int, dtype: torch.dtype) -> torch.Tensor:
    """Numbers below 6, but for one of at least 6 in each of so many columns."""
    x = torch.randn(2, rows, inputs).clamp(-5.9, 5.9)
    for column in torch.randperm(inputs)[:outliers].tolist():
        x[column % 2, column % rows, column] = 6.0 + 10 * column / inputs
    return x.to(dtype)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("threshold", [6.0, 0.0])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "outliers"), [(1, 1, 1, 0), (3, 5, 7, 2), (4, 70, 33, 9), (2, 8, 5, 8)]
)
def test_layers_are_the_papers_formula(
    conv: bool, threshold: float, rows: int, inputs: int, outputs: int, outliers: int
) -> None:
    torch.manual_seed(0)
    module, weight = _layer(conv, inputs, outputs, threshold, torch.float32)
    x = _input(rows, inputs, outliers, torch.float32).requires_grad_()
    wide = x.detach().double().view(-1, inputs)
    assert len(reference.outliers(wide, threshold)) == (outliers if threshold else 0)
    expected = reference.linear(wide, weight.double(), module.bias.double(), threshold).view(2, rows, outputs)
    found = module(x)
    # Codes are the same; what is left is the rounding of float32 in scales and sums.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    towards = torch.randn_like(found)
    found.backward(towards)
    torch.testing.assert_close(
        x.grad.double(), reference.gradient(towards.double(), weight.double()), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(module.bias.grad, towards.sum((0, 1)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_the_formula_to_their_rounding(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, weight = _layer(False, 70, 33, 6.0, dtype)
    x = _input(3, 70, 4, dtype)
    expected = reference.linear(x.double().view(-1, 70), weight.double(), module.bias.double(), 6.0)
    found = module(x)
    assert found.dtype is dtype
    step = torch.finfo(dtype).eps if dtype is not torch.float64 else 1e-6
    torch.testing.assert_close(found.double().view(-1, 33), expected, rtol=step, atol=step)


def test_columns_that_lie_out_are_not_quantized() -> None:
    torch.manual_seed(0)
    module, _ = _layer(False, 64, 16, 6.0, torch.float32)
    x = torch.zeros(5, 64)
    x[:, 3], x[2, 3] = torch.tensor([0.1, 1.237, 100.0, -0.3, 0.01]), 100.0
    torch.testing.assert_close(module(x) - module.bias, x @ module.weight.T, rtol=1e-6, atol=1e-6)
    without, _ = _layer(False, 64, 16, 0.0, torch.float32)
    assert not torch.equal(without(x) - without.bias, x @ without.weight.T)


def test_outliers_do_not_widen_the_steps_of_the_others() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 64).clamp(-3, 3)
    x[:, 5] = 1000.0
    codes, scale, index = plain.quantize(x, 6.0)
    assert index.tolist() == [5] and not codes[:, 5].any()
    assert torch.equal(scale, x.abs().masked_fill(torch.arange(64) == 5, 0).amax(1)) and int(codes.max()) == 127
    crushed, scale, index = plain.quantize(x, 0.0)
    assert not len(index) and torch.equal(scale, torch.full((8,), 1000.0)) and not crushed[:, :5].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("threshold", [6.0, 0.0])
def test_what_is_no_number_stays_none(bad: float, threshold: float) -> None:
    module, _ = _layer(False, 8, 4, threshold, torch.float32)
    x = torch.ones(3, 8)
    x[1, 2] = bad
    found = module(x)
    assert not found[1].isfinite().any() and found[[0, 2]].isfinite().all()


def test_rows_of_zeros_and_no_rows() -> None:
    module, _ = _layer(False, 8, 4, 6.0, torch.float32)
    assert torch.equal(module(torch.zeros(2, 8)), module.bias.expand(2, 4))
    assert module(torch.zeros(2, 0, 8)).shape == (2, 0, 4)


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_family_is_as_predicted_and_comes_back(name: str) -> None:
    model = tiny.model(name)
    config = configure("int8")
    before, elements = logits(model), predicted(model, []).parameters
    apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    assert ledger.parameters == elements
    assert (logits(model) - before).norm() < 0.05 * before.norm()
    other = tiny.model(name, seed=1)
    method_of(config).load().restore(other, config)
    check_held(other, ledger)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(("name", "targets"), [("mixtral", ("blocks", "router")), ("llama", ("embedding", "head"))])
def test_stacks_and_tables_show_the_dequantized_weights(name: str, targets: tuple[str, ...]) -> None:
    model, plain_model = tiny.model(name), tiny.model(name)
    apply(model, [configure("int8", targets=targets)])
    packed = 0
    for path, parameter in plain_model.named_parameters():
        owner, _, own = path.rpartition(".")
        shown = getattr(model.get_submodule(owner), own)
        if not isinstance(shown, nn.Parameter):
            packed += 1
            expected = torch.stack(
                [reference.dequantized(m.double()) for m in parameter.reshape(-1, *parameter.shape[-2:])]
            )
            torch.testing.assert_close(shown.double().view_as(expected), expected, rtol=1e-6, atol=1e-9)
    assert packed == (2 if name == "llama" else 2 * 7)
    ids = torch.tensor([[0, 90], [3, 3]])
    embedding = model.get_input_embeddings()
    assert torch.equal(embedding(ids), embedding.weight[ids])


def test_scales_and_codes_keep_their_dtypes_and_autocast_is_obeyed() -> None:
    model = tiny.model("llama")
    apply(model, [configure("int8")])
    inputs = batch(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, labels=inputs["input_ids"]).loss
    loss.backward()
    assert model.get_input_embeddings().weight.grad.dtype is torch.float32
    layer = model.to(torch.bfloat16).model.layers[0].mlp.up_proj
    assert (layer.weight_codes.dtype, layer.weight_scale.dtype) == (torch.int8, torch.float32)
    assert layer.weight.dtype is torch.bfloat16 and logits(model).isfinite().all()


def test_the_rest_trains() -> None:
    model = tiny.model("gpt2")
    apply(model, [configure("int8")])
    codes = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("_codes")}
    found = losses(model, steps=8)
    assert found[-1] < found[0]
    assert codes and all(torch.equal(buffer, model.get_buffer(name)) for name, buffer in codes.items())


@pytest.mark.parametrize(("options", "said"), [({"threshold": -1}, "threshold"), ({"treshold": 6}, "threshold")])
def test_wrong_options_say_what_is_allowed(options: dict[str, float], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        configure("int8", **options)


@pytest.mark.parametrize(("device", "token_bytes"), [("cuda", 32 + 2 * 32 + 4), ("cpu", 5 * 32 + 8 * 48)])
def test_predictions_multiply_integers_and_unpack_only_backward(device: str, token_bytes: int) -> None:
    ledger = predicted(tiny.model("llama").bfloat16(), [configure("int8", targets="up")])
    run = RunShape(2, 9, device=device)  # type: ignore[arg-type]
    ops = [op for segment in record(ledger, run).segments for op in segment.ops if op.numbers]
    assert len(ops) == 2 and all(op.numbers == "int8" for op in ops)
    fixed = 48 * 32 + 5 * 32 if device == "cuda" else 0
    assert ops[0].scratch == 18 * token_bytes + fixed and ops[0].scratch_back == 2 * 48 * 32
    kernels = [kernel for kernel in forward_work(record(ledger, run)).kernels if kernel.dtype == "int8"]
    # x, the codes and scales of W, and the result.
    assert [(kernel.count, kernel.bytes) for kernel in kernels] == [(2, 2 * 18 * 32 + 48 * 32 + 4 * 48 + 2 * 18 * 48)]
