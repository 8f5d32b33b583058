"""Fused operations in models: the same losses and gradients to rounding, and the models handed back."""

from __future__ import annotations

import pytest
import torch
from transformers.models.llama import modeling_llama

from hayless.core.errors import NotSupported
from hayless.core.registry import configure, method_of
from hayless.methods.memory import fusing
from hayless.model.transform import apply
from tests import tiny
from tests.methods.test_offload import gradients
from tests.train import source
from tests.train.conftest import one_thread  # noqa: F401

FUSED = configure("fused_kernels")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3", "gemma", "gemma3", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_plain_ones(name: str, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model(name)
    plain = gradients(model, [], autocast=autocast)
    calls = []
    for operation in ("rms_norm", "rotary", "swiglu"):
        own = getattr(fusing, operation)
        monkeypatch.setattr(fusing, operation, lambda *a, o=operation, f=own, **k: calls.append(o) or f(*a, **k))
    fused = gradients(model, [FUSED], autocast=autocast)
    config = model.config
    layers, dense = config.num_hidden_layers, name in ("llama", "mistral", "qwen3")
    norms = layers * {"qwen3": 4, "qwen3_moe": 4, "gemma3": 6}.get(name, 2) + 1
    counted = {each: calls.count(each) for each in set(calls)}
    assert counted == {"rms_norm": norms, "rotary": 2 * layers, **({"swiglu": layers} if dense else {})}
    tolerance = 2e-2 if autocast else 1e-4
    for key, gradient in plain.items():
        assert fused[key].dtype is gradient.dtype
        assert (fused[key] - gradient).norm() <= tolerance * gradient.norm() + 1e-5, key
    assert all("forward" not in vars(module) for module in model.modules())
    assert source.same(plain, gradients(model, [], autocast=autocast))
    assert modeling_llama.apply_rotary_pos_emb.__module__ == modeling_llama.__name__


def test_branches_and_checkpoints_go_with_it() -> None:
    model = tiny.model("llama")
    apply(model, [configure("lora", rank=2)])
    memory = [FUSED, configure("checkpointing", keep="products"), configure("chunked_loss", tokens=7)]
    plain, found = gradients(model, []), gradients(model, memory)
    assert any("lora" in name for name in found) and plain.keys() == found.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox"])
def test_other_families_are_refused(name: str) -> None:
    with pytest.raises(NotSupported, match="fused_kernels"), method_of(FUSED).load().install(tiny.model(name), FUSED):
        pass
