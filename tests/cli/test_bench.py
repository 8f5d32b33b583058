"""`hayless bench` shows what was timed in fresh processes; how fast that is is no matter here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hayless.cli import bench
from hayless.core.errors import RequestError
from hayless.measure import bench as work
from tests.cli.models import raised, run, saved

DECODE = ("--prompt-tokens", "5", "--tokens", "4", "--repeats", "2", "--device", "cpu")
TRAIN = ("--seq", "8", "--steps", "2", "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The work is done in this process; gives the requests."""
    requests: list[dict[str, Any]] = []

    def in_this_process(module: str, request: dict[str, Any], timeout: float | None) -> dict[str, Any]:
        assert module == "hayless.measure.bench" and timeout is None
        requests.append(json.loads(json.dumps(request)))
        found: dict[str, Any] = json.loads(json.dumps(work._measure(requests[-1]), allow_nan=False))
        return found

    monkeypatch.setattr(work, "in_fresh_process", in_this_process)
    return requests


def test_decoding_is_timed_in_a_fresh_process(folder: str) -> None:
    found = run(bench.app, "decode", folder, *DECODE, "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    (result,) = document["results"]
    assert result["weights"] == "saved" and result["backend"] == "program" and result["reason"]
    assert result["settings"] == {
        "batch_size": 1, "prompt_tokens": 5, "tokens": 4, "repeats": 2, "backend": "auto", "at_once": 0,
    }  # fmt: skip
    rows = {row["name"]: row for row in result["rows"]}
    for name in ("first_token_seconds", "ms_per_token", "decode_tokens_per_second", "share_of_bandwidth_limit"):
        assert 0 < rows[name]["low"] <= rows[name]["value"] <= rows[name]["high"]
    assert rows["decode_peak_bytes"]["value"] < 100_000_000 < rows["decode_process_peak_bytes"]["value"]
    assert document["machine"]["processor"] and result["threads"] >= 1


def test_each_batch_size_is_measured_by_itself(folder: str, here: list[dict[str, Any]]) -> None:
    shown = run(bench.app, "decode", folder, *DECODE, "--batch", "1,3,1", "--backend", "modules")
    assert shown.exit_code == 0, shown.output
    assert [request["decode"]["batch_size"] for request in here] == [1, 3]
    for words in ("batch 1", "batch 3", "modules (asked for)", "first token", "tokens/s", "peak memory", "median"):
        assert words in shown.stdout
    assert "RANDOM" not in shown.stdout and all(len(line) <= 80 for line in shown.stdout.splitlines())


def test_contexts_and_steps_of_several_rows(folder: str, here: list[dict[str, Any]]) -> None:
    asked = ("--prompt-tokens", "5,9", "--tokens", "2", "--repeats", "1", "--device", "cpu", "--batch", "1,2")
    shown = run(bench.app, "decode", folder, *asked, "--at-once", "5")
    assert shown.exit_code == 0, shown.output
    works = [(one["decode"]["prompt_tokens"], one["decode"]["batch_size"], one["decode"]["at_once"]) for one in here]
    assert works == [(5, 1, 5), (5, 2, 0), (9, 1, 5), (9, 2, 0)]
    for words in ("batch 2, 9 before", "share of limit", "step of 1 row ", "step of 4 rows", "prompts of 5 and 9"):
        assert words in shown.stdout
    assert "step of 8 rows" not in shown.stdout


def test_training_is_timed(folder: str, here: list[dict[str, Any]]) -> None:
    found = run(bench.app, "train", folder, *TRAIN, "--batch", "2", "--json")
    assert found.exit_code == 0, found.output
    (result,) = json.loads(found.stdout)["results"]
    assert result["trained_parameters"] == result["parameters"] and result["weight_bytes"] == 4 * result["parameters"]
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {"step_seconds", "train_tokens_per_second", "train_peak_bytes", "train_process_peak_bytes"}
    assert "16 tokens a step" in rows["step_seconds"]["note"]
    shown = run(bench.app, "train", folder, *TRAIN)
    assert shown.exit_code == 0 and "batch 4" in shown.stdout and "with AdamW" in shown.stdout


def test_a_config_alone_gets_random_weights(folder: str, tmp_path: Path, here: list[dict[str, Any]]) -> None:
    config = (Path(folder) / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    for source in (str(tmp_path), str(tmp_path / "config.json")):
        shown = run(bench.app, "decode", source, *DECODE)
        assert shown.exit_code == 0 and "RANDOM WEIGHTS" in shown.stdout, shown.output
    (result,) = json.loads(run(bench.app, "train", folder, *TRAIN, "--random-weights", "--json").stdout)["results"]
    assert result["weights"] == "random"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["decode", "nowhere/at/all"], "no folder nowhere"),
        (["decode", "{folder}", "--tokens", "1"], "--tokens = 1"),
        (["decode", "{folder}", "--tokens", "60", "--prompt-tokens", "5"], "context of 64"),
        (["decode", "{folder}", "--repeats", "0"], "--repeats = 0"),
        (["decode", "{folder}", "--batch", "1,0"], "--batch = 0"),
        (["decode", "{folder}", "--batch", "1,many"], "--batch: .*whole number"),
        (["decode", "{folder}", "--backend", "fast"], "--backend = 'fast'"),
        (["decode", "{folder}", "--device", "cuda:99"], "cuda:99"),
        (["decode", "{folder}", "--dtype", "int4", "--device", "cpu"], "dtype = 'int4'"),
        (["train", "{folder}", "--seq", "65", "--device", "cpu"], "context of 64"),
        (["train", "{folder}", "--seq", "1"], "--seq = 1"),
        (["train", "{folder}", "--steps", "0"], "--steps = 0"),
    ],
)
def test_what_cannot_be_timed_is_refused(
    folder: str, here: list[dict[str, Any]], arguments: list[str], words: str
) -> None:
    with pytest.raises(RequestError, match=words):
        raised(run(bench.app, *(argument.format(folder=folder) for argument in arguments)))
