"""Folders and hub ids: errors that say what to do, and never a token. The hub is a stand-in; nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import transformers
from huggingface_hub import errors as hub

from hayless.core.errors import HaylessError, RequestError, WorkError
from hayless.core.registry import configure
from hayless.model import source
from hayless.model.load import fetch_config, load_model, task_of
from hayless.model.save import save_model
from hayless.model.transform import apply
from tests import tiny
from tests.model.saving import check_same

TOKEN = "hf_thisIsNoTokenThatAnyoneHas"


class NoNetwork(Exception):
    """As the HTTP client of the hub's library has them: of no class known here."""


def hub_error(kind: type[Exception], status: int | None = None) -> Exception:
    """An error of the hub's library as it is raised, with an address and a token in its text."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"401 for https://hub.example/api?token={TOKEN} Authorization: Bearer {TOKEN}")
    if status:
        error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


CASES = [
    (hub_error(hub.GatedRepoError, 401), RequestError, "gated"),
    (hub_error(hub.RepositoryNotFoundError, 404), RequestError, "no model of that name"),
    (hub_error(hub.RevisionNotFoundError, 404), RequestError, "no revision 'main'"),
    (hub_error(hub.LocalEntryNotFoundError), RequestError, "not in the local cache"),
    (hub_error(hub.OfflineModeIsEnabled), RequestError, "not in the local cache"),
    (hub_error(hub.EntryNotFoundError), RequestError, "no config.json"),
    (hub_error(hub.HFValidationError), RequestError, "not a hub id"),
    (hub_error(hub.HfHubHTTPError, 503), WorkError, "answered 503"),
    (hub_error(hub.FileMetadataError), WorkError, "FileMetadataError"),
    (OSError(28, "No space left on device"), WorkError, "No space left"),
    (NoNetwork(f"proxy {TOKEN}"), WorkError, r"could not be reached \(NoNetwork\)"),
]


@pytest.mark.parametrize(("error", "kind", "words"), CASES, ids=[type(error).__name__ for error, *_ in CASES])
def test_the_hubs_errors(
    error: Exception, kind: type[HaylessError], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(huggingface_hub, name, fail)
    calls: list[Callable[..., Any]] = [load_model, fetch_config]
    for call in calls:
        with pytest.raises(kind, match=words) as caught:
            call("someone/model", revision="main")
        assert TOKEN not in str(caught.value) and "example" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_offline_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RequestError, match="cannot be fetched"):
        load_model("someone/model-that-nobody-has")


def test_a_download_takes_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny.model("llama"), tmp_path / "there")
    asked = []

    def download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(tmp_path / "there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    check_same(tiny.model("llama"), load_model("someone/model", revision="v2"))
    ((name, options),) = asked
    assert (name, options["revision"]) == ("someone/model", "v2")
    assert not {"*.py", "*.bin", "*"} & set(options["allow_patterns"])


@pytest.mark.parametrize("name", ["./nowhere", "../models/x", "a/b/c", "/nowhere", "~/nowhere", "~nobody/x", "", "a b"])
def test_what_can_only_be_a_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError):
        load_model(name)


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tiny.model("llama"), tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "model")
        check_same(tiny.model("llama"), load_model("."))
    assert source.local_folder(str(tmp_path / "model")) == tmp_path / "model"
    with pytest.raises(RequestError, match="revision = 'v2' is for hub ids"):
        load_model(tmp_path / "model", revision="v2")
    with pytest.raises(RequestError, match="is a file"):
        load_model(tmp_path / "model/config.json")
    assert fetch_config(tmp_path / "model")["model_type"] == "llama"
    # A machine that stopped between two renames: the old version is found again.
    shutil.move(tmp_path / "model", tmp_path / ".model.old")
    check_same(tiny.model("llama"), load_model(tmp_path / "model"))


def test_the_task_is_read_from_the_config(tmp_path: Path) -> None:
    judge = tiny.config("llama")
    judge.num_labels = 1
    save_model(transformers.LlamaForSequenceClassification(judge), tmp_path / "judge")
    adapted = load_model(tmp_path / "judge", task="reward")
    apply(adapted, [configure("lora", rank=2)])
    save_model(adapted, tmp_path / "adapted")
    packed = tiny.model("llama")
    apply(packed, [configure("kmeans", bits=4)])
    save_model(packed, tmp_path / "packed")
    found = {name: task_of(tmp_path / name) for name in ("judge", "adapted", "packed")}
    assert found == {"judge": "reward", "adapted": "reward", "packed": "causal"}
