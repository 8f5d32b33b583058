"""An OpenAI-compatible server: thin routes over `hayless.serve.service`.

`/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/health`. Errors have OpenAI's form and statuses. Adapters
come and go through `/v1/models`, for who has the bearer token, or sits at this machine where there is none.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from transformers import PreTrainedTokenizerBase

from hayless.core.errors import HaylessError, RequestError, unknown
from hayless.data.chats import messages_of
from hayless.data.rows import RowError
from hayless.data.templates import ChatTemplate, Refused
from hayless.decode.options import SamplingOptions
from hayless.serve.answers import DONE, Answer, Chat, Completion, event
from hayless.serve.errors import NotYours, TookTooLong, UnknownModel, error_body, status_of
from hayless.serve.limits import Limits
from hayless.serve.schema import AdapterBody, ChatBody, CompletionBody
from hayless.serve.service import Service, Stream
from hayless.version import __version__

_WATCH_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Server:
    """What the routes need: the service, its model's name and tokenizer."""

    service: Service
    name: str
    tokenizer: PreTrainedTokenizerBase

    @property
    def models(self) -> list[str]:
        """What may be asked for: the model, then its adapters."""
        return [self.name, *self.service.adapters.names]

    def adapter(self, model: str) -> str:
        """The adapter that a model's name stands for; "" for the model itself."""
        if model not in self.models:
            found = unknown("model", model, self.models)
            raise UnknownModel(found.message, hint=found.hint)
        return "" if model == self.name else model

    async def add(self, name: str) -> None:
        """Serve one more of the folder's adapters. RequestError where there is none of this name, or no room for it."""
        if name == self.name:
            raise RequestError(f"The model itself is called {name}.", hint="Call the adapter's folder otherwise.")
        adapters = self.service.adapters
        found = await asyncio.to_thread(adapters.read, name)
        await asyncio.wrap_future(self.service.between_tokens(partial(adapters.add, name, found)))

    async def remove(self, name: str) -> None:
        """Serve an adapter no more. InUse while requests have it that run or wait."""
        if not self.adapter(name):
            raise RequestError(f"{name} is the model itself, not an adapter.")
        await asyncio.wrap_future(self.service.between_tokens(partial(self.service.adapters.remove, name)))

    def submit(self, model: str, prompts: Sequence[list[int]], options: Sequence[SamplingOptions]) -> list[Stream]:
        """Streams for each prompt with each of the options, in this order."""
        wanted = len(prompts) * len(options)
        most = self.service.settings.choices
        if wanted > most:
            raise RequestError(f"{wanted} continuations are asked for at once; allowed: {most}.")
        each = [ids for ids in prompts for _ in options]
        return self.service.submit(each, [*options] * len(prompts), self.adapter(model))


def create_app(server: Server, token: str | None = None) -> FastAPI:
    """The server's application. With a `token`, requests must bear it (all but /health)."""
    service = server.service

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop, service.settings.grace)

    app = FastAPI(title="hayless", version=__version__, lifespan=lifespan)
    app.add_middleware(Limits, body=service.settings.body, token=token)
    app.exception_handler(HaylessError)(_refused)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_plain)

    @app.get("/health")
    async def health() -> Response:
        running, waiting = service.load
        body = {"status": "ok", "running": running, "waiting": waiting, "generated_tokens": service.generated}
        if service.failed is not None:
            return JSONResponse({**body, "status": "failed", "reason": service.failed.message}, 503)
        return JSONResponse(body)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(server, name) for name in server.models]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        server.adapter(name)
        return _model(server, name)

    @app.post("/v1/models", status_code=201)
    async def add(body: AdapterBody, request: Request) -> dict[str, Any]:
        _check_operator(request, token)
        await server.add(body.id)
        return _model(server, body.id)

    @app.delete("/v1/models/{name:path}")
    async def remove(name: str, request: Request) -> dict[str, Any]:
        _check_operator(request, token)
        await server.remove(name)
        return {"id": name, "object": "model", "deleted": True}

    @app.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        prompts = [service.engine.encode(prompt) for prompt in body.prompts]
        streams = server.submit(body.model, prompts, body.options(body.max_tokens, body.logprobs or 0))
        answer = Answer(body.model, streams, Completion(), body.n, server.tokenizer, body.logprobs is not None)
        return await _answered(service, request, answer, body)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        ids = _chat_tokens(server, body)
        room = max(1, service.tokens - len(ids))
        streams = server.submit(body.model, [ids], body.options(body.most_tokens or room, body.top_logprobs or 0))
        answer = Answer(body.model, streams, Chat(), body.n, server.tokenizer, bool(body.logprobs))
        return await _answered(service, request, answer, body)

    return app


def _check_operator(request: Request, token: str | None) -> None:
    """NotYours unless the client has the token (without it no route is reached), or none is asked and it is here."""
    if token is None and not _is_loopback(request.client.host if request.client else ""):
        raise NotYours(
            "Adapters are added and removed from this machine only, or with the bearer token.",
            hint="Start the server with --token-file.",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _chat_tokens(server: Server, body: ChatBody) -> list[int]:
    """The conversation as the model was taught to read it, up to where it answers."""
    try:
        messages = messages_of(body.messages, "messages")
        text = ChatTemplate(server.tokenizer).render(messages, None, prompt=True)
    except (RowError, Refused) as error:
        raise RequestError(f"{error}.") from None
    # Templates write begin tokens themselves where there are any.
    ids = server.tokenizer(text, add_special_tokens=False)["input_ids"]
    return server.service.engine.encode([int(token) for token in ids])


async def _answered(service: Service, request: Request, answer: Answer, body: CompletionBody | ChatBody) -> Response:
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        events = _guarded(service, answer, usage=usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    whole = asyncio.ensure_future(answer.whole())
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((whole, gone), timeout=service.settings.timeout, return_when=asyncio.FIRST_COMPLETED)
        if whole.done():
            return JSONResponse(whole.result())
        if gone.done():
            return Response(status_code=499)  # nobody reads it
        raise TookTooLong(f"The request took longer than {service.settings.timeout:g} seconds.")
    finally:
        for task in (whole, gone):
            task.cancel()
        _leave(service, answer)


async def _guarded(service: Service, answer: Answer, *, usage: bool) -> AsyncIterator[str]:
    """An answer's events until its time is over; what is not finished is cancelled, however this ends."""
    try:
        async with asyncio.timeout(service.settings.timeout):
            async for chunk in answer.events(usage=usage):
                yield chunk
    except TimeoutError:
        yield _error_event(TookTooLong(f"The request took longer than {service.settings.timeout:g} seconds."))
    except HaylessError as error:
        yield _error_event(error)
    finally:
        _leave(service, answer)


def _leave(service: Service, answer: Answer) -> None:
    left = [stream for stream in answer.streams if stream.request.finish is None]
    if left:
        service.cancel(left)


async def _gone(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(_WATCH_SECONDS)


def _model(server: Server, name: str) -> dict[str, Any]:
    parent = None if name == server.name else server.name
    return {"id": name, "object": "model", "created": 0, "owned_by": "hayless", "parent": parent}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HaylessError)
    status, code = status_of(error)
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(error_body(str(error), status, code), status, headers)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    said = []
    for item in error.errors():
        place = ".".join(str(part) for part in item["loc"] if part != "body")
        value = repr(item.get("input"))
        shown = value if len(value) <= 80 else value[:77] + "..."
        said.append(f"{place or 'body'} = {shown}: {item['msg']}")
    first = error.errors()[0]["loc"][1:2]
    param = str(first[0]) if first else None
    return JSONResponse(error_body("; ".join(said) + ".", 400, "invalid_value", param), 400)


async def _plain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(error_body(str(error.detail), error.status_code, "invalid_request"), error.status_code)


def _error_event(error: HaylessError) -> str:
    return event(error_body(str(error), *status_of(error))) + DONE
