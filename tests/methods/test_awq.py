"""AWQ: scales against the paper's formula, folding that leaves a model as it is, clipping, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hayless.core.ledger import Layout
from hayless.core.registry import configure
from hayless.methods.common.calibrated import dims_of_model, stages
from hayless.methods.common.integer_packing import (
    IntegerPacking,
    in_groups,
    nearest,
    out_of_groups,
    rounded,
    values_of,
)
from hayless.methods.common.integers import IntegerFormat
from hayless.methods.quantize.awq.folding import source_of
from hayless.methods.quantize.awq.reference import search as searched
from hayless.methods.quantize.awq.search import Reader, output_loss, search
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import Context, apply
from tests import tiny
from tests.methods.running import check_held, logits, predicted
from tests.methods.test_gptq import text


def form(rows: int, columns: int, bits: int = 3) -> IntegerFormat:
    return IntegerFormat(shape=(rows, columns), layout=Layout.LINEAR, bits=bits, group_size=32, symmetric=False)


def test_scales_are_those_of_the_papers_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 80, generator=generator) * torch.rand(80, generator=generator).pow(3) * 10
    weight = torch.randn(12, 80, generator=generator)

    def quantized(scaled: torch.Tensor) -> torch.Tensor:
        return IntegerPacking(form(12, 80)).unpack(rounded(scaled[None], form(12, 80)), torch.float32)[0]

    expected, errors = searched(x, weight, quantized, 20)
    reader = Reader(weight, x.T @ x, form(12, 80), torch.float32)
    found = search([reader], x.abs().mean(dim=0), torch.arange(80), 20)
    torch.testing.assert_close(found, expected)
    assert float(reader.error(found)) == pytest.approx(min(errors), rel=1e-4)
    assert min(errors) < 0.7 * errors[0]


def test_scales_by_weights_are_tried_beside_those_by_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 64, generator=generator)
    weight = torch.randn(12, 64, generator=generator)
    weight[:, ::8] *= 0.1
    reader = Reader(weight, x.T @ x, form(12, 64), torch.float32)
    seen, channels = x.abs().mean(dim=0), torch.arange(64)
    alone, both = (search([reader], seen, channels, 10, by_weights=by_weights) for by_weights in (False, True))
    assert float(reader.error(both)) < float(reader.error(alone))
    groups = weight.abs().view(12, 2, 32)
    own = (groups / groups.amax(-1, keepdim=True)).view(12, 64).mean(0)
    (only,) = {float(reader.error(search([reader], seen, channels, 1, by_weights=True)))}
    scales = 1 / (own + 1e-4)
    balanced = scales / (scales.max() * scales.min()).sqrt()
    assert only == pytest.approx(min(float(reader.error(balanced)), float(reader.error(torch.ones(64)))), rel=1e-4)


def test_queries_and_keys_are_clipped_unless_they_are_left_whole() -> None:
    errors = []
    for clip_attention in (True, False):
        model = tiny.model("llama")
        config = configure("awq", bits=3, group_size=32, clip_attention=clip_attention)
        (change,) = apply(model, [config], Context(calibration=text()))
        errors.append(change.figures)
    clipped, whole = errors
    first = "output_error/model.layers.0.self_attn"
    for name in ("q_proj", "k_proj"):
        assert clipped[f"{first}.{name}.weight"] < whole[f"{first}.{name}.weight"]
    assert clipped[f"{first}.v_proj.weight"] == whole[f"{first}.v_proj.weight"]


def test_channels_that_are_shared_get_one_scale() -> None:
    x = torch.randn(300, 64) * torch.rand(64) * 5
    channels = torch.arange(16).view(4, 4).repeat_interleave(4, dim=0).flatten()
    readers = [Reader(torch.randn(8, 64), x.T @ x, form(8, 64), torch.float32) for _ in range(2)]
    assert search(readers, x.abs().mean(dim=0), channels, 7).shape == (16,)


def test_the_loss_of_a_group_is_that_of_its_own_columns() -> None:
    x, weight = torch.randn(200, 80), torch.randn(6, 80)
    loss = output_loss(x.T @ x, form(6, 80))
    difference = weight - out_of_groups(in_groups(weight, form(6, 80)).round(), form(6, 80), 6)
    found = loss(in_groups(difference, form(6, 80)))
    for group in range(3):
        columns = slice(32 * group, 32 * group + 32)
        torch.testing.assert_close(
            found[:, group], (difference[:, columns] @ x[:, columns].T).square().sum(1), rtol=1e-4, atol=1e-3
        )
    plain, clipped = (nearest(weight, form(6, 80), torch.float32, of) for of in (None, loss))
    lost = [
        loss(values_of(in_groups(codes.codes, form(6, 80)), codes.scale, codes.zero) - in_groups(weight, form(6, 80)))
        for codes in (plain, clipped)
    ]
    assert (lost[1] <= lost[0]).all() and lost[1].sum() < lost[0].sum()


@pytest.mark.parametrize("name", tiny.CAUSAL)
def test_folding_leaves_the_model_as_it_is(name: str) -> None:
    model = tiny.model(name)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter) / 4
    before = logits(model)
    found = {}
    for layer in range(2):
        for stage in stages(dims_of_model(model)):
            source = source_of(model, stage, layer)
            found[stage.readers] = isinstance(source, str)
            if not isinstance(source, str):
                matrices = 4 if source.apart else 1
                source.fold(torch.rand(matrices, int(source.channels.max()) + 1) + 0.5)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    left_out = {readers[0].value for readers, left in found.items() if left}
    expected = {"gpt2": {"down"}, "gpt_neox": {"down"}, "gpt_neox-tied": {"down"}, "opt-350m": {"q", "up"}}
    assert left_out == expected.get(name, set())
    weights = {key: value for key, value in model.state_dict().items() if value.ndim > 1}
    fresh = tiny.model(name).state_dict()
    assert any(not torch.equal(value, fresh[key]) for key, value in weights.items())


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "opt-350m", "gpt_neox", "mixtral"])
def test_a_model_is_as_predicted_and_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model, config = tiny.model(name), configure("awq", bits=4, group_size=32)
    before = logits(model)
    (change,) = apply(model, [config], Context(calibration=text()))
    check_held(model, predicted(model, [config]))
    assert (logits(model) - before).norm() < 0.3 * before.norm()
    reasons = set(change.skipped.values())
    expected = {"gpt2": "gelu_new stands", "gpt_neox": "gelu stands", "opt-350m": "added to the block's output"}
    assert all(expected[name] in reason for reason in reasons) and bool(reasons) == (name in expected)
    save_model(model, tmp_path / "model")
    assert torch.equal(logits(load_model(tmp_path / "model")), logits(model))


def test_a_source_that_is_packed_or_has_a_branch_is_left_alone() -> None:
    model = tiny.model("llama")
    apply(model, [configure("uniform", targets=("v", "gate"))])
    (change,) = apply(model, [configure("awq", targets=("q", "o", "up", "down"))], Context(calibration=text()))
    said = {path.split(".")[-2]: reason for path, reason in change.skipped.items()}
    assert "v_proj is packed already" in said["q_proj"] and "v_proj is packed already" in said["o_proj"]
    assert "gate_proj is packed already" in said["up_proj"] and "down_proj" not in said
    model = tiny.model("llama")
    apply(model, [configure("lora", targets="k")])
    before = logits(model)
    (change,) = apply(model, [configure("awq", bits=8, targets="q")], Context(calibration=text()))
    assert all("k_proj has a branch" in reason for reason in change.skipped.values()) and change.skipped
    torch.testing.assert_close(logits(model), before, rtol=0.1, atol=0.02)
