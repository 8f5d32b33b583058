"""What a request must be before any route sees it: small enough, and from somebody who may ask."""

from __future__ import annotations

import json
import secrets
from typing import Any

from hayless.serve.errors import error_body

Scope = dict[str, Any]


class Limits:
    """ASGI middleware: 413 for a body beyond `body` bytes, 401 without the bearer `token`, if there is one.

    A body is counted as it comes, whatever its headers say; tokens are compared in constant time.
    """

    def __init__(self, app: Any, *, body: int, token: str | None) -> None:
        self._app, self._body, self._token = app, body, token

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] != "/health" and not self._known(headers):
            await _answer(send, 401, "A bearer token is needed (Authorization: Bearer ...).", "invalid_api_key")
            return
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._body:
            await _answer(send, 413, f"The body may have {self._body:,} bytes.", "body_too_large")
            return
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            if len(body) > self._body:
                await _answer(send, 413, f"The body may have {self._body:,} bytes.", "body_too_large")
                return
            more = message.get("more_body", False)
        await self._app(scope, _replay(body, receive), send)

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        assert self._token is not None
        given = headers.get(b"authorization", b"")
        return secrets.compare_digest(given, b"Bearer " + self._token.encode())


def _replay(body: bytes, receive: Any) -> Any:
    """What was read, once; then what comes after it (that the client has left)."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Any:
        return left.pop() if left else await receive()

    return again


async def _answer(send: Any, status: int, message: str, code: str) -> None:
    body = json.dumps(error_body(message, status, code)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
