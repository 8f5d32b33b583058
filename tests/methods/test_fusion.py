"""AdapterFusion: the paper's equations, what is trained, modules that are alike, files, packed bases, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.registry import configure, method_of
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.measure import saved as measuring
from hayless.methods.adapters.bottleneck.reference import bottleneck
from hayless.methods.adapters.fusion import reference
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import Context, apply, record
from hayless.recipe.prediction import predict
from tests import tiny
from tests.cli.models import saved
from tests.methods.running import check_held, logits, losses, predicted
from tests.recipe.running import TRAIN, quietly, recipe

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
PARALLEL = {"form": "parallel", "activation": "relu", "scaling": 2.0}
KINDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "lora": [("lora", {"rank": 2, "alpha": 6}), ("lora", {"rank": 3, "alpha": 3}), ("lora", {"rank": 2, "alpha": 2})],
    "serial": [("bottleneck", {"width": 3}), ("bottleneck", {"width": 5, "scaling": 2.0})],
    "parallel": [("bottleneck", {"width": 4, **PARALLEL}), ("bottleneck", {"width": 2, **PARALLEL})],
}
"""Modules of different ranks, widths and scalings."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, with modules of each kind for them."""
    root = tmp_path_factory.mktemp("fusion")
    for name in ("llama", "gpt2"):
        save_model(tiny.model(name), root / name / "base")
        for kind, modules in KINDS.items():
            for number, (method, options) in enumerate(modules):
                model = load_model(root / name / "base")
                apply(model, [configure(method, **options)])
                torch.manual_seed(number)
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        nn.init.normal_(parameter, std=0.2)
                save_model(model, root / name / f"{kind}{number}", base=root / name / "base")
    return root


def fused(place: Path, kind: str, **options: Any) -> Any:
    names = options.pop("names", range(len(KINDS[kind])))
    return configure("fusion", modules=tuple(str(place / f"{kind}{number}") for number in names), **options)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_it_is_as_predicted_trains_attention_alone_and_comes_back(
    folder: Path, name: str, kind: str, value: bool, tmp_path: Path
) -> None:
    place = folder / name
    model, config = load_model(place / "base"), fused(place, kind, value=value, width=None if value else 4)
    bare, ledger = logits(model), predicted(load_model(place / "base"), [config])
    (change,) = apply(model, [config])
    check_held(model, ledger)
    assert change.figures["trainable"] == ledger.trainable
    assert not torch.allclose(logits(model), bare, atol=1e-2)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    losses(model)
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    parts = ("query", "key", "value") if value else ("query", "key")
    assert moved == {key for key in before if key.endswith(tuple(f"fusion.{part}.weight" for part in parts))}
    save_model(model, tmp_path / "ours", base=place / "base")
    assert (tmp_path / "ours/adapter_model.safetensors").stat().st_size == ledger.file_bytes()["adapter"]
    assert torch.equal(logits(load_model(tmp_path / "ours")), logits(model))
    (left,) = record(model)
    method_of(left).load().remove(model, left)
    assert torch.equal(logits(model), bare) and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", tiny.NAMES)
def test_every_family_has_a_place_for_it(name: str) -> None:
    """As a saved one is rebuilt: from the modules' settings alone."""
    experts = tiny.config(name).to_dict().get("num_experts_per_tok")
    for settings in (
        {"method": "lora", "rank": 3, **({"targets": ["attention"]} if experts else {})},
        {"method": "bottleneck", "width": 3, **({"sublayers": "attention"} if experts else {})},
    ):
        model = tiny.model(name)
        bare, config = logits(model), configure("fusion", modules=(settings, {**settings}), width=5)
        part = method_of(config).load()
        part.restore(model, config)
        check_held(model, predicted(model, [config]))
        assert torch.equal(logits(model), bare), "zeros add nothing"
        part.remove(model, config)
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loras_are_fused_as_the_paper_writes_it(folder: Path, dtype: torch.dtype) -> None:
    model = load_model(folder / "llama/base").to(dtype)
    apply(model, [fused(folder / "llama", "lora", width=5)])
    place: Any = model.get_submodule("model.layers.1.mlp.up_proj")
    own = place.fusion.float()
    for part in (own.query, own.key, own.value):
        nn.init.normal_(part.weight)
    x = torch.randn(2, 3, 32, dtype=dtype, requires_grad=True)
    found, towards = place(x), torch.randn(2, 3, 48)
    found.backward(towards.to(dtype))
    wide = x.detach().double().requires_grad_()
    parts = [part.weight.detach().to(dtype).double().requires_grad_() for part in (own.query, own.key, own.value)]
    given = []
    for number, (_, options) in enumerate(KINDS["lora"]):
        alone: Any = load_model(folder / f"llama/lora{number}").get_submodule("model.layers.1.mlp.up_proj")
        a, b = (factor.weight.detach().to(dtype).double() for factor in (alone.lora_A, alone.lora_B))
        given.append(options["alpha"] / options["rank"] * (wide @ a.T @ b.T))
    value = torch.eye(48, dtype=torch.double) + parts[2]
    expected = wide @ place.weight.double().T + reference.fusion(wide, given, parts[0], parts[1], value)
    expected.backward(towards.double())
    close = {"rtol": 1e-3, "atol": 1e-3} if dtype is torch.float32 else {"rtol": 0.1, "atol": 4.0}
    torch.testing.assert_close(found.double(), expected, **close)
    for ours, theirs in zip([x, own.query.weight, own.key.weight, own.value.weight], [wide, *parts], strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, **close)


@pytest.mark.parametrize("kind", ["serial", "parallel"])
def test_bottlenecks_are_fused_as_the_paper_writes_it(folder: Path, kind: str) -> None:
    model = load_model(folder / "llama/base")
    apply(model, [fused(folder / "llama", kind)])
    mlp: Any = model.get_submodule("model.layers.0.mlp")
    (own,) = [part for name, part in mlp.down_proj.named_children() if name.endswith("fusion")]
    for part in (own.query, own.key, own.value):
        nn.init.normal_(part.weight, std=0.3)
    x = torch.randn(2, 3, 32)
    sublayer = mlp.down_proj.weight @ (F.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)).mT
    entering = x if kind == "parallel" else sublayer.mT
    given = []
    for number, (_, options) in enumerate(KINDS[kind]):
        alone: Any = load_model(folder / f"llama/{kind}{number}").get_submodule("model.layers.0.mlp.down_proj")
        (member,) = alone.children()
        pairs = [(linear.weight, linear.bias) for linear in (member.down, member.up)]
        given.append(
            bottleneck(entering, *pairs, F.relu if kind == "parallel" else F.gelu, options.get("scaling", 1.0))
        )
    value = torch.eye(32) + own.value.weight
    expected = sublayer.mT + reference.fusion(entering, given, own.query.weight, own.key.weight, value)
    torch.testing.assert_close(mlp(x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_fused_with_itself_is_itself(folder: Path, kind: str) -> None:
    place = folder / "llama"
    model = load_model(place / "base")
    apply(model, [fused(place, kind, names=(1, 1, 1))])
    torch.testing.assert_close(logits(model), logits(load_model(place / f"{kind}1")), rtol=1e-3, atol=1e-4)


def test_equal_shares_are_the_average(folder: Path) -> None:
    model, averaged = load_model(folder / "llama/base"), load_model(folder / "llama/base")
    config = fused(folder / "llama", "lora", value=False)
    apply(model, [config])
    for key, parameter in model.named_parameters():
        if key.endswith("query.weight"):
            parameter.data.zero_()
    apply(averaged, [configure("compose", modules=config.modules)])
    torch.testing.assert_close(logits(model), logits(averaged), **CLOSE)


def test_values_begin_next_to_the_identity_and_all_is_drawn_by_the_seed(folder: Path) -> None:
    drawn = []
    for seed in (0, 0, 1):
        model = load_model(folder / "llama/base")
        apply(model, [fused(folder / "llama", "lora")], Context(seed=seed))
        own: Any = model.get_submodule("model.layers.0.self_attn.q_proj.fusion")
        drawn.append(own)
    noise = drawn[0].value.weight
    assert not noise.diagonal().any() and 5e-7 < noise.std() < 2e-6 and 0.015 < drawn[0].query.weight.std() < 0.025
    assert torch.equal(drawn[0].key.weight, drawn[1].key.weight)
    assert not torch.equal(drawn[0].key.weight, drawn[2].key.weight)


@pytest.mark.parametrize("packing", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["lora", "parallel"])
def test_packed_bases_train_and_generate(folder: Path, packing: str, kind: str) -> None:
    model = load_model(folder / "llama/base")
    configs = [configure(packing, targets="blocks"), fused(folder / "llama", kind)]
    ledger = predicted(model, configs)
    apply(model, configs)
    check_held(model, ledger)
    losses(model, steps=1)
    engine = Engine(model)
    together = engine.generate([[5, 6, 7], [8, 9]], SamplingOptions(max_tokens=5))
    assert together[1].tokens == engine.generate([[8, 9]], SamplingOptions(max_tokens=5))[0].tokens
    with torch.no_grad():
        assert together[0].tokens[0] == int(model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax())


def test_a_recipe_trains_it_as_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "in_fresh_process", lambda module, request, timeout: measuring._measure(request))
    base = saved(tmp_path / "base")
    for number in range(2):
        model = load_model(base)
        apply(model, [configure("lora", rank=2)], Context(seed=number))
        save_model(model, tmp_path / f"module{number}", base=base)
    modules = [str(tmp_path / f"module{number}") for number in range(2)]
    fusing = {"apply": {"method": "fusion", "modules": modules, "width": 8}}
    measure = {"measure": {"quality": False, "prompt_tokens": 8, "decode_tokens": 12}}
    wanted = recipe(tmp_path, fusing, {"train": TRAIN}, measure, model={"path": base})
    done, _ = quietly(wanted, tmp_path / "run")
    with pytest.raises(NotSupported, match="fusion adds cannot be merged"):
        predict(recipe(tmp_path, fusing, {"train": TRAIN}, {"save": {"merge": True}}, model={"path": base}))
    for name in ("trainable_parameters", "adapter_bytes", "file_bytes"):
        assert done.receipt.measured(name) == done.receipt.figure(name).predicted
    assert record(load_model(done.folder / "model"))[0].method == "fusion"


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    place = folder / "llama"
    model = load_model(place / "base")
    for wrong, why in (
        (fused(place, "lora", names=(0,)), "attention chooses"),
        (configure("fusion", modules=(str(place / "lora0"), str(place / "serial0"))), "bottleneck and lora"),
        (configure("fusion", modules=(str(place / "serial0"), str(place / "parallel0"))), "parallel and serial"),
        (configure("fusion", modules=(str(place / "lora0"), str(place / "base"))), "no adapter_config"),
        (configure("fusion", modules=({"method": "lora"}, {"method": "lora"})), "without values"),
        (fused(folder / "gpt2", "lora"), "weights differ"),
    ):
        with pytest.raises(RequestError, match=why):
            apply(model, [wrong])
    narrow = load_model(place / "base")
    apply(narrow, [configure("lora", rank=2, targets="q")])
    save_model(narrow, tmp_path / "narrow", base=place / "base")
    with pytest.raises(NotSupported, match="different matrices"):
        apply(model, [configure("fusion", modules=(str(place / "lora0"), str(tmp_path / "narrow")))])
    assert all(parameter.requires_grad for parameter in model.parameters()) and not record(model)
    apply(model, [fused(place, "lora")])
    (left,) = record(model)
    part = method_of(left).load()
    with pytest.raises(NotSupported, match="cannot be merged"):
        part.merge(model, left)
    with pytest.raises(RequestError, match="adapter already"):
        part.restore(model, left)
    save_model(model, tmp_path / "ours", base=place / "base")
    with pytest.raises((KeyError, ValueError, TypeError), match="ADAPTER_FUSION"):
        peft.PeftModel.from_pretrained(load_model(place / "base"), tmp_path / "ours")
    found = json.loads((tmp_path / "ours/adapter_config.json").read_text())
    with pytest.raises(FileDamaged, match="width"):
        part.read({key: value for key, value in found.items() if key != "width"})
    with pytest.raises(FileDamaged, match="no module's settings"):
        part.read(found | {"modules": ["folder", "other"]})
