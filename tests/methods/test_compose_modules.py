"""Composing modules: identities of sums, the papers' formulas, the real peft, and what does not compose."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hayless.core.errors import FileDamaged, NotSupported, RequestError
from hayless.core.registry import configure
from hayless.measure.files import file_bytes
from hayless.methods.adapters.compose import merging
from hayless.methods.adapters.compose.merging import Part
from hayless.model.adapters import WEIGHTS
from hayless.model.load import load_model
from hayless.model.merging import merge_adapters
from hayless.model.save import save_model
from hayless.model.transform import apply, record
from hayless.recipe.prediction import predict
from tests import tiny
from tests.cli.models import saved
from tests.methods.running import batch, check_held, logits, predicted
from tests.recipe.running import quietly, recipe

SOUP = {"width": 4, "form": "parallel", "activation": "relu", "scaling": 2.0}
"""Bottlenecks that can be averaged."""
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
EVERY = ("concatenated", "separate", "svd", "ties", "dare")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base and its modules: two of rank 2, one of rank 3 on other matrices; bottlenecks."""
    folder = tmp_path_factory.mktemp("library")
    save_model(tiny.model("llama"), folder / "base")
    for seed, (name, options) in enumerate(
        {
            "one": {"rank": 2, "alpha": 6},
            "two": {"rank": 2, "alpha": 2},
            "wide": {"rank": 3, "targets": ("q", "down")},
            "soup": SOUP,
            "soup2": SOUP,
            "narrow": {**SOUP, "width": 2, "scaling": 1.0},
            "serial": {"width": 3},
            "serial2": {"width": 5, "scaling": 0.5},
        }.items()
    ):
        model = load_model(folder / "base")
        apply(model, [configure("bottleneck" if "width" in options else "lora", **options)])
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.2)
        save_model(model, folder / name, base=folder / "base")
    return folder


def composed(library: Path, *names: str, **options: Any) -> Any:
    model = load_model(library / "base")
    config = configure("compose", modules=tuple(str(library / name) for name in names), **options)
    apply(model, [config])
    return model


def deltas(model: Any) -> dict[str, Tensor]:
    """What the adapter adds to each matrix."""
    return {
        path: module.lora_B.weight.detach() @ module.lora_A.weight.detach() * record(model)[-1].scaling  # type: ignore[attr-defined]
        for path, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("how", EVERY)
def test_one_module_with_weight_one_is_itself(library: Path, how: str) -> None:
    model = composed(library, "one", weights=(1.0,), how=how, density=1.0)
    torch.testing.assert_close(logits(model), logits(load_model(library / "one")), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", EVERY)
def test_a_module_and_its_negation_are_nothing(library: Path, how: str) -> None:
    model = composed(library, "one", "one", weights=(1.0, -1.0), how=how, density=1.0)
    torch.testing.assert_close(logits(model), logits(load_model(library / "base")), rtol=1e-4, atol=1e-5)


def test_the_sum_is_the_sum_and_what_it_leaves_is_lora(library: Path, tmp_path: Path) -> None:
    model = composed(library, "one", "wide", weights=(0.5, -2.0))
    one, wide = (deltas(load_model(library / name)) for name in ("one", "wide"))
    for path, found in deltas(model).items():
        expected = 0.5 * one[path] - 2.0 * wide.get(path, torch.zeros_like(found))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (left,) = record(model)
    assert left.method == "lora" and left.rank == 5  # type: ignore[attr-defined]
    config = configure("compose", modules=(str(library / "one"), str(library / "wide")))
    check_held(model, predicted(model, [config]))
    save_model(model, tmp_path / "made", base=library / "base")
    assert torch.equal(logits(load_model(tmp_path / "made")), logits(model))
    theirs = peft.PeftModel.from_pretrained(tiny.model("llama"), tmp_path / "made").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch(model)).logits, logits(model), rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 99))
def test_sums_are_exact_or_the_nearest_of_their_rank(r1: int, r2: int, w1: float, w2: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    parts = [Part(draw(r1, 7), draw(9, r1), 0.5, w1), Part(draw(r2, 7), draw(9, r2), 2.0, w2)]
    whole = merging.total(parts)
    close = {"rtol": 1e-3, "atol": 1e-4}
    a, b = merging.concatenated(parts, 9)
    assert a.shape == (9, 7) and b.shape == (9, 9)
    torch.testing.assert_close(b @ a, whole, **close)
    a, b = merging.truncated(parts, r1 + r2)
    torch.testing.assert_close(b @ a, whole, **close)
    a, b = merging.truncated(parts, 1)
    nearest_a, nearest_b = merging.factored(whole, 1)
    torch.testing.assert_close((whole - b @ a).norm(), (whole - nearest_b @ nearest_a).norm(), **close)


def test_ties_is_the_algorithm() -> None:
    one = torch.tensor([[4.0, -1.0, 0.5, 2.0]])
    other = torch.tensor([[2.0, 3.0, -0.5, -8.0]])
    # The larger half of each is kept: (4, 0, 0, 2) and (0, 3, 0, −8). Signs: +, +, none, −.
    assert merging.ties([one, other], [1.0, 1.0], 0.5).tolist() == [[4.0, 3.0, 0.0, -8.0]]
    # All are kept: the first place has the mean of both, the others that of the winner's sign.
    assert merging.ties([one, other], [1.0, 1.0], 1.0).tolist() == [[3.0, 3.0, 0.0, -8.0]]


def test_dare_keeps_the_mean_and_is_drawn_by_the_seed() -> None:
    delta = torch.ones(300, 300)
    drawn = [merging.dare([delta], [1.0], 0.25, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert set(drawn[0].unique().tolist()) == {0.0, 4.0} and drawn[0].mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_separate_sums_a_and_b_apart(library: Path) -> None:
    model = composed(library, "one", "two", how="separate")
    one, two = (load_model(library / name).model.layers[0].self_attn.q_proj for name in ("one", "two"))
    a = (one.lora_A.weight + two.lora_A.weight) / 2
    b = (3 * one.lora_B.weight + two.lora_B.weight) / 2
    torch.testing.assert_close(deltas(model)["model.layers.0.self_attn.q_proj"], (b @ a).detach(), rtol=1e-4, atol=1e-5)


def test_what_a_task_taught_is_forgotten_by_its_negation(library: Path) -> None:
    taught = load_model(library / "one")
    merge_adapters(taught)
    apply(taught, [configure("compose", modules=(str(library / "one"),), weights=(-1.0,))])
    assert not torch.allclose(logits(load_model(library / "one")), logits(load_model(library / "base")), atol=1e-2)
    torch.testing.assert_close(logits(taught), logits(load_model(library / "base")), rtol=1e-4, atol=1e-4)
    merge_adapters(taught)
    torch.testing.assert_close(logits(taught), logits(load_model(library / "base")), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("merge", [True, "dequantize"])
def test_what_a_recipe_merges_is_predicted_so(tmp_path: Path, merge: Any) -> None:
    base = saved(tmp_path / "base")
    model = load_model(base)
    apply(model, [configure("lora", rank=2)])
    save_model(model, tmp_path / "module", base=base)
    steps = [{"apply": {"method": "compose", "modules": [str(tmp_path / "module")]}}, {"save": {"merge": merge}}]
    packed = [] if merge is True else [{"apply": {"method": "nf4", "targets": "blocks"}}]
    wanted = recipe(tmp_path, *packed, *steps, model={"path": base})
    done, _ = quietly(wanted, tmp_path / "run")
    assert file_bytes(done.folder / "model").tensors == predict(wanted).figures["file_bytes"]
    assert not record(load_model(done.folder / "model"))
    if packed:
        with pytest.raises(RequestError, match="cannot fold compose"):
            predict(recipe(tmp_path, *packed, steps[0], {"save": {"merge": True}}, model={"path": base}))


def test_an_analogy_adds_what_tells_two_tasks_apart(library: Path) -> None:
    one, two, wide = (deltas(load_model(library / name)) for name in ("one", "two", "wide"))
    for path, found in deltas(composed(library, "one", "two", "wide", weights=(1.0, -1.0, 1.0))).items():
        torch.testing.assert_close(found, one[path] - two[path] + wide.get(path, torch.zeros_like(found)), **CLOSE)


@pytest.mark.parametrize("how", ["concatenated", "separate"])
@pytest.mark.parametrize("name", ["soup", "serial2"])
def test_bottlenecks_compose_with_their_identities(library: Path, name: str, how: str) -> None:
    alone = composed(library, name, weights=(1.0,), how=how)
    torch.testing.assert_close(logits(alone), logits(load_model(library / name)), **CLOSE)
    nothing = composed(library, name, name, weights=(1.0, -1.0), how=how)
    torch.testing.assert_close(logits(nothing), logits(load_model(library / "base")), **CLOSE)
    assert [left.method for left in record(alone)] == ["bottleneck"]


@pytest.mark.parametrize("names", [("soup", "narrow"), ("serial", "serial2")])
def test_bottlenecks_beside_each_other_are_their_sum(library: Path, names: tuple[str, str], tmp_path: Path) -> None:
    model = composed(library, *names, weights=(0.5, -2.0))
    x = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))

    def given(model: Any) -> Tensor:
        with torch.no_grad():
            return model.model.layers[1].mlp(x)

    base = given(load_model(library / "base"))
    one, other = (given(load_model(library / name)) - base for name in names)
    torch.testing.assert_close(given(model), base + 0.5 * one - 2.0 * other, rtol=1e-3, atol=1e-4)
    config = configure("compose", modules=tuple(str(library / name) for name in names))
    check_held(model, predicted(model, [config]))
    save_model(model, tmp_path / "made", base=library / "base")
    assert torch.equal(logits(load_model(tmp_path / "made")), logits(model))


def test_a_soup_is_the_mean_of_weights(library: Path) -> None:
    soup, one, two = (
        dict(model.named_parameters())
        for model in (
            composed(library, "soup", "soup2", how="separate"),
            *map(load_model, (library / "soup", library / "soup2")),
        )
    )
    for name, parameter in soup.items():
        torch.testing.assert_close(parameter, (one[name] + two[name]) / 2)


def test_a_rank_too_low_says_what_it_lost(library: Path) -> None:
    model = load_model(library / "base")
    modules = (str(library / "one"), str(library / "two"))
    (change,) = apply(model, [configure("compose", modules=modules, how="svd", rank=1)])
    assert 0.1 < change.figures["lost"] < 1
    assert change.figures["trainable"] == predicted(model, record(model)).trainable


@pytest.mark.parametrize(("names", "lacking"), [(("one", "two"), "lora_B"), (("soup", "soup2"), "up.bias")])
def test_a_module_that_is_not_whole_is_refused(library: Path, tmp_path: Path, names: Any, lacking: str) -> None:
    shutil.copytree(library / names[0], tmp_path / "cut")
    tensors = load_file(tmp_path / "cut/adapter_model.safetensors")
    save_file({n: t for n, t in tensors.items() if "layers.1" in n or lacking not in n}, tmp_path / "cut" / WEIGHTS)
    model = load_model(library / "base")
    modules = (str(tmp_path / "cut"), str(library / names[1]))
    for method in ("compose", "fusion"):
        with pytest.raises(FileDamaged, match=lacking):
            apply(model, [configure(method, modules=modules)])
    assert all(parameter.requires_grad for parameter in model.parameters()) and not record(model)


def test_what_does_not_compose(library: Path, tmp_path: Path) -> None:
    for names, how, why in (
        (("soup", "narrow"), "separate", "width"),
        (("soup", "serial"), "concatenated", "form"),
        (("soup", "one"), "concatenated", "bottleneck and lora"),
        (("soup", "soup2"), "ties", "adds to none"),
    ):
        with pytest.raises(NotSupported, match=why):
            composed(library, *names, how=how)
    with pytest.raises(RequestError, match="different ranks"):
        composed(library, "one", "wide", how="separate")
    with pytest.raises(RequestError, match="2 for 1 modules"):
        composed(library, "one", weights=(1.0, 2.0))
    with pytest.raises(RequestError, match=r"no adapter_config\.json"):
        composed(library, "base")
    other = tiny.model("llama", seed=5)
    save_model(other, tmp_path / "base")
    apply(other, [configure("ia3")])
    save_model(other, tmp_path / "ia3", base=tmp_path / "base")
    with pytest.raises(NotSupported, match="'IA3'"):
        composed(library, str(tmp_path / "ia3"))
    stranger = load_model(tmp_path / "base")
    apply(stranger, [configure("lora", rank=2)])
    save_model(stranger, tmp_path / "stranger", base=tmp_path / "base")
    with pytest.raises(RequestError, match="different bases"):
        composed(library, "one", str(tmp_path / "stranger"))
    with pytest.raises(RequestError, match="weights differ"):
        composed(library, str(tmp_path / "stranger"))
