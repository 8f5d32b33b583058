"""A saved folder is measured in a fresh process, and the figures are those of its files."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch
import transformers

from hayless.core.errors import HaylessError, RequestError
from hayless.data.config import DataConfig, Source
from hayless.data.store import TokenStore, prepare
from hayless.data.tokenizer import train
from hayless.measure import reward, saved
from hayless.measure.heldout import as_document, look
from hayless.measure.quality import quality
from hayless.measure.saved import measure_saved
from hayless.measure.settings import MeasureSettings
from hayless.model.load import load_model
from tests import tiny

LINES = [
    f"row {number}: the {'quick brown' if number % 3 else 'slow é'} fox, {number * 37 % 101}\n" for number in range(400)
]
SETTINGS = MeasureSettings(heldout_tokens=900, context=48, prompt_tokens=5, decode_tokens=4)


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerBase:
    return train(LINES, "bpe", 300)


@pytest.fixture(scope="module")
def heldout(tokenizer, tmp_path_factory) -> TokenStore:
    folder = tmp_path_factory.mktemp("data")
    (folder / "texts").mkdir()
    for number in range(20):
        (folder / "texts" / f"{number}.txt").write_text(
            "".join(LINES[number * 20 : number * 20 + 20]), encoding="utf-8"
        )
    config = DataConfig(sources=(Source(path=str(folder / "texts")),), heldout=0.4, near_duplicates=False)
    return prepare(config, tokenizer, folder / "prepared", kind="lm").heldout


@pytest.fixture(scope="module")
def preferences(tokenizer, tmp_path_factory) -> TokenStore:
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"prompt": f"Say {number}. ", "chosen": LINES[number], "rejected": LINES[-number - 1]} for number in range(60)
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = DataConfig(sources=(Source(path=str(folder / "pairs.jsonl")),), heldout=0.4, near_duplicates=False)
    return prepare(config, tokenizer, folder / "prepared", kind="preference").heldout


@pytest.fixture(scope="module")
def outputs(tokenizer, tmp_path_factory) -> TokenStore:
    folder = tmp_path_factory.mktemp("outputs")
    rows = [{"prompt": f"Say {number}. ", "completion": LINES[number]} for number in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    config = DataConfig(sources=(Source(path=str(folder / "rows.jsonl")),), heldout=0.4, near_duplicates=False)
    return prepare(config, tokenizer, folder / "prepared", kind="sft").heldout


def _save(folder: Path, tokenizer: transformers.PreTrainedTokenizerBase, *, reward: bool = False) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=0, num_labels=1,
    )  # fmt: skip
    kind = transformers.LlamaForSequenceClassification if reward else transformers.LlamaForCausalLM
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_folder_is_measured_in_a_fresh_process(tmp_path, tokenizer, heldout):
    folder = _save(tmp_path / "model", tokenizer)
    rows = measure_saved(folder, heldout, SETTINGS, documents=tmp_path / "documents.json", timeout=300)
    by_name = {row.name: row for row in rows}
    assert by_name["file_bytes"].value == (folder / "model.safetensors").stat().st_size

    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    documents = [as_document(document) for document in heldout.sample(900)]
    assert len(documents) > 2
    expected = quality(model, documents, begin=heldout.begin, context=48)
    for name, found in (("loss", expected.loss), ("bits_per_byte", expected.bits_per_byte)):
        row = by_name[name]
        assert (row.value, row.low, row.high) == pytest.approx((found.value, found.low, found.high), rel=1e-6)
    assert by_name["perplexity"].value == pytest.approx(expected.perplexity.value, rel=1e-5)
    assert by_name["batch_drift"].value < 1e-4 and "batches of 8 and 1 windows" in by_name["batch_drift"].note
    written = json.loads((tmp_path / "documents.json").read_text())
    assert [row["id"] for row in written] == [document.id for document in documents]
    assert sum(row["tokens"] for row in written) == expected.tokens

    assert 0 < by_name["ms_per_token"].low <= by_name["ms_per_token"].value <= by_name["ms_per_token"].high
    assert by_name["first_token_seconds"].value > 0
    peak, process = by_name["decode_peak_bytes"], by_name["decode_process_peak_bytes"]
    assert 0 <= peak.value < 100_000_000 < process.value, "libraries are in the process's peak, not in the model's"


def _here(folder: Path, store: TokenStore, settings: MeasureSettings) -> dict[str, dict]:
    """What the fresh process would answer, without starting one."""
    request = {"folder": str(folder), "heldout": str(store.folder), "settings": settings.model_dump(), "device": "cpu"}
    found = saved._measure(request)
    json.dumps(found, allow_nan=False)
    return {row["name"]: row for row in found["rows"]}


def test_a_damaged_folder_is_an_error_of_ours(tmp_path, tokenizer, heldout):
    folder = _save(tmp_path / "model", tokenizer)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(HaylessError, match="model"):
        _here(folder, heldout, SETTINGS)


def test_a_reward_model_is_measured_on_pairs(tmp_path, tokenizer, preferences):
    folder = _save(tmp_path / "model", tokenizer, reward=True)
    rows = _here(folder, preferences, SETTINGS)
    assert set(rows) == {"file_bytes", "pairwise_accuracy", "calibration_error", "brier_score", "preference_loss"}
    expected = look(load_model(folder, task="reward"), preferences, SETTINGS.model_copy(update={"batch_size": 1}))
    for name, figure in (
        ("pairwise_accuracy", expected.accuracy),
        ("calibration_error", expected.calibration.error),
        ("brier_score", expected.brier),
        ("preference_loss", expected.loss),
    ):
        row = rows[name]
        assert (row["value"], row["low"], row["high"]) == pytest.approx(
            (figure.value, figure.low, figure.high), rel=1e-5
        )
        assert row["low"] <= row["value"] <= row["high"]
    with pytest.raises(RequestError, match="stride = 4"):
        _here(folder, preferences, SETTINGS.model_copy(update={"stride": 4}))


def test_pairs_are_computed_as_many_at_once_as_was_asked(tmp_path, tokenizer, preferences, monkeypatch):
    model = load_model(_save(tmp_path / "model", tokenizer, reward=True), task="reward")
    sizes = []
    monkeypatch.setattr(
        reward, "scores", lambda model, batch: sizes.append(len(batch.input_ids)) or batch.segments[:, 0]
    )
    assert len(look(model, preferences, SETTINGS.model_copy(update={"batch_size": 3})).pairs) > 6
    assert set(sizes[:-1]) == {6} and sizes[-1] <= 6


def test_outputs_of_examples_have_accuracy_and_calibration(tmp_path, tokenizer, outputs, monkeypatch):
    monkeypatch.setattr(saved, "in_fresh_process", lambda module, request, timeout: saved._measure(request))
    folder = _save(tmp_path / "model", tokenizer)
    rows = measure_saved(folder, outputs, SETTINGS.model_copy(update={"decode": False}), reliability=tmp_path)
    by_name = {row.name: row for row in rows}
    expected = look(load_model(folder), outputs, SETTINGS)
    assert by_name["token_accuracy"].value == pytest.approx(expected.token_accuracy.value)
    assert by_name["calibration_error"].value == pytest.approx(expected.calibration.error.value, rel=1e-4)
    assert "bins of confidence" in by_name["calibration_error"].note
    assert json.loads((tmp_path / "reliability.json").read_text())["count"] == expected.tokens
    assert (tmp_path / "reliability.svg").exists() and (tmp_path / "reliability.png").exists()


def test_only_what_was_asked_is_measured(tmp_path, tokenizer, heldout):
    nothing = SETTINGS.model_copy(update={"quality": False, "decode": False})
    assert set(_here(_save(tmp_path, tokenizer), heldout, nothing)) == {"file_bytes"}


def test_decoding_beyond_the_context_is_refused(tmp_path, tokenizer, heldout):
    long = SETTINGS.model_copy(update={"decode_tokens": 100})
    with pytest.raises(RequestError, match="context of 64"):
        _here(_save(tmp_path, tokenizer), heldout, long)


def test_energy_is_shared_among_the_tokens_it_was_spent_on(monkeypatch):
    class Meter:
        available, reason, joules = True, "", 640.0

        def __init__(self, device):
            assert device == torch.device("cpu")

        def __enter__(self):
            return self

        def __exit__(self, *failure):
            pass

    clock = iter([0.0, 0.5, 1.0, 5.0])
    monkeypatch.setattr(saved, "EnergyMeter", Meter)
    monkeypatch.setattr(saved, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
    row = saved._energy_row(tiny.model("llama"), [5, 6], 8, saved._Parts())
    assert row.value == 640 / 16 and "16 tokens" in row.note


def test_energy_that_cannot_be_read_has_its_reason():
    row = saved._energy_row(tiny.model("llama"), [5, 6], 8, saved._Parts())
    assert row.value is None and "cpu" in row.note
