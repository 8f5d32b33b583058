"""A library of modules: kept whole, searched by one product, found by examples, composed into one adapter."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hayless.cli import modules as verbs
from hayless.core import atomic
from hayless.core.errors import FileDamaged, MissingExtra, NotSupported, RequestError
from hayless.core.registry import configure
from hayless.methods.adapters.library import opening
from hayless.methods.adapters.library.embedding import Embedder
from hayless.methods.adapters.library.store import VECTORS, Library, Module
from hayless.model.load import load_model, load_tokenizer
from hayless.model.save import save_model
from hayless.model.transform import Context, apply, record
from tests import tiny
from tests.cli.models import LINES, raised, run, saved
from tests.methods.running import check_held, predicted

TASKS = {"quick": [line for line in LINES if "quick" in line], "slow": [line for line in LINES if "slow" in line]}


def trained(base: Path, folder: Path, seed: int, **options: Any) -> Path:
    model = load_model(base)
    apply(model, [configure("lora", **options)])
    torch.manual_seed(seed)
    for key, parameter in model.named_parameters():
        if "lora_" in key:
            nn.init.normal_(parameter, std=0.1)
    save_model(model, folder, base=base)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(saved(tmp_path_factory.mktemp("models") / "base"))


@pytest.fixture
def filled(base: Path, tmp_path: Path) -> Library:
    """A library with a module for each task."""
    library = opening.create(tmp_path / "library", base)
    by = opening.embedder(library, load_model(base), load_tokenizer(base))
    for seed, (task, examples) in enumerate(TASKS.items()):
        source = trained(base, tmp_path / "trained" / task, seed, rank=2)
        opening.add(library, source, examples[:20], by, task=f"{task} foxes", metrics={"accuracy": 0.5})
    return library


def test_what_is_added_is_there_for_whoever_opens_it(filled: Library) -> None:
    again = Library(filled.folder)
    assert [module.name for module in again.modules] == ["quick", "slow"]
    assert again["slow"] == Module("slow", "LORA", 2, "slow foxes", "", {"accuracy": 0.5})
    assert again.vectors.shape == (2, again.width) and np.isfinite(again.vectors).all()
    assert (again.path("quick") / "adapter_model.safetensors").is_file()
    kept = again.vectors[1].copy()
    again.remove("quick")
    last = Library(filled.folder)
    assert [module.name for module in last.modules] == ["slow"] and not (last.folder / "modules" / "quick").exists()
    assert np.array_equal(last.vectors[0], kept)


def test_a_task_is_found_by_other_examples_of_it(filled: Library, base: Path) -> None:
    by = opening.embedder(filled, load_model(base), load_tokenizer(base))
    for task, examples in TASKS.items():
        found = filled.search(by.of(examples[40:45]), 2)
        assert found[0].module.name == task
        assert found[0].similarity > found[1].similarity


def test_search_is_by_the_cosine_to_the_mean(filled: Library) -> None:
    drawn = np.random.default_rng(0)
    for number in range(30):
        filled.add(Module(f"m{number}", "LORA", 2), filled.path("slow"), drawn.standard_normal(filled.width))
    asked = drawn.standard_normal(filled.width).astype(np.float32)
    centred, question = filled.vectors - filled.vectors.mean(0), asked - filled.vectors.mean(0)
    cosines = centred @ question / (np.linalg.norm(centred, axis=1) * np.linalg.norm(question))
    found = filled.search(asked, 5)
    assert [each.module.name for each in found] == [filled.modules[row].name for row in np.argsort(-cosines)[:5]]
    assert [each.similarity for each in found] == pytest.approx(sorted(cosines)[::-1][:5], rel=1e-4)
    assert len(filled.search(asked, 500)) == 32


def test_a_crash_between_vector_and_index_leaves_what_was_there(
    filled: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, vector = filled.path("slow"), np.ones(filled.width, np.float32)

    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(atomic, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        filled.add(Module("third", "LORA", 2), source, vector)
    monkeypatch.undo()
    again = Library(filled.folder)
    assert len(again.modules) == 2
    again.add(Module("third", "LORA", 2), source, vector * 2)
    assert np.array_equal(Library(filled.folder).vectors[2], vector * 2)


def test_retrieving_puts_the_nearest_modules_on_the_model(filled: Library, base: Path) -> None:
    config = configure("retrieve", library=str(filled.folder), examples=tuple(TASKS["slow"][40:43]), mix="one")
    model, words = load_model(base), load_tokenizer(base)
    ledger = predicted(model, [config])
    (change,) = apply(model, [config], Context(tokenizer=words))
    check_held(model, ledger)
    assert change.method == "retrieve" and list(change.figures)[-1] == "similarity/slow"
    assert [left.method for left in record(model)] == ["lora"]
    ids = torch.tensor([[5, 6, 7]])
    alone = load_model(filled.path("slow").parent.parent.parent / "trained" / "slow")
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, alone(ids).logits, rtol=1e-4, atol=1e-5)
    both = load_model(base)
    apply(both, [configure("retrieve", library=str(filled.folder), examples=("a",), top=2)], Context(tokenizer=words))
    assert record(both)[0].rank == 4  # type: ignore[attr-defined]


def test_wide_states_are_turned_with_their_cosines_kept() -> None:
    from hayless.methods.adapters.library import embedding

    drawn = np.random.default_rng(1).standard_normal((6, 3000)).astype(np.float32)
    turned = embedding._turned(drawn, 512)
    assert turned.shape == (6, 512)
    cosines = [a / np.linalg.norm(a, axis=1, keepdims=True) for a in (drawn, turned)]
    assert np.abs(cosines[0] @ cosines[0].T - cosines[1] @ cosines[1].T).max() < 0.15


def test_padding_does_not_change_a_vector(base: Path) -> None:
    by = Embedder(load_model(base), load_tokenizer(base))
    together = by.one_each(["row 5", "row 5: the quick fox, 17 and more of it"])
    assert together[0] == pytest.approx(by.one_each(["row 5"])[0], rel=1e-4, abs=1e-5)
    with pytest.raises(RequestError, match="without examples"):
        by.of([])


class StandIn:
    """A sentence encoder that counts letters."""

    def __init__(self, folder: str, **options: Any) -> None:
        assert Path(folder).is_dir() and options["local_files_only"] and options["model_kwargs"]["use_safetensors"]

    def encode(self, texts: list[str], **_: Any) -> Any:
        return np.array([[text.count(letter) for letter in "abcdefghi"] for text in texts], np.float32)


def test_a_sentence_encoder_makes_the_vectors(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder/modules.json").write_text("[]")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtra, match=r"hayless\[sentences\]"):
        opening.create(tmp_path / "library", base, encoder=str(tmp_path / "encoder"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=StandIn))
    library = opening.create(tmp_path / "library", base, encoder=str(tmp_path / "encoder"))
    made_by = opening.embedder(library, load_model(base), load_tokenizer(base))
    assert library.width == 9 and made_by.of(["abba", "ci"]).tolist() == [1, 1, 0.5, 0, 0, 0, 0, 0, 0.5]
    with pytest.raises(RequestError, match="no words"):
        made_by.of([" "])


def test_a_real_sentence_encoder(base: Path, tmp_path: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    bert, words = tiny.model("bert"), load_tokenizer(base)
    bert.resize_token_embeddings(len(words))
    bert.bert.save_pretrained(tmp_path / "bert")
    words.pad_token = words.eos_token
    words.save_pretrained(tmp_path / "bert")
    sentences.SentenceTransformer(str(tmp_path / "bert"), device="cpu").save(str(tmp_path / "encoder"))
    library = opening.create(tmp_path / "library", base, encoder=str(tmp_path / "encoder"))
    made_by = opening.embedder(library, load_model(base), load_tokenizer(base))
    both = made_by.one_each(["row 5", "row 7: the fox"])
    assert both.shape == (2, 32) == (2, library.width) and not np.allclose(*both)


def test_what_a_library_refuses(filled: Library, base: Path, tmp_path: Path) -> None:
    vector = np.ones(filled.width, np.float32)
    with pytest.raises(RequestError, match="already"):
        filled.add(Module("slow", "LORA", 2), filled.path("slow"), vector)
    with pytest.raises(RequestError, match="letters"):
        filled.add(Module("../slow", "LORA", 2), filled.path("slow"), vector)
    with pytest.raises(RequestError, match="finite"):
        filled.add(Module("x", "LORA", 2), filled.path("slow"), vector * np.nan)
    with pytest.raises(RequestError, match="slow"):
        filled.path("slwo")
    with pytest.raises(RequestError, match="already"):
        opening.create(filled.folder, base)
    stranger = tmp_path / "stranger"
    saved(stranger, "gpt2")
    with pytest.raises(RequestError, match="another base"):
        filled.add(Module("x", "LORA", 2), trained(stranger, tmp_path / "other", 0, rank=2), vector)
    with pytest.raises(RequestError, match="no library"):
        Library(tmp_path)
    wide = trained(base, tmp_path / "wide", 0, rank=3)
    filled.add(Module("wide", "LORA", 3), wide, vector)
    with pytest.raises(NotSupported, match="differ in kind or rank"):
        predicted(load_model(base), [configure("retrieve", library=str(filled.folder), examples=("a",))])
    (filled.folder / VECTORS).write_bytes(b"1234")
    with pytest.raises(FileDamaged, match="shorter"):
        Library(filled.folder)


def test_the_verbs(base: Path, tmp_path: Path) -> None:
    library, examples = tmp_path / "library", tmp_path / "examples.txt"
    examples.write_text("".join(TASKS["slow"][:9]), encoding="utf-8")
    run(verbs.app, "create", str(library), "--base", str(base))
    for seed, name in enumerate(("one", "two")):
        source = trained(base, tmp_path / name, seed, rank=2)
        options = ("--base", str(base), "--examples", str(examples), "--task", "foxes", "--metric", "accuracy=0.9")
        run(verbs.app, "add", str(library), str(source), *options)
    listed = json.loads(run(verbs.app, "list", str(library), "--json").stdout)
    assert [module["name"] for module in listed["modules"]] == ["one", "two"]
    assert "0.9" in run(verbs.app, "show", str(library), "two").stdout
    found = json.loads(run(verbs.app, "search", str(library), "a slow fox", "--base", str(base), "--json").stdout)
    assert {each["name"] for each in found} == {"one", "two"} and "similarity" in found[0]
    made = tmp_path / "made"
    options = ("--base", str(base), "--out", str(made), "--weight", "1", "--weight", "-0.5")
    run(verbs.app, "compose", str(library), "one", "two", *options)
    assert record(load_model(made))[0].rank == 4  # type: ignore[attr-defined]
    trying = ("--base", str(base), "--tokens", "4", "--json")
    tried = json.loads(run(verbs.app, "try", str(library), "row 5", "row 7", *trying).stdout)
    assert [each["prompt"] for each in tried] == ["row 5", "row 7"] and isinstance(tried[0]["text"], str)
    assert all(set(each["modules"]) == {"one", "two"} for each in tried)
    for more in (("--examples", str(examples)), ("--per", "token", "--top", "1", "--temperature", "0.5")):
        assert len(json.loads(run(verbs.app, "try", str(library), "row 5", *more, *trying).stdout)) == 1
    with pytest.raises(RequestError, match="--per"):
        raised(run(verbs.app, "try", str(library), "row 5", "--per", "task", *trying))
    run(verbs.app, "remove", str(library), "one")
    assert "one" not in run(verbs.app, "list", str(library)).stdout
    for wrong in (("search", str(library), "--base", str(base)), ("show", str(library), "tow")):
        with pytest.raises(RequestError):
            raised(run(verbs.app, *wrong))
