"""`hayless eval` says of a folder what measuring its model directly gives."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hayless.cli.eval import evaluate
from hayless.core.errors import NotSupported, RequestError
from hayless.core.registry import configure
from hayless.data.config import DataConfig, Source
from hayless.data.store import prepare
from hayless.measure.quality import Document, quality
from hayless.model.load import load_model
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.cli.models import ENTRIES, LINES, model, raised, run, saved, tokenizer, write_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def _json(*arguments: str) -> dict[str, Any]:
    found = run(evaluate, *arguments, "--device", "cpu", "--json")
    assert found.exit_code == 0, found.output
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def _by_hand(texts: list[Path], **options: Any) -> Any:
    words = tokenizer()
    documents = []
    for path in texts:
        text = path.read_text(encoding="utf-8")
        ids = [*words(text, add_special_tokens=False)["input_ids"], words.eos_token_id]
        documents.append(Document(path.name, torch.tensor(ids), len(text.encode())))
    return quality(model(), documents, begin=words.bos_token_id, **options)


def test_every_document_is_measured_whole(folder: str, texts: Path, tmp_path: Path) -> None:
    found = _json(folder, "--data", str(texts), "--stride", "16", "--documents", str(tmp_path / "out.json"))
    expected = _by_hand(sorted(texts.rglob("*.txt")), stride=16)
    assert (found["documents"], found["tokens"], found["bytes"]) == (12, expected.tokens, expected.bytes)
    assert (found["context_tokens"], found["stride_tokens"], found["kind"]) == (64, 16, "lm")
    assert (found["device"], found["dtype"]) == ("cpu", "float32")
    for name, figure in (
        ("loss_nats_per_token", expected.loss),
        ("bits_per_byte", expected.bits_per_byte),
        ("perplexity", expected.perplexity),
    ):
        assert found[name]["value"] == pytest.approx(figure.value, rel=1e-5)
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert len(written) == 12
    nats = {Path(row["id"]).name: row["nats"] for row in written}
    assert nats == pytest.approx({row.id: row.nats for row in expected.documents}, rel=1e-5)


def test_domains_are_told_apart_and_add_up(folder: str, texts: Path) -> None:
    found = _json(folder, "--data", str(texts))
    assert set(found["domains"]) == {"even", "odd"}
    for field in ("documents", "tokens", "bytes"):
        assert sum(part[field] for part in found["domains"].values()) == found[field]
    even = _by_hand(sorted((texts / "even").glob("*.txt")))
    assert found["domains"]["even"]["bits_per_byte"]["value"] == pytest.approx(even.bits_per_byte.value, rel=1e-5)
    assert _json(folder, "--data", str(texts / "even"))["domains"] == {}


def test_the_batch_size_changes_rounding_only(folder: str, texts: Path) -> None:
    one, many = (_json(folder, "--data", str(texts), "--batch-size", size, "--context", "24") for size in ("1", "7"))
    assert one["loss_nats_per_token"]["value"] == pytest.approx(many["loss_nats_per_token"]["value"], rel=1e-6)
    assert one["tokens"] == many["tokens"]


def test_held_out_documents_are_those_of_a_recipe(folder: str, texts: Path, tmp_path: Path) -> None:
    config = DataConfig(sources=(Source(path=str(texts)),), heldout=0.4)
    expected = prepare(config, tokenizer(), tmp_path / "stores", kind="lm").heldout.ids
    arguments = ["--heldout-only", "--heldout-share", "0.4", "--documents", str(tmp_path / "out.json")]
    found = _json(folder, "--data", str(texts), *arguments)
    assert found["documents"] == len(expected) < 12
    assert {row["id"] for row in json.loads((tmp_path / "out.json").read_text())} == set(expected)


def test_tokens_bound_the_work(folder: str, texts: Path) -> None:
    found = _json(folder, "--data", str(texts), "--tokens", "0.3k")
    assert 0 < found["tokens"] <= 300 and found["documents"] < 12


def test_only_outputs_of_examples_are_scored(folder: str, tmp_path: Path) -> None:
    rows = [{"prompt": LINES[number], "completion": LINES[-number - 1]} for number in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = _json(folder, "--data", str(tmp_path / "a.jsonl"))
    assert found["kind"] == "sft" and found["bytes"] == sum(len(row["completion"].encode()) for row in rows)
    assert 0 <= found["token_accuracy"]["value"] <= 1 and found["calibration"]["count"] == found["tokens"]
    picture = tmp_path / "reliability.svg"
    shown = run(evaluate, folder, "--data", str(tmp_path / "a.jsonl"), "--out", str(picture))
    assert (
        "token accuracy" in shown.stdout and "calibration error" in shown.stdout and ">tokens<" in picture.read_text()
    )


def test_plain_text_is_judged_where_a_picture_is_asked_for(folder: str, texts: Path, tmp_path: Path) -> None:
    assert _json(folder, "--data", str(texts))["calibration"] is None
    found = _json(folder, "--data", str(texts), "--out", str(tmp_path / "reliability.png"))
    assert found["calibration"]["count"] == found["tokens"]
    assert all(part["token_accuracy"] for part in found["domains"].values())
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")


def test_an_adapter_is_measured_on_its_base(folder: str, texts: Path, tmp_path: Path) -> None:
    adapted = load_model(folder)
    apply(adapted, [configure("lora", rank=2)])
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    save_model(adapted, tmp_path / "adapter", base=folder)
    plain, found = (
        _json(name, "--data", str(texts))["bits_per_byte"]["value"] for name in (folder, str(tmp_path / "adapter"))
    )
    assert math.isfinite(found) and abs(found - plain) > 1e-3


def test_a_reward_model_ranks_pairs(folder: str, texts: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{number} ", "chosen": LINES[number], "rejected": LINES[-number - 1]} for number in range(30)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pairs, judge = str(tmp_path / "pairs.jsonl"), saved(tmp_path / "judge", reward=True)
    found = _json(judge, "--data", pairs, "--documents", str(tmp_path / "out.json"))
    scores = json.loads((tmp_path / "out.json").read_text())
    assert found["pairs"] == len(scores) == 30 and found["kind"] == "preference"
    wins = sum(row["chosen"] > row["rejected"] for row in scores)
    assert found["pairwise_accuracy"]["value"] == pytest.approx(wins / 30)
    loss = sum(math.log1p(math.exp(row["rejected"] - row["chosen"])) for row in scores) / 30
    assert found["preference_loss_nats_per_pair"]["value"] == pytest.approx(loss)
    assert found["calibration"]["count"] == 30 and 0 <= found["brier_score"]["value"] <= 1
    assert _json(judge, "--data", pairs, "--batch-size", "1")["pairwise_accuracy"] == found["pairwise_accuracy"]
    shown = run(evaluate, judge, "--data", pairs, "--out", str(tmp_path / "reliability.svg")).stdout
    assert all(words in shown for words in ("pairwise accuracy", "calibration error", "Brier score", "by chance"))
    assert ">pairs<" in (tmp_path / "reliability.svg").read_text()
    for source, data, words in ((folder, pairs, "only a reward model"), (judge, str(texts), "no pairs of answers")):
        with pytest.raises(RequestError, match=words):
            raised(run(evaluate, source, "--data", data))
    with pytest.raises(RequestError, match="stride = 4"):
        raised(run(evaluate, judge, "--data", pairs, "--stride", "4"))


def test_the_table_shows_what_the_document_says(folder: str, texts: Path) -> None:
    shown = run(evaluate, folder, "--data", str(texts))
    assert shown.exit_code == 0 and shown.stdout
    found = _json(folder, "--data", str(texts))
    for words in ("bits per byte", "perplexity", "95% interval", "even", "odd", f"{found['tokens']:,} tokens"):
        assert words in shown.stdout
    one = run(evaluate, folder, "--data", str(texts / "even" / "2.txt"))
    assert "none: a single one" in one.stdout and "1 document," in one.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere/at/all", "--data", "{texts}"], "no folder nowhere"),
        (["{folder}"], "no documents"),
        (["{folder}", "--data", "{texts}/none.txt"], "no file or folder"),
        (["{folder}", "--data", "{tmp}/empty.txt"], "no text"),
        (["{folder}", "--data", "{tmp}/latin.txt"], "not UTF-8.*0xe9 at position 3"),
        (["{folder}", "--data", "{tmp}/one.txt", "--heldout-only"], "too few"),
        (["{folder}", "--data", "{texts}", "--context", "65"], "context = 65.*1 to 64"),
        (["{folder}", "--data", "{texts}", "--stride", "65"], "stride = 65"),
        (["{folder}", "--data", "{texts}", "--tokens", "0"], "--tokens = 0 is not possible"),
        (["{folder}", "--data", "{texts}", "--tokens", "many"], "--tokens.*whole number"),
        (["{folder}", "--data", "{texts}", "--batch-size", "0"], "--batch-size = 0"),
        (["{folder}", "--data", "{texts}", "--format", "csv"], "--format = 'csv'.*'text'"),
        (["{folder}", "--data", "{texts}", "--heldout-only", "--heldout-share", "1"], "--heldout-share = 1"),
        (["{folder}", "--data", "{texts}", "--heldout-share", "0.5"], "is for --heldout-only"),
        (["{folder}", "--builtin", "books"], "--builtin = 'books'"),
        (["{folder}", "--data", "{texts}", "--device", "cuda:99"], "device = 'cuda:99' is not there"),
        (["{folder}", "--data", "{texts}", "--dtype", "int4"], "dtype = 'int4'"),
        (["{folder}", "--data", "{texts}", "--documents", "{tmp}/no/out.json"], "cannot be written"),
        (["{folder}", "--data", "{texts}", "--out", "{tmp}/no/out.png"], "--out .* cannot be written"),
        (["{folder}", "--data", "{texts}", "--out", "{tmp}/out.pdf"], "--out"),
        (["{folder}", "--data", "{texts}", "--tokenizer", "{tmp}"], "no tokenizer"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: str, texts: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "one.txt").write_text("one\n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin1"))
    places = {"folder": folder, "texts": str(texts), "tmp": str(tmp_path)}
    with pytest.raises(RequestError, match=words):
        raised(run(evaluate, *(argument.format(**places) for argument in arguments)))


def test_a_device_of_no_kind_is_a_wrong_option(folder: str) -> None:
    found = run(evaluate, folder, "--device", "tpu")
    assert found.exit_code == 2 and "allowed: auto, cpu" in found.output


def test_models_that_do_not_continue_text_are_refused(texts: Path, tmp_path: Path) -> None:
    config = tiny.config("bert")
    config.vocab_size = ENTRIES
    save_model(transformers.BertForMaskedLM(config), tmp_path / "bert", tokenizer=tokenizer())
    with pytest.raises(NotSupported, match="causal"):
        raised(run(evaluate, str(tmp_path / "bert"), "--data", str(texts)))
