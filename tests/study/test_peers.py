"""Peers: another library's loop on the same recipe does the same work, and says so in its row."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.utils.data import Sampler

from hayless.core.errors import RequestError, WorkError
from hayless.measure.files import file_bytes
from hayless.model.load import load_model
from hayless.recipe.execute import run
from hayless.recipe.receipt import Receipt
from hayless.recipe.schema import Recipe
from hayless.study import peers, runner, schema
from hayless.study.page import render
from hayless.study.peers import trainer
from hayless.train import metrics
from tests.recipe.running import TRAIN, recipe

PEERS = Path(__file__).resolve().parents[2] / "recipes" / "peers.yaml"
ACCUMULATED = {"train": {**TRAIN, "batch_size": 4, "micro_batch_size": 2, "validate_every": 2}}
LORA = {"apply": {"method": "lora", "rank": 2, "targets": ["q", "down"]}}


def by_peer(name: str, wanted: Recipe, folder: Path) -> Receipt:
    return peers.run(peers.find(name), wanted, folder, console=Console(file=io.StringIO())).receipt


def test_transformers_trains_to_the_same_weights(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, ACCUMULATED)
    own = run(wanted, tmp_path / "own", console=Console(file=io.StringIO())).receipt
    theirs = by_peer("transformers", wanted, tmp_path / "theirs")
    assert own.peer == "" and theirs.peer.startswith("transformers 5.")
    one, other = (load_file(tmp_path / side / "model" / "model.safetensors") for side in ("own", "theirs"))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-5, atol=1e-6)
    curves = [metrics.read(tmp_path / side / "checkpoints" / "step-0" / "metrics.jsonl") for side in ("own", "theirs")]
    losses = [[line["loss"] for line in lines if line["kind"] == "train"] for lines in curves]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and len(losses[1]) == 4
    notes = [receipt.figure("train_seconds").note.partition(" tokens")[0] for receipt in (own, theirs)]
    assert notes[0] == notes[1], "the same tokens are counted"
    assert theirs.figure("train_peak_bytes").predicted is None


class Backwards(Sampler[int]):
    """The batches, the last first."""

    def __init__(self, dataset: Any) -> None:
        self._count = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._count - 1, -1, -1))

    def __len__(self) -> int:
        return self._count


def test_an_order_of_its_own_is_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SequentialSampler", Backwards)
    with pytest.raises(WorkError, match="stepped on 4 micro-batches, which are not the 4 of the recipe"):
        by_peer("transformers", recipe(tmp_path, {"train": TRAIN}), tmp_path / "run")
    assert "in their order" in Receipt.from_run(tmp_path / "run").reason


@pytest.mark.parametrize("merge", [False, True])
def test_peft_s_adapter_is_read_and_stands_where_hayless_s_would(tmp_path: Path, merge: bool) -> None:
    run(recipe(tmp_path), tmp_path / "base", console=Console(file=io.StringIO()))
    saving = [{"save": {"merge": True}}] if merge else []
    wanted = recipe(tmp_path, LORA, ACCUMULATED, *saving, model={"path": str(tmp_path / "base" / "model")})
    own = run(wanted, tmp_path / "own", console=Console(file=io.StringIO())).receipt
    theirs = by_peer("peft", wanted, tmp_path / "theirs")
    assert theirs.peer.startswith("peft 0.") and "transformers 5." in theirs.peer
    assert theirs.measured("trainable_parameters") == own.measured("trainable_parameters")
    sizes = [file_bytes(tmp_path / side / "model") for side in ("own", "theirs")]
    assert sizes[0].tensors == sizes[1].tensors and sizes[0].adapter == sizes[1].adapter
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        start, tuned = (load_model(tmp_path / side / "model")(input_ids=ids).logits for side in ("base", "theirs"))
    assert 1e-6 < (tuned - start).abs().max() < 1


@pytest.mark.parametrize(
    ("peer", "steps", "message"),
    [
        ("transformers", [LORA, ACCUMULATED], "cannot apply lora"),
        ("peft", [{"apply": {"method": "kmeans"}}, ACCUMULATED], "cannot apply kmeans"),
        ("peft", [ACCUMULATED], "needs a recipe that applies one adapter"),
        ("transformers", [{"measure": {}}], "trains nothing"),
        ("transformers", [{"train": {**TRAIN, "precision": "master"}}], "precision master"),
        ("transformers", [{"train": {**TRAIN, "deterministic": True}}], "deterministic"),
        ("transformers", [{"train": {**TRAIN, "memory": [{"method": "checkpointing", "every": 2}]}}], "memory"),
        ("transformers", [ACCUMULATED, {"save": {"dtype": "float16"}}], "leave the save step out"),
    ],
)
def test_what_a_peer_cannot_do_as_the_recipe_says_is_refused(
    tmp_path: Path, peer: str, steps: list[Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        by_peer(peer, recipe(tmp_path, *steps), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(RequestError, match=message):
        row = {
            "label": "a",
            "peer": peer,
            "recipe": recipe(tmp_path, *steps).model_dump(mode="json", exclude_none=True),
        }
        schema.contenders(schema.load({"name": "tried", "rows": [row]}))


def test_an_adapter_s_base_with_new_tokens_is_refused(tmp_path: Path) -> None:
    model = {"path": "a/model", "new_tokens": {"tokens": ["<|new|>"]}}
    with pytest.raises(RequestError, match=r"without the rows of model\.new_tokens"):
        by_peer("peft", recipe(tmp_path, LORA, ACCUMULATED, model=model), tmp_path / "run")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None if name == "accelerate" else name)
    with pytest.raises(RequestError, match="transformers needs accelerate, which is not installed"):
        by_peer("transformers", recipe(tmp_path, {"train": TRAIN}), tmp_path / "run")
    with pytest.raises(RequestError, match="Did you mean 'peft'"):
        peers.find("pefd")


@pytest.mark.slow
def test_the_committed_study_s_peers_do_what_stands_before_them(tmp_path: Path) -> None:
    found = schema.load(PEERS)
    assert [row.peer for row in found.rows] == [None, "transformers", None, "peft"]
    assert [row.recipe for row in found.rows[::2]] == [row.recipe for row in found.rows[1::2]]
    row = found.rows[3]
    assert isinstance(row.recipe, dict)
    apply, train, _ = row.recipe["steps"]
    start = run(recipe(tmp_path), tmp_path / "base", console=Console(file=io.StringIO())).folder / "model"
    data = {"sources": [{"path": str(tmp_path / "texts" / "prose")}], "heldout": 0.3}
    steps = [apply, {"train": {**train["train"], "sequence_length": 16}}]
    small = {**row.recipe, "model": {"path": str(start)}, "data": data, "steps": steps, "device": "cpu"}
    changed = {"rows": (row.model_copy(update={"recipe": small}),), "budget": schema.Budget(tokens=200)}
    study = found.model_copy(update={**changed, "folder": str(tmp_path / "study"), "baseline": None})
    results = runner.run(study, console=Console(file=io.StringIO()))
    assert [record.reason for record in results.records] == [""]
    peer = results.records[0].receipt.peer
    assert peer.startswith("peft ") and results.table().to_dicts()[0]["peer"] == peer
    text = render(results.table(), name="peers")
    assert text.count('<span class="tag">peer</span>') == 1 and f"by {peer}" in text and "<dt>Peer</dt>" in text
