"""Modules chosen by each token: the real peft's Arrow, what is frozen, files, packed bases; shares and requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import ArrowConfig, create_arrow_model
from torch import nn

from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure, method_of
from hayless.decode.bank import AdapterBank
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.methods.adapters.library.store import Library, Module
from hayless.methods.adapters.retrieve.arrow import prototype
from hayless.methods.adapters.retrieve.transform import for_requests
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.tensors import fingerprint
from hayless.model.transform import Context, apply, record
from tests import tiny
from tests.methods.running import batch, check_held, logits, losses, predicted

MODULES = ("one", "two", "three", "four")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def made(folder: Path, name: str, seed: int, **options: Any) -> Path:
    """A module on the tiny model in `folder`, with one direction that it amplifies much more than others."""
    model = load_model(folder / "base")
    apply(model, [configure("lora", rank=2, **options)])
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.2)
        if "lora_A" in key:
            parameter.data[0] *= 5
    save_model(model, folder / name, base=folder / "base")
    return folder / name


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def library(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """A base and a library of four modules for it; the vectors are the axes."""
    folder = tmp_path_factory.mktemp("arrow")
    save_model(tiny.model(request.param), folder / "base")
    found = Library.create(folder / "library", fingerprint(folder / "base"), {"model": None, "layer": -1}, 4)
    for row, name in enumerate(MODULES):
        found.add(Module(name, "LORA", 2), made(folder, name, row, alpha=2.0 + row), np.eye(4, dtype=np.float32)[row])
    return found


def base_of(library: Library) -> Path:
    return library.folder.parent / "base"


def per_token(library: Library, **options: Any) -> Any:
    return configure("retrieve", library=str(library.folder), per="token", **options)


@pytest.mark.parametrize(("top", "temperature"), [(1, None), (2, 0.5), (4, 3.0)])
def test_it_is_the_arrow_of_peft(library: Library, top: int, temperature: float | None) -> None:
    model = load_model(base_of(library))
    config = per_token(library, top=top, temperature=temperature)
    apply(model, [config])
    theirs = create_arrow_model(
        load_model(base_of(library)),
        task_specific_adapter_paths=[str(library.path(name)) for name in MODULES],
        arrow_config=ArrowConfig(top_k=top, router_temperature=temperature or 1.0),
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(**batch(model)).logits, logits(model), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(logits(model), logits(load_model(base_of(library))), atol=1e-2)


def test_a_prototype_is_the_first_right_singular_vector() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 11), torch.randn(7, 3)
    expected = torch.linalg.svd(b @ a).Vh[0]
    assert prototype(a, b) @ expected == pytest.approx(1, abs=1e-4) or prototype(a, b) @ expected == pytest.approx(-1)
    assert (b @ a @ prototype(a, b)).norm() == pytest.approx(float(torch.linalg.matrix_norm(b @ a, 2)), rel=1e-4)
    assert not prototype(a, torch.zeros(7, 3)).any()
    wide = prototype(torch.randn(4, 9), torch.randn(2, 4))
    assert wide.shape == (9,) and wide.norm() == pytest.approx(1, abs=1e-5)


def test_it_is_as_predicted_saved_and_loaded_and_what_it_leaves_is_a_mixture(library: Library, tmp_path: Path) -> None:
    model = load_model(base_of(library))
    bare, config = logits(model), per_token(library, top=2)
    ledger = predicted(model, [config])
    (change,) = apply(model, [config])
    check_held(model, ledger)
    (left,) = record(model)
    assert change.figures["modules"] == 4 and change.figures["trainable"] == ledger.trainable
    assert [left.method, left.router, left.top_k] == ["lora_moe", "arrow", 2]  # type: ignore[attr-defined]
    save_model(model, tmp_path / "ours", base=base_of(library))
    assert (tmp_path / "ours/adapter_model.safetensors").stat().st_size == ledger.file_bytes()["adapter"]
    assert torch.equal(logits(load_model(tmp_path / "ours")), logits(model))
    prototypes = {key: value.clone() for key, value in model.state_dict().items() if "prototypes" in key}
    before = logits(model)
    losses(model, steps=1)
    assert prototypes and all(torch.equal(model.state_dict()[key], value) for key, value in prototypes.items())
    assert not torch.equal(logits(model), before)
    with pytest.raises(NotSupported, match="cannot be merged"):
        method_of(left).load().merge(model, left)
    method_of(left).load().remove(model, left)
    assert torch.equal(logits(model), bare)


def test_all_modules_at_a_high_temperature_are_their_average(library: Library) -> None:
    routed, averaged = load_model(base_of(library)), load_model(base_of(library))
    apply(routed, [per_token(library, top=4, temperature=1e6)])
    apply(averaged, [configure("compose", modules=tuple(str(library.path(name)) for name in MODULES))])
    torch.testing.assert_close(logits(routed), logits(averaged), **CLOSE)


def test_packed_bases_and_decoding(library: Library) -> None:
    model = load_model(base_of(library))
    apply(model, [configure("nf4", targets="blocks"), per_token(library)])
    engine = Engine(model)
    together = engine.generate([[5, 6, 7], [8, 9]], SamplingOptions(max_tokens=5))
    alone = engine.generate([[8, 9]], SamplingOptions(max_tokens=5))[0]
    assert together[1].tokens == alone.tokens
    with torch.no_grad():
        assert together[0].tokens[0] == int(model(torch.tensor([[5, 6, 7]])).logits[0, -1].argmax())


class Named:
    """Makes a vector of a text that names modules: how often each is named."""

    def one_each(self, texts: Any) -> Any:
        return np.array([[text.split().count(name) for name in MODULES] for text in texts], np.float32)

    def of(self, texts: Any) -> Any:
        return self.one_each(texts).mean(0)


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr("hayless.methods.adapters.retrieve.transform.embedder", lambda *_: Named())
    return Context(tokenizer=object())  # type: ignore[arg-type]


def test_among_are_the_nearest_to_the_examples(library: Library, context: Context) -> None:
    model = load_model(base_of(library))
    (change,) = apply(model, [per_token(library, examples=("four two two",), among=2)], context)
    assert [name for name in change.figures if "/" in name] == ["similarity/two", "similarity/four"]
    assert record(model)[0].experts == 2  # type: ignore[attr-defined]


def test_shares_follow_the_scores(library: Library, context: Context) -> None:
    config = configure(
        "retrieve", library=str(library.folder), examples=("one two two",), top=2, temperature=0.3, mix="outputs"
    )
    model = load_model(base_of(library))
    (change,) = apply(model, [config], context)
    near = np.array([change.figures[f"similarity/{name}"] for name in ("two", "one")])
    shares = np.exp(near / 0.3) / np.exp(near / 0.3).sum()
    assert shares[0] > 0.6
    mixed = load_model(base_of(library))
    modules = tuple(str(library.path(name)) for name in ("two", "one"))
    apply(mixed, [configure("compose", modules=modules, weights=tuple(shares.tolist()))])
    torch.testing.assert_close(logits(model), logits(mixed), **CLOSE)


def test_each_request_has_its_own_modules_in_one_batch(library: Library, context: Context) -> None:
    model = load_model(base_of(library))
    bare = logits(model)
    config: Any = configure("retrieve", library=str(library.folder), mix="one")
    found = for_requests(model, config, ["three three and two", "one"], context)
    assert [list(figures)[-1] for _, figures in found] == ["similarity/three", "similarity/one"]
    assert torch.equal(logits(model), bare) and not record(model)
    bank = AdapterBank.for_adapters(model, [adapter for adapter, _ in found], 2)
    for name, (adapter, _) in zip("ab", found, strict=True):
        bank.add(name, adapter)
    options, prompts = SamplingOptions(max_tokens=6), [[5, 6, 7], [8, 9]]
    made = Engine(model, adapters=bank).generate(prompts, options, adapters=["a", "b"])
    for one, prompt, name in zip(made, prompts, ("three", "one"), strict=True):
        alone = load_model(base_of(library).parent / name)
        assert one.tokens == Engine(alone).generate([prompt], options)[0].tokens
    assert made[0].tokens != Engine(model).generate(prompts, options)[0].tokens


def test_what_is_refused(library: Library, tmp_path: Path) -> None:
    for wrong in ({"mix": "weights"}, {"among": 2}, {"temperature": 0.0}):
        with pytest.raises(RequestError, match=next(iter(wrong))):
            per_token(library, **wrong)
    with pytest.raises(RequestError, match="per: token"):
        configure("retrieve", among=3, examples=("a",))
    with pytest.raises(RequestError, match="learnt nothing"):
        apply(load_model(base_of(library)), [configure("lora_moe", rank=2, router="arrow")])
    one = Library.create(tmp_path / "single", library.base, {}, 4)
    one.add(Module("one", "LORA", 2), library.path("one"), np.ones(4, np.float32))
    with pytest.raises(RequestError, match="nothing to choose"):
        predicted(load_model(base_of(library)), [per_token(one)])
    source = made(base_of(library).parent, "narrow", 9, targets="down")
    one.add(Module("narrow", "LORA", 2), source, np.ones(4, np.float32))
    with pytest.raises(NotSupported, match="different matrices"):
        apply(load_model(base_of(library)), [per_token(one)])
