"""Adapters side by side in the server: chosen by name, added and removed while others run."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

# First: it skips all of this where a package is missing.
from tests.serve.serving import NAME, adapter, client, quiet, said_by, serving  # isort: skip

import openai
from fastapi.testclient import TestClient

from hayless.core.errors import RequestError
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.serve.app import Server, create_app


def test_adapters_come_and_go_while_others_run(folders: Path, tmp_path: Path, alone: Engine) -> None:
    for name in ("legal", "medical"):
        shutil.copytree(folders / name, tmp_path / name)
    asked = {"prompt": "class A", "temperature": 0}
    with serving(root=tmp_path, adapter_slots=3, rows=3) as (url, service), ThreadPoolExecutor(4) as pool:
        api, gate = client(url), threading.Event()
        service.between_tokens(lambda: gate.wait() and None)
        # A row for each adapter and one without, all at once; one is to be removed after the first token.
        long = {**asked, "max_tokens": 200, "stream": True, "extra_body": {"ignore_end": True}}
        streams = [api.completions.create(model=name, **long) for name in ("legal", NAME, "medical")]
        removal = pool.submit(deleted, api, "legal")
        while not service._jobs:
            time.sleep(0.01)
        assert service.adapters.bank.in_use == {"legal", "medical"} and service.load == (0, 3)
        gate.set()
        assert removal.result().status_code == 409
        adapter(tmp_path / "code", 3, rank=1, targets=("attention",))
        assert added(api, "code").json() == api.models.retrieve("code").model_dump(exclude_unset=True)
        assert added(api, "code").status_code == 400
        adapter(tmp_path / "more", 4)
        assert "3 slots" in added(api, "more").json()["error"]["message"]
        for stream in streams:
            stream.close()
        quiet(url)
        assert api.models.delete("legal").deleted
        assert [model.id for model in api.models.list()] == [NAME, "code", "medical"]
        adapter(tmp_path / "wide", 5, rank=4)
        for name, says in (("wide", "rank of 4"), ("../legal", "there are"), (NAME, "itself"), ("", "id")):
            answer = added(api, name)
            assert answer.status_code == 400 and says in answer.json()["error"]["message"]
        assert added(api, "more").status_code == 201
        assert deleted(api, "legal").status_code == 404 and deleted(api, NAME).status_code == 400
        for name in ("code", "medical", "more"):
            found = api.completions.create(model=name, **asked, max_tokens=10)
            assert found.choices[0].text == said_by(tmp_path / name, alone.tokenizer)
        with pytest.raises(openai.NotFoundError):
            api.completions.create(model="legal", **asked)


def test_an_adapter_that_cannot_be_mixed_runs_by_itself(folders: Path, tmp_path: Path, alone: Engine) -> None:
    shutil.copytree(folders / "legal", tmp_path / "legal")
    adapter(tmp_path / "directed", 3, dora=True)
    with serving(root=tmp_path) as (url, service), ThreadPoolExecutor(6) as pool:
        assert service.adapters.bank.names == ["legal"] and service.adapters.names == ["directed", "legal"]
        api = client(url)

        def ask(name: str) -> str:
            return api.completions.create(model=name, prompt="class A", max_tokens=10, temperature=0).choices[0].text

        wanted = {name: said_by(tmp_path / name, alone.tokenizer) for name in ("legal", "directed")}
        wanted[NAME] = alone.generate(["class A"], SamplingOptions(max_tokens=10))[0].text
        names = ["legal", "directed", NAME, "directed", "legal", NAME]
        assert list(pool.map(ask, names)) == [wanted[name] for name in names]
        assert "to the end" in deleted(api, "directed").json()["error"]["message"]
        # Others come while it is on the model, which is then as it was.
        assert ask("directed") == wanted["directed"] and service.adapters.active == "directed"
        shutil.copytree(folders / "medical", tmp_path / "medical")
        assert added(api, "medical").status_code == 201
        assert ask("medical") == said_by(folders / "medical", alone.tokenizer)


def test_adapters_of_another_base_and_from_elsewhere(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "legal", tmp_path / "legal")
    (tmp_path / "legal" / "hayless.json").write_text(json.dumps({"base_fingerprint": "0" * 64}))
    with pytest.raises(RequestError, match="was trained on: its weights differ"), serving(root=tmp_path):
        pass
    shutil.move(tmp_path / "legal", tmp_path.parent / "later")
    with pytest.raises(RequestError, match="adapter-rank"), serving(root=tmp_path):
        pass
    with serving(root=tmp_path, adapter_rank=2, token="open") as (url, service):
        assert service.adapters.names == []
        shutil.move(tmp_path.parent / "later", tmp_path / "legal")
        api = client(url, "open")
        assert "its weights differ" in added(api, "legal").json()["error"]["message"]
        assert added(client(url), "legal").status_code == 401
        (tmp_path / "legal" / "hayless.json").unlink()
        assert added(api, "legal").status_code == 201
    with serving() as (url, service):
        assert "--adapters" in added(client(url), "legal").json()["error"]["message"]
        stranger = TestClient(create_app(Server(service, NAME, None)), client=("192.0.2.7", 1))
        assert stranger.post("/v1/models", json={"id": "legal"}).status_code == 403
        assert stranger.delete("/v1/models/legal").status_code == 403


def added(api: openai.OpenAI, name: str) -> Any:
    return api._client.post("models", json={"id": name}, headers=api.auth_headers)


def deleted(api: openai.OpenAI, name: str) -> Any:
    return api._client.delete(f"models/{name}", headers=api.auth_headers)
