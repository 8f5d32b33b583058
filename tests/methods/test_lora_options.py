"""LoRA's kin: ranks by module, DoRA, starts from singular vectors, modules that train whole, LoRA+."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure, method_of
from hayless.methods.adapters.lora import layer, reference
from hayless.methods.adapters.lora.config import LoraConfig
from hayless.methods.common.trained_modules import trained_module
from hayless.methods.optimizers.adamw import AdamWConfig
from hayless.methods.optimizers.standard import AdamW
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from hayless.train.precision import trainables
from hayless.train.updater import Updater
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted

LORA = method_of(configure("lora")).load()
LAYER = {"llama": "model.layers.1.mlp.up_proj", "gpt2": "h.1.mlp.c_fc"}
OPTIONS: dict[str, dict[str, Any]] = {
    "ranks": {"ranks": {"LAYER": 2, "o": 5, "blocks": 4}, "alphas": {"o": 7.5}, "rslora": True},
    "dora": {"dora": True, "rank": 3},
    "pissa": {"initial": "pissa", "rank": 4, "alpha": 6},
    "pissa rslora": {"initial": "pissa", "rank": 4, "alpha": 6, "rslora": True, "ranks": {"LAYER": 2}},
    "whole": {"whole": ("norm",), "targets": ("attention",)},
    "all": {"dora": True, "initial": "pissa", "ranks": {"LAYER": 2}, "whole": ("norm",), "rate_ratio": 16.0},
}


def config_of(name: str, options: str, **more: Any) -> Any:
    found = OPTIONS[options] | more
    if "ranks" in found:
        found["ranks"] = {key.replace("LAYER", LAYER[name]): value for key, value in found["ranks"].items()}
    return configure("lora", **found)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LAYER)
def test_as_predicted_without_effect_at_first_and_in_files_that_peft_reads(
    name: str, options: str, tmp_path: Path
) -> None:
    model = tiny.model(name)
    before, weights = logits(model), {key: value.clone() for key, value in model.state_dict().items()}
    config = config_of(name, options)
    apply(model, [config])
    ledger = predicted(model, [config])
    check_held(model, ledger)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    losses(model, steps=3)
    moved = {key for key, value in weights.items() if not torch.equal(model.state_dict()[key], value)}
    assert bool(moved) == bool(config.whole) and all("norm" in key or "ln_" in key for key in moved)
    after = logits(model)
    assert not torch.allclose(after, before, atol=1e-3)

    save_model(tiny.model(name), tmp_path / "base")
    save_model(model, tmp_path / "ours", base=tmp_path / "base")
    assert (tmp_path / "ours/adapter_model.safetensors").stat().st_size == ledger.file_bytes()["adapter"]
    close = {"rtol": 1e-4, "atol": 2e-5}
    theirs = peft.PeftModel.from_pretrained(tiny.model(name), tmp_path / "ours").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch(model)).logits, after, **close)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        read = LORA.read(json.loads((tmp_path / folder / "adapter_config.json").read_text()))
        again = tiny.model(name)
        LORA.restore(again, read)
        LORA.load(again, read, load_file(tmp_path / folder / "adapter_model.safetensors"))
        torch.testing.assert_close(logits(again), after, **close)
        LORA.remove(again, read)
        assert torch.equal(logits(again), before)
    save_model(model, tmp_path / "whole")
    torch.testing.assert_close(logits(load_model(tmp_path / "whole")), after, **close)

    LORA.merge(model, config)
    torch.testing.assert_close(logits(model), after, rtol=1e-3, atol=1e-4)
    assert model.state_dict().keys() == weights.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("conv", [False, True])
def test_dora_is_the_papers(conv: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = (Conv1D(5, 7) if conv else nn.Linear(7, 5)).to(dtype)
    nn.init.normal_(module.bias)
    config = LoraConfig(rank=3, alpha=4, dora=True)
    layer.attach(module, 7, 5, config)
    for tensor in (module.lora_A.weight, module.lora_B.weight, module.lora_magnitude_vector):
        nn.init.normal_(tensor)
    module.weight.requires_grad_(False)
    x = torch.randn(2, 4, 7, dtype=dtype, requires_grad=True)
    towards = torch.randn(2, 4, 5, dtype=dtype)
    found = module(x)
    found.backward(towards)
    same = [x, module.bias, module.lora_A.weight, module.lora_B.weight, module.lora_magnitude_vector]
    wide = [tensor.detach().double().requires_grad_() for tensor in same]
    w0 = module.weight.detach().double()
    expected = reference.dora(wide[0], w0.T if conv else w0, *wide[1:], config.scaling)
    expected.backward(towards.double())
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype is torch.float32 else {"rtol": 4e-2, "atol": 0.3}
    torch.testing.assert_close(found.double(), expected, **close)
    for ours, theirs in zip(same, wide, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, **close)


def test_pissa_trains_the_largest_singular_vectors_and_leaves_the_base() -> None:
    model = tiny.model("llama")
    apply(model, [configure("lora", initial="pissa", rank=4, targets="q")])
    module = model.model.layers[0].self_attn.q_proj
    largest = torch.linalg.svdvals(module.weight)[:4]
    product = 4 * module.lora_B.weight @ module.lora_A.weight  # 16 / 4
    torch.testing.assert_close(torch.linalg.svdvals(product)[:4], largest)
    torch.testing.assert_close(torch.linalg.svdvals(module.weight - product)[0], torch.linalg.svdvals(module.weight)[4])


def test_embeddings_and_heads_train_whole_and_both_kinds_of_file_are_read(tmp_path: Path) -> None:
    theirs = peft.get_peft_model(
        tiny.model("llama"),
        peft.LoraConfig(
            r=4,
            target_modules=["q_proj", "up_proj"],
            use_dora=True,
            rank_pattern={"layers.1.mlp.up_proj": 2},
            alpha_pattern={"q_proj": 3},
            modules_to_save=["embed_tokens", "lm_head", "norm"],
        ),
    )
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    config = LORA.read(json.loads((tmp_path / "adapter_config.json").read_text()))
    model = tiny.model("llama")
    LORA.restore(model, config)
    LORA.load(model, config, load_file(tmp_path / "adapter_model.safetensors"))
    check_held(model, predicted(tiny.model("llama"), [config]))
    with torch.no_grad():
        torch.testing.assert_close(logits(model), theirs.eval()(**batch(model)).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(NotSupported, match="DoRA"):
        trained_module(tmp_path)


def test_b_learns_faster_and_reads_its_rate_from_the_record() -> None:
    model = tiny.model("llama")
    apply(model, [configure("lora", rate_ratio=16, targets="q")])
    found = trainables(model)
    assert {item.rate for item in found if "lora_B" in item.name} == {16.0}
    assert {item.rate for item in found if "lora_B" not in item.name} == {1.0}
    updater = Updater(found, found, AdamW, AdamWConfig(learning_rate=1e-3, weight_decay=0.0))
    start = {item.name: item.tensor.detach().clone() for item in found}
    for item in found:
        item.tensor.grad = torch.ones_like(item.tensor)
    updater.begin(0.5, None)
    assert updater.rate() == pytest.approx(5e-4)
    updater.step(updater.norm())
    for item in found:
        # Adam's first step is the learning rate itself.
        step = (start[item.name] - item.tensor).abs().mean().item()
        assert step == pytest.approx(5e-4 * item.rate, rel=1e-3)


def test_a_packed_base_takes_dora_and_singular_starts() -> None:
    model = tiny.model("llama")
    packed = [configure("kmeans", bits=4), configure("lora", rank=2, dora=True, initial="pissa")]
    apply(model, packed[:1])
    before = logits(model)
    apply(model, packed[1:])
    check_held(model, predicted(model, packed))
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    losses(model, steps=2)
    assert not torch.allclose(logits(model), before, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ranks": {"q_porj": 2}}, "q_proj"),
        ({"ranks": {"v": 2}, "targets": "q"}, r"lora\.ranks names v, which is no target"),
        ({"alphas": {"v": 2}, "targets": "q"}, r"lora\.alphas names v"),
        ({"ranks": {"q": 33}}, "1 to 32"),
        ({"initial": "pissa", "rank": 9}, r"1 to 8.*\n.*twice the rank"),
        ({"whole": "nrm"}, "norm"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    model = tiny.model("llama")
    for attempt in (lambda c: apply(model, [c]), lambda c: predicted(model, [c])):
        with pytest.raises(RequestError, match=said):
            attempt(configure("lora", **options))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_train_whole_is_refused_by_name() -> None:
    with pytest.raises(NotSupported, match="tied"):
        apply(tiny.model("gpt2"), [configure("lora", whole="embedding")])
    model = tiny.model("llama")
    apply(model, [configure("kmeans", targets="embedding")])
    with pytest.raises(NotSupported, match=r"packed"):
        apply(model, [configure("lora", whole="embedding")])
    with pytest.raises(NotSupported, match=r"packed"):
        predicted(tiny.model("llama"), [configure("kmeans", targets="embedding"), configure("lora", whole="embedding")])
