"""LoraHub: the search finds weights that make examples likely, and leaves one adapter with them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from hayless.core.errors import MissingExtra, RequestError
from hayless.core.registry import configure
from hayless.methods.adapters.lorahub.search import search
from hayless.model.load import load_model, load_tokenizer
from hayless.model.save import save_model
from hayless.model.transform import Context, apply, record
from tests.cli.models import LINES, saved
from tests.methods.running import check_held, predicted

EXAMPLES = [{"prompt": line[:8], "answer": line[8:]} for line in LINES[:3]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A base, a module trained on such lines, and one of noise."""
    pytest.importorskip("nevergrad")
    root = tmp_path_factory.mktemp("hub")
    base = Path(saved(root / "base"))
    words = load_tokenizer(base)
    for name, steps in (("good", 40), ("noise", 0)):
        model = load_model(base)
        apply(model, [configure("lora", rank=2, alpha=8)])
        torch.manual_seed(0)
        if not steps:
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.data.normal_(std=0.5)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=2e-2)
        ids = torch.tensor(words("".join(LINES[:3]))["input_ids"])[None, :60]
        for _ in range(steps):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        save_model(model, root / name, base=base)
    return base, (str(root / "good"), str(root / "noise"))


def test_weights_are_found_and_left_as_one_adapter(folders: tuple[Path, tuple[str, ...]]) -> None:
    base, modules = folders
    config = configure("lorahub", modules=modules, examples=EXAMPLES, steps=30)
    model = load_model(base)
    (change,) = apply(model, [config], Context(tokenizer=load_tokenizer(base)))
    figures = change.figures
    assert figures["loss"] < 0.97 * figures["loss_without"]
    assert figures["weight/good"] > 0.5 > abs(figures["weight/noise"])
    assert all(abs(figures[f"weight/{name}"]) <= 1.5 for name in ("good", "noise"))
    assert [left.method for left in record(model)] == ["lora"]
    check_held(model, predicted(load_model(base), [config]))
    again = load_model(base)
    (same,) = apply(again, [config], Context(tokenizer=load_tokenizer(base)))
    assert same.figures == figures


def test_the_search_minimises_with_its_penalty() -> None:
    pytest.importorskip("nevergrad")

    def loss(weights: list[float]) -> float:
        return (weights[0] - 1.0) ** 2 + (weights[1] + 0.5) ** 2

    options = {"steps": 120, "bound": 1.5, "seed": 0}
    weights, least = search(loss, 2, penalty=0.0, **options)
    assert weights == pytest.approx([1.0, -0.5], abs=0.1) and least < 0.01
    smaller, _ = search(loss, 2, penalty=2.0, **options)
    assert sum(map(abs, smaller)) < sum(map(abs, weights))


def test_what_is_refused(folders: tuple[Path, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    base, modules = folders
    with pytest.raises(RequestError, match="tokenizer"):
        apply(load_model(base), [configure("lorahub", modules=modules, examples=EXAMPLES)])
    with pytest.raises(RequestError, match="answer"):
        configure("lorahub", modules=modules, examples=[{"prompt": "a", "answer": ""}])
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    with pytest.raises(MissingExtra, match="nevergrad"):
        search(lambda weights: 0.0, 1, steps=1, bound=1.0, penalty=0.0, seed=0)
