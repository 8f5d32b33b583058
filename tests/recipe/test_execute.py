"""Recipes done from end to end: what is saved is what was predicted, and a stopped run goes on."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

import hayless
from hayless.core.errors import FileDamaged, NotSupported, RequestError, WorkError
from hayless.core.progress import no_progress
from hayless.measure import saved
from hayless.measure.files import file_bytes
from hayless.model.load import load_model
from hayless.model.transform import Context, apply
from hayless.recipe import start
from hayless.recipe.folder import RunFolder, digest
from hayless.recipe.prediction import predict
from hayless.train.failures import Interrupted
from hayless.train.loop import Loop
from hayless.train.metrics import read
from tests.data import made
from tests.model.saving import check_same
from tests.recipe.running import CONFIG, TRAIN, quietly, recipe

KMEANS = {"apply": {"method": "kmeans", "bits": 3}}
MAGNITUDE = {"apply": {"method": "magnitude", "sparsity": 0.5}}
NF4 = {"apply": {"method": "nf4"}}
LORA = {"apply": {"method": "lora", "rank": 2}}
MEASURE = {"measure": {"heldout_tokens": 300, "decode_tokens": 4, "prompt_tokens": 4}}


def train(**more: Any) -> dict[str, Any]:
    return {"train": {**TRAIN, **more}}


@pytest.mark.slow
def test_a_recipe_is_trained_changed_saved_and_measured(tmp_path: Path) -> None:
    wanted = recipe(tmp_path, train(validate_every=2), MAGNITUDE, KMEANS, MEASURE)
    done, said = quietly(wanted, tmp_path / "runs" / "a")
    measured = {row.name: row for row in done.receipt.rows}
    for name in ("file_bytes", "parameters", "trainable_parameters", "nonzero_parameters"):
        assert measured[name].value == measured[name].predicted, name
    for name in ("bits_per_byte", "ms_per_token", "train_peak_bytes", "decode_peak_bytes", "train_seconds"):
        assert measured[name].value and measured[name].value > 0, name
    assert measured["train_peak_bytes"].predicted and measured["decode_peak_bytes"].predicted
    assert "kmeans: 14 modules" in said and "held-out loss" in said
    assert done.receipt.state == "done" and done.receipt.machine
    folder = done.folder
    assert json.loads((folder / "documents.json").read_text())[0]["nats"] > 0
    assert "Receipt" in (folder / "model" / "README.md").read_text() and (folder / "receipt.png").stat().st_size > 1000
    zeros = (load_model(folder / "model").model.layers[0].mlp.up_proj.weight == 0).float().mean()
    assert zeros > 0.3
    before = (folder / "measurements.json").stat().st_mtime_ns
    again, said = quietly(wanted, folder)
    assert said == "" and again.receipt == done.receipt
    assert (folder / "measurements.json").stat().st_mtime_ns == before


def test_a_trained_model_is_packed_as_it_is_read(tmp_path: Path) -> None:
    """The first methods, as far as each looks at one weight at a time; with the bits of loading and then applying."""
    quietly(recipe(tmp_path), tmp_path / "trained")
    model = str(tmp_path / "trained" / "model")
    nf4, pruned = {"apply": {"method": "nf4", "targets": "attention"}}, {"apply": {"method": "magnitude"}}
    feed_forward = {"apply": {"method": "kmeans", "bits": 2, "targets": "feed_forward"}}
    for number, steps in enumerate(([nf4, feed_forward, LORA], [pruned, nf4])):
        wanted = recipe(tmp_path, *steps, model=model)
        expected = load_model(model)
        apply(expected, wanted.transforms[: 2 if number == 0 else 0])
        began = start.Start(wanted, tmp_path / "data", no_progress, lambda _: None)
        found, changes = began.packed_model(Context())
        assert [change.method for change in changes] == [["nf4", "kmeans"], []][number]
        check_same(expected, found)
    with pytest.raises(RequestError, match="merge: requantize"):
        quietly(recipe(tmp_path, nf4, LORA, train(steps=1), {"save": {"merge": True}}, model=model), tmp_path / "never")
    done, said = quietly(recipe(tmp_path, nf4, LORA, train(steps=1), model=model), tmp_path / "run")
    assert said.count("nf4: 8 modules; mean_squared_error") == 1
    assert (done.folder / "model" / "base" / "config.json").is_file()


@pytest.mark.parametrize(
    "steps",
    [
        [KMEANS],
        [LORA, train(steps=1)],
        [LORA, train(steps=1, precision="bf16"), {"save": {"merge": True}}],
        [train(steps=1, precision="master")],
        [train(steps=1), MAGNITUDE, train(steps=1, precision="autocast"), {"save": {"dtype": "float16"}}],
        [KMEANS, LORA, train(steps=1)],
        [NF4, LORA, train(steps=1), {"save": {"merge": "requantize"}}],
        [NF4, LORA, train(steps=1, precision="bf16"), {"save": {"merge": "dequantize"}}],
    ],
    ids=["kmeans", "lora", "lora merged", "master", "prune and train", "lora on kmeans", "packed again", "unpacked"],
)
def test_files_are_as_large_as_predicted(tmp_path: Path, steps: list[Any]) -> None:
    wanted = recipe(tmp_path, *steps)
    done, _ = quietly(wanted, tmp_path / "run")
    found = predict(wanted)
    assert file_bytes(done.folder / "model").tensors == found.figures["file_bytes"]
    assert done.receipt.measured("parameters") == found.figures["parameters"]
    load_model(done.folder / "model")


def test_a_run_starts_from_what_another_made(tmp_path: Path) -> None:
    first, _ = quietly(recipe(tmp_path, KMEANS), tmp_path / "first")
    wanted = recipe(tmp_path, LORA, train(steps=1), model={"path": str(first.folder / "model")})
    second, _ = quietly(wanted, tmp_path / "second")
    methods = [entry["method"] for entry in load_model(second.folder / "model").config.hayless["methods"]]
    assert methods == ["kmeans", "lora"]
    assert file_bytes(second.folder / "model").tensors == predict(wanted).figures["file_bytes"]


def test_a_saved_model_is_decoded_as_its_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "in_fresh_process", lambda module, request, timeout: saved._measure(request))
    measure = {"measure": {"quality": False, "prompt_tokens": 8, "decode_tokens": 12}}
    first, _ = quietly(recipe(tmp_path, KMEANS), tmp_path / "first")
    model = str(first.folder / "model")
    draft = {"draft": {"draft": model, "tokens": 2, "preflight": False}}
    wanted, plain = (recipe(tmp_path, *steps, model=model) for steps in ([{"decode": draft}, measure], [measure]))
    done, _ = quietly(wanted, tmp_path / "second")
    note = done.receipt.figure("ms_per_token").note
    assert note and f"drafts by {model}: 100% kept, 3.00 tokens a pass" in note
    found, alone = predict(wanted), predict(plain)
    more = found.figures["decode_peak_bytes"] - alone.figures["decode_peak_bytes"]
    assert more > found.ledger.weight_bytes, "the draft's weights and its cache count"
    assert done.receipt.figure("decode_peak_bytes").predicted == found.figures["decode_peak_bytes"]
    with pytest.raises(RequestError, match="none"):
        predict(recipe(tmp_path, {"decode": {"draft": {"draft": str(tmp_path / "none")}}}, measure))
    cache = {"cache": {"bits": 2, "group_size": 4, "residual": 4}}
    wanted = recipe(tmp_path, {"decode": cache}, measure, model=model)
    done, _ = quietly(wanted, tmp_path / "third")
    note = done.receipt.figure("ms_per_token").note
    assert note and "cache in 2 bits but for the last 4 tokens" in note
    assert predict(wanted).figures["decode_peak_bytes"] != alone.figures["decode_peak_bytes"]
    leaving = {"exit": {"threshold": 0, "least": 1}}
    done, _ = quietly(recipe(tmp_path, {"decode": leaving}, measure, model=model), tmp_path / "fourth")
    note = done.receipt.figure("ms_per_token").note
    assert note and "exits by softmax ≥ 0" in note and "layers a token" in note


def test_a_model_larger_than_its_device_is_changed_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_capacity", lambda device: 50_000)
    done, said = quietly(recipe(tmp_path, KMEANS, LORA, train(steps=1)), tmp_path / "run")
    assert "cpu does not hold the whole model" in said
    assert (done.folder / "model" / "adapter_model.safetensors").is_file()


def test_without_data_a_model_is_changed_and_keeps_its_tokenizer(tmp_path: Path) -> None:
    first, _ = quietly(recipe(tmp_path), tmp_path / "first")
    wanted = recipe(tmp_path, KMEANS, model={"path": str(first.folder / "model")}, data=None)
    second, said = quietly(wanted, tmp_path / "second")
    assert (second.folder / "model" / "tokenizer.json").exists() and "no tokenizer" not in said
    (first.folder / "model" / "tokenizer.json").unlink()
    (first.folder / "model" / "hayless_checksums.json").unlink()
    third, said = quietly(wanted, tmp_path / "third")
    assert "no tokenizer" in said and (third.folder / "model" / "config.json").exists()


def test_stopped_between_checkpoints_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [MAGNITUDE, train(steps=6, checkpoint_every=2), LORA, train(steps=4, checkpoint_every=2)]
    whole, _ = quietly(recipe(tmp_path, *steps), tmp_path / "whole")
    stops = iter([3, 10])
    update, seen, stop = Loop._step, 0, next(stops)

    def stopping(self: Loop, *given: Any, **named: Any) -> None:
        nonlocal seen, stop
        seen += self.settings.total_steps > 1  # not those of the rehearsal
        if seen == stop:
            stop = next(stops, 0)
            raise KeyboardInterrupt
        update(self, *given, **named)

    monkeypatch.setattr(Loop, "_step", stopping)
    place = tmp_path / "stopped"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            quietly(recipe(tmp_path, *steps), place)
        assert RunFolder(place).status()["state"] == "failed"
    done, said = quietly(recipe(tmp_path, *steps), place)
    assert "Going on from step 2" in said and not stop
    for file in ("adapter_model.safetensors", "base/model.safetensors"):
        one, other = (load_file(run.folder / "model" / file) for run in (whole, done))
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    lines = [read(run.training(1) / "metrics.jsonl") for run in (RunFolder(whole.folder), RunFolder(done.folder))]
    losses = [[line["loss"] for line in each if line["kind"] == "train"] for each in lines]
    assert losses[0] == losses[1] and len(losses[0]) == 6


def test_a_signal_saves_and_the_same_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    update = Loop._step

    def signalled(self: Loop, *given: Any, **named: Any) -> None:
        if self.state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        update(self, *given, **named)

    monkeypatch.setattr(Loop, "_step", signalled)
    with pytest.raises(Interrupted, match="SIGTERM after step 2 of 4"):
        quietly(recipe(tmp_path), tmp_path / "run")
    monkeypatch.undo()
    assert "SIGTERM" in RunFolder(tmp_path / "run").status()["reason"]
    _, said = quietly(recipe(tmp_path), tmp_path / "run")
    assert "Going on from step 2" in said


def test_settings_that_change_no_result_may_change_while_resuming(tmp_path: Path) -> None:
    one, other = recipe(tmp_path, train()), recipe(tmp_path, train(micro_batch_size=1, log_every=3))
    assert digest(one) == digest(other) != digest(recipe(tmp_path, train(seed=1)))


def test_another_recipe_is_refused_and_nothing_lost(tmp_path: Path) -> None:
    quietly(recipe(tmp_path), tmp_path / "run")
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    other = recipe(tmp_path, train(steps=2))
    with pytest.raises(RequestError, match="different recipe"):
        quietly(other, tmp_path / "run")
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before
    done, _ = quietly(other, tmp_path / "run", fresh=True)
    assert done.receipt.state == "done" and (tmp_path / "run" / "model" / "model.safetensors").read_bytes() != before


def test_fresh_starts_in_a_new_folder_and_leaves_others_alone(tmp_path: Path) -> None:
    quietly(recipe(tmp_path, KMEANS), tmp_path / "new", fresh=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="not a run's folder"):
        quietly(recipe(tmp_path, KMEANS), tmp_path / "mine", fresh=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_a_folder_in_use_is_refused_by_the_process_that_has_it(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").lock(), pytest.raises(RequestError, match=f"in use by process {os.getpid()}"):
        quietly(recipe(tmp_path, KMEANS), tmp_path / "run")
    (tmp_path / "run" / ".lock").write_text(f"{os.getpid()} {psutil.Process().create_time() - 100}")
    quietly(recipe(tmp_path, KMEANS), tmp_path / "run")


def test_a_damaged_status_is_said(tmp_path: Path) -> None:
    quietly(recipe(tmp_path, KMEANS), tmp_path / "run")
    (tmp_path / "run" / "status.json").write_text("[1")
    with pytest.raises(FileDamaged, match=r"status\.json"):
        quietly(recipe(tmp_path, KMEANS), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": [train(sequence_length=128)]}, RequestError, "sequence_length = 128"),
        ({"steps": [KMEANS, train()], "model": {"config": CONFIG, "tokenizer": "nowhere"}}, RequestError, "nowhere"),
        ({"model": {"path": "missing"}}, RequestError, "missing"),
        ({"data": {"sources": [{"path": "missing.txt"}]}}, RequestError, r"missing\.txt"),
        ({"device": "cuda:99"}, RequestError, "cuda:99"),
        (
            {"steps": [{"apply": {"method": "kmeans", "targets": ["embedding"]}}]},
            NotSupported,
            "shared|tied|one tensor",
        ),
    ],
)
def test_what_cannot_be_is_refused_and_noted(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    wanted = recipe(tmp_path, **{"steps": [train()], **change})
    with pytest.raises(error, match=message):
        quietly(wanted, tmp_path / "run")
    assert RunFolder(tmp_path / "run").status()["state"] == "failed"
    assert not (tmp_path / "run" / "model").exists()


def test_a_full_disk_while_saving_leaves_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise WorkError("model.safetensors could not be written: no space left.", hint="Free disk space.")

    monkeypatch.setattr("hayless.model.save.write_tensors", full)
    with pytest.raises(WorkError, match="no space"):
        quietly(recipe(tmp_path), tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "model").exists()
    done, said = quietly(recipe(tmp_path), tmp_path / "run")
    assert done.receipt.state == "done" and "step 4/4" not in said


def test_ends_come_last_and_once(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="train after measure"):
        recipe(tmp_path, MEASURE, train())
    with pytest.raises(RequestError, match="save twice"):
        recipe(tmp_path, train(), {"save": {}}, {"save": {}})
    with pytest.raises(RequestError, match="tokenizer to train needs data"):
        recipe(tmp_path, KMEANS, data=None)


def test_the_api_is_the_same_objects(tmp_path: Path) -> None:
    done = hayless.run(recipe(tmp_path), tmp_path / "run")
    model = hayless.load(done.folder / "model")
    changes = hayless.apply(model, "lora", hayless.method("magnitude", sparsity=0.2))
    assert [change.method for change in changes] == ["magnitude", "lora"]
    hayless.save(model, tmp_path / "changed")
    assert hayless.load(tmp_path / "changed").config.hayless["methods"][0]["sparsity"] == 0.2
    with pytest.raises(RequestError, match="Overrides"):
        hayless.run(recipe(tmp_path), tmp_path / "run", overrides=["seed=1"])


def test_data_that_would_be_lost_is_refused_unless_allowed(tmp_path: Path) -> None:
    prompts = ["Hay? ", "How much hay is there in the barn by the river? " * 2]
    rows = [{"prompt": prompts[number % 4 == 0], "completion": f"{number} bales."} for number in range(24)]
    path = made.write_lines(tmp_path / "rows.jsonl", rows)
    data = {"sources": [{"path": str(path)}], "heldout": 0.3, "near_duplicates": False}
    step = train(objective="sft", sequence_length=20, steps=1)
    with pytest.raises(WorkError, match=r"answer_cut_off: .*: \d+ of \d+ \(rows\.jsonl:"):
        quietly(recipe(tmp_path, step, data=data), tmp_path / "refused")
    allowed = {**data, "allow": ["truncated", "answer_cut_off", "contained"]}
    _, said = quietly(recipe(tmp_path, step, data=allowed), tmp_path / "allowed")
    assert "allowed: answer_cut_off" in said and "step 1/1" in said
