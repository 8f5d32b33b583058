"""`hayless inspect outliers` and `hayless inspect error`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hayless.cli import inspect
from hayless.core.errors import HaylessError
from tests.cli.models import raised, run, saved, write_texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_texts(tmp_path_factory.mktemp("texts")))


def _json(*arguments: str) -> dict[str, Any]:
    found = run(inspect.app, *arguments, "--json")
    assert found.exit_code == 0, found.output
    document: dict[str, Any] = json.loads(found.stdout)
    return document


def test_outliers(folder: str, texts: str, tmp_path: Path) -> None:
    asked = (
        "outliers",
        folder,
        "--data",
        texts,
        "--threshold",
        "2",
        "--device",
        "cpu",
        "--context",
        "64",
        "--tokens",
        "300",
    )
    found = _json(*asked, "--out", str(tmp_path / "out.svg"))
    assert found["threshold"] == 2.0 and found["context"] == 64 and 100 < found["tokens"] <= 320
    assert found["layers"] == 2 and 0 < found["layers_share"] <= 1 and 0 < found["tokens_share"] <= 1
    assert len(found["modules"]) == 14 and {row["role"] for row in found["modules"]} >= {"q", "down"}
    assert (tmp_path / "out.svg").read_bytes().startswith(b"<?xml")
    shown = run(inspect.app, *asked).stdout
    assert "layers with any" in shown and "q, k, v" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_errors_of_any_quantizer(folder: str, tmp_path: Path) -> None:
    picture = tmp_path / "error.png"
    found = _json("error", folder, "--method", "nf4(block_size=64)", "--device", "cpu", "--out", str(picture))
    assert found["methods"][0]["block_size"] == 64 and len(found["tensors"]) == 14 and len(found["layers"]) == 2
    assert 0.05 < found["all"]["relative"] < 0.15 and picture.read_bytes().startswith(b"\x89PNG")
    finer = _json("error", folder, "--method", "int8", "--device", "cpu")
    assert finer["all"]["relative"] < 0.02 and finer["all"]["rms"] < found["all"]["rms"]
    shown = run(inspect.app, "error", folder, "--method", "int8", "--device", "cpu").stdout
    assert "layer 1" in shown and "relative" in shown and all(len(line) <= 80 for line in shown.splitlines())


def test_calibrated_quantizers_are_given_text(folder: str, texts: str) -> None:
    found = _json("error", folder, "--method", "gptq", "--data", texts, "--tokens", "256", "--device", "cpu")
    assert 0 < found["all"]["relative"] < 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("outliers", "{}"), "--data"),
        (("outliers", "{}", "--data", "{texts}", "--threshold", "0"), "--threshold"),
        (("outliers", "{}", "--data", "{texts}", "--context", "1000"), "context"),
        (("error", "{}", "--method", "nf5"), "nf5"),
        (("error", "{}", "--method", "lora"), "changes no values"),
        (("error", "{}", "--method", "gptq"), "calibrated on text"),
        (("error", "{}", "--method", "int8", "--out", "x.gif"), "--out"),
    ],
)
def test_wrong_requests_say_what_is_possible(folder: str, texts: str, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(HaylessError, match=said):
        raised(run(inspect.app, *(each.format(folder, texts=texts) for each in arguments), "--device", "cpu"))
