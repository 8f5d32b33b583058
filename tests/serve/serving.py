"""What tests of the server share: adapters of the test asset, a server in a thread, and its clients."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("openai", reason="openai is not installed")

import openai
import uvicorn

from hayless.core.method import MethodConfig
from hayless.core.registry import configure, find
from hayless.decode.engine import Engine
from hayless.decode.options import SamplingOptions
from hayless.model.load import load_model, load_tokenizer
from hayless.model.save import save_model
from hayless.model.transform import apply
from hayless.serve.adapters import Adapters
from hayless.serve.app import Server, create_app
from hayless.serve.service import Service
from hayless.serve.settings import ServeSettings
from tests.asset import FOLDER

NAME = "small"


def adapter(folder: Path, seed: int, **options: object) -> Path:
    """An adapter of the asset that changes what it says."""
    model = load_model(str(FOLDER))
    apply(model, [configure("lora", **{"rank": 2, **options})])
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    save_model(model, folder, base=str(FOLDER))
    return folder


@contextmanager
def serving(
    token: str | None = None, root: Path | None = None, drafts: MethodConfig | None = None, **settings: object
) -> Iterator[tuple[str, Service]]:
    """A server in a thread: its address and its service."""
    model, words = load_model(str(FOLDER), dtype="float32"), load_tokenizer(str(FOLDER))
    part = find("speculative").load()(drafts, model, words) if drafts else None
    limits = ServeSettings(**{"rows": 8, **settings})
    found = Adapters(model, FOLDER, root, slots=limits.adapter_slots, rank=limits.adapter_rank, mixed=drafts is None)
    service = Service(Engine(model, words, draft=part, adapters=found.bank), found, limits)
    app = create_app(Server(service, NAME, words), token)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(256)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def quiet(url: str) -> None:
    """Wait until nothing runs."""
    for _ in range(200):
        if (found := client(url)._client.get(f"{url}/health").json())["running"] == found["waiting"] == 0:
            return
        time.sleep(0.05)
    raise AssertionError(f"still busy: {found}")


def said_by(folder: Path, words: object, prompt: str = "class A") -> str:
    """What the model says with the adapter in a folder on it."""
    return (
        Engine(load_model(str(folder), dtype="float32"), words)
        .generate([prompt], SamplingOptions(max_tokens=10))[0]
        .text
    )
