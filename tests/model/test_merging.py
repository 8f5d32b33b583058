"""Adapters folded into packed weights, both ways, and what that costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hayless.core.errors import NotSupported
from hayless.core.registry import configure, method_of
from hayless.measure.files import file_bytes
from hayless.model.load import load_model
from hayless.model.merging import dequantize, merge_adapters
from hayless.model.save import save_model
from hayless.model.transform import Context, apply, record
from tests import tiny
from tests.methods.running import check_held, logits, predicted
from tests.model.saving import check_same

NF4, KMEANS = configure("nf4"), configure("kmeans", bits=4, iterations=5)
ADAPTERS = {
    "lora": configure("lora", rank=2, targets=("attention",)),
    "ia3": configure("ia3"),
}


def adapted(name: str, base: object, adapter: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A packed model with an adapter that does something."""
    model = tiny.model(name).to(dtype)
    apply(model, [base, ADAPTERS[adapter]])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("base", "adapter"), [(NF4, "lora"), (KMEANS, "lora"), (NF4, "ia3")])
def test_into_an_ordinary_model(name: str, base: object, adapter: str, tmp_path: Path) -> None:
    model = adapted(name, base, adapter)
    before = logits(model)
    (change,) = merge_adapters(model, "dequantize")
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert not record(model) and change.figures["change_norm"] > 0
    assert change.figures["error_norm"] <= 1e-6 * change.figures["change_norm"]
    check_held(model, predicted(model, []))
    save_model(model, tmp_path / "model")
    check_same(model, load_model(tmp_path / "model"))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(("base", "adapter"), [(NF4, "lora"), (KMEANS, "lora"), (NF4, "ia3")])
def test_into_packed_weights(name: str, base: object, adapter: str, tmp_path: Path) -> None:
    model, plain = adapted(name, base, adapter), adapted(name, base, adapter)
    untouched = {key: value.clone() for key, value in model.state_dict().items() if "down" in key or "c_fc" in key}
    merge_adapters(plain, "dequantize")
    expected, sums = tiny.model(name), plain.state_dict()
    expected.load_state_dict(sums)
    method_of(base).load().apply(expected, base, Context())
    (change,) = merge_adapters(model, "requantize")
    assert record(model) == [base]
    check_held(model, predicted(model, [base]))
    error = 0.0
    for path in change.changed:
        module, packed = model.get_submodule(path), expected.get_submodule(path)
        assert torch.equal(module.weight, packed.weight)
        error += float((module.weight - sums[f"{path}.weight"]).square().sum())
    assert change.figures["error_norm"] == pytest.approx(error**0.5, rel=1e-4)
    if adapter == "lora":
        assert untouched and all(torch.equal(model.state_dict()[key], value) for key, value in untouched.items())
    save_model(model, tmp_path / "model")
    assert file_bytes(tmp_path / "model").weights == predicted(model, [base]).file_bytes()["model"]
    check_same(model, load_model(tmp_path / "model"))


def test_in_bfloat16_sums_are_made_in_float32() -> None:
    model, plain = adapted("llama", NF4, "lora", torch.bfloat16), adapted("llama", NF4, "lora", torch.bfloat16)
    module = model.model.layers[0].self_attn.q_proj
    module.unpacked_dtype = torch.float32
    exact = module.weight + ADAPTERS["lora"].scaling * module.lora_B.weight.float() @ module.lora_A.weight.float()
    module.unpacked_dtype = torch.bfloat16
    merge_adapters(plain, "dequantize")
    assert torch.equal(plain.model.layers[0].self_attn.q_proj.weight, exact.bfloat16())
    merge_adapters(model, "requantize")
    check_held(model, predicted(model, [NF4]))
    assert module.unpacked_dtype is torch.bfloat16 and module.weight_absmax_table.dtype is torch.float32


def test_what_is_refused() -> None:
    model = adapted("llama", NF4, "lora")
    with pytest.raises(NotSupported, match="merge: requantize"):
        merge_adapters(model)
    assert record(model) == [NF4, ADAPTERS["lora"]]


def test_stacks_and_tables_become_ordinary_too() -> None:
    model = tiny.model("mixtral")
    apply(model, [configure("nf4", targets=("blocks", "embedding"))])
    before = logits(model)
    dequantize(model)
    torch.testing.assert_close(logits(model), before)
    check_held(model, predicted(model, []))
