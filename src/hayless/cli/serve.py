"""`hayless serve`: use it, from any program that speaks OpenAI's protocol."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from hayless.cli.caches import Cache, CacheGroup, CacheResidual, quantized_cache
from hayless.cli.drafts import Draft, DraftLayers, DraftTokens, Lookup, SelfDraft, speculation
from hayless.cli.output import Device, Dtype, Json, Model, emit, err

if TYPE_CHECKING:
    from fastapi import FastAPI

    from hayless.methods.decoding.kv.config import KVConfig
    from hayless.methods.decoding.speculative.config import SpeculativeConfig
    from hayless.serve.settings import ServeSettings

_LOOPBACK = {"127.0.0.1", "::1", "localhost"}
_TOKEN = "HAYLESS_SERVE_TOKEN"


def serve(
    model: str = Model,
    adapters: str = typer.Option(None, help="A folder of adapters; each is served as a model of its folder's name."),
    adapter_slots: int = typer.Option(
        None, help="Adapters for which there is room at once; as many as there are, 8 at least, if not given."
    ),
    adapter_rank: int = typer.Option(
        None, help="Rank of adapters that may be added while it runs; those of the folder's own kind if not given."
    ),
    name: str = typer.Option(None, help="What the model is called; its folder's name if not given."),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; only this machine reaches the default."),
    port: int = typer.Option(8000, min=0, max=65535, help="Port to listen on; 0 takes a free one."),
    rows: int = typer.Option(16, help="Requests that run side by side."),
    tokens: str = typer.Option(
        None, help="Tokens of a request at most, answer included; the model's context if not given."
    ),
    queue: int = typer.Option(256, help="Requests that may wait; more are answered 429."),
    timeout: float = typer.Option(600.0, help="Seconds after which a request is ended."),
    grace: float = typer.Option(30.0, help="Seconds that running requests get when the server is stopped."),
    token_file: str = typer.Option(
        None, help=f"File with the bearer token that requests must have; {_TOKEN} in the environment does the same."
    ),
    draft: str = Draft,
    self_draft: bool = SelfDraft,
    lookup: bool = Lookup,
    draft_tokens: str = DraftTokens,
    draft_layers: int = DraftLayers,
    cache: str = Cache,
    cache_group: int = CacheGroup,
    cache_residual: int = CacheResidual,
    deterministic: bool = typer.Option(
        False, "--deterministic", help="Give each request the tokens that it gets alone, to the bit; slower."
    ),
    backend: str = typer.Option("auto", help="How the model is run: auto, modules, program or graphs."),
    tokenizer: str = typer.Option(None, help="Folder or hub id of the tokenizer; the model's own if not given."),
    device: str = Device,
    dtype: str = Dtype,
    json: bool = Json,
) -> None:
    """Serve a model over HTTP: /v1/models, /v1/completions, /v1/chat/completions, /health.

    Each request of a batch may have another of the --adapters, chosen by the model's name that it gives.
    Any client of OpenAI's API works with the base URL that is printed. Ctrl-C stops it, when what runs is done.
    """
    from hayless.core.errors import MissingExtra, RequestError
    from hayless.core.options import checked
    from hayless.serve.settings import ServeSettings

    drafts = speculation(draft, self_draft, lookup, draft_tokens, draft_layers, preflight=True)
    quantized = quantized_cache(cache, cache_group, cache_residual)
    if self_draft and adapters is not None:
        raise RequestError(
            "--self-draft and --adapters exclude each other: a model with an adapter runs through its modules.",
            hint="Use --lookup, or --draft with a model.",
        )
    if adapters is None and (adapter_slots is not None or adapter_rank is not None):
        raise RequestError("--adapter-slots and --adapter-rank are for --adapters.", hint="Give a folder of adapters.")
    given = {
        "rows": rows,
        "tokens": tokens,
        "queue": queue,
        "timeout": timeout,
        "grace": grace,
        "adapter_slots": adapter_slots,
        "adapter_rank": adapter_rank,
    }
    settings = checked(ServeSettings, given, {field: f"--{field.replace('_', '-')}" for field in given})
    token = _token(token_file)
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("uvicorn", "serve", "hayless serve") from None
    app, called = _app(
        model, adapters, name, tokenizer, drafts, quantized, deterministic, backend, device, dtype, settings, token
    )
    if host not in _LOOPBACK and token is None:
        err.print(f"[yellow]Whoever reaches {host}:{port} can use the model: there is no bearer token.[/yellow]")
    try:
        config = uvicorn.Config(
            app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=math.ceil(grace)
        )
        listening = config.bind_socket()
        listening.listen(config.backlog)  # whoever comes before the server runs need not come again
    except SystemExit:
        raise RequestError(f"{host}:{port} cannot be listened on.", hint="Is it in use? Give another --port.") from None
    url = f"http://{host}:{listening.getsockname()[1]}/v1"
    if json:
        emit({"url": url, "models": called, "settings": settings.model_dump()})
    else:
        err.print(f"Serving {', '.join(called)} at [bold]{url}[/bold]; Ctrl-C stops.")
    uvicorn.Server(config).run(sockets=[listening])


def _token(file: str | None) -> str | None:
    from hayless.core.errors import RequestError

    if file is None:
        return os.environ.get(_TOKEN) or None
    try:
        token = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise RequestError(f"--token-file {file} cannot be read: {error.strerror}.") from None
    if not token or not token.isascii() or any(letter.isspace() for letter in token):
        raise RequestError(f"--token-file {file} must hold one token of ASCII letters without spaces.")
    return token


def _app(
    model: str,
    folder: str | None,
    name: str | None,
    tokenizer: str | None,
    drafts: SpeculativeConfig | None,
    quantized: KVConfig | None,
    deterministic: bool,
    backend: str,
    device: str,
    dtype: str | None,
    settings: ServeSettings,
    token: str | None,
) -> tuple[FastAPI, list[str]]:
    """The application, and what its models are called."""
    from hayless.core.errors import RequestError
    from hayless.core.registry import method_of
    from hayless.core.units import format_bytes
    from hayless.decode.engine import Engine
    from hayless.model.load import check_tokenizer, load_model, load_tokenizer
    from hayless.model.source import local_folder
    from hayless.serve.adapters import Adapters
    from hayless.serve.app import Server, create_app
    from hayless.serve.service import Service

    root = Path(folder).expanduser() if folder else None
    if root is not None and not root.is_dir():
        raise RequestError(f"--adapters {folder} is no folder.")
    words = load_tokenizer(tokenizer or model)
    loaded = load_model(model, device=device, dtype=dtype)
    check_tokenizer(loaded, words)
    found = Adapters(
        loaded,
        local_folder(model),
        root,
        slots=settings.adapter_slots,
        rank=settings.adapter_rank,
        mixed=drafts is None,
    )
    place = Path(model).expanduser()
    called = name or (place.resolve().name if place.exists() else model)
    if called in found.names:
        raise RequestError(
            f"The model and an adapter are both called {called!r}.", hint="Give the model another --name."
        )
    part = method_of(drafts).load()(drafts, loaded, words) if drafts else None
    held = method_of(quantized).load()(quantized, loaded, words) if quantized else None
    engine = Engine(
        loaded,
        words,
        backend=backend,  # type: ignore[arg-type]
        draft=part,
        cache=held,
        deterministic=deterministic,
        adapters=found.bank,
    )
    err.print(f"{called}: {engine.path.backend} on {loaded.device} ({engine.path.reason})")
    if found.bank is not None:
        err.print(f"Room for {found.bank.slots} adapters of rank {found.bank.rank}: {format_bytes(found.bank.bytes)}")
    server = Server(Service(engine, found, settings), called, words)
    return create_app(server, token), server.models
