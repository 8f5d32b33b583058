"""Errors as OpenAI's clients read them: one body, and the status for each kind."""

from __future__ import annotations

from typing import Any

from hayless.core.errors import HaylessError, RequestError
from hayless.decode.bank import InUse


class UnknownModel(RequestError):
    """A model that is not served here."""


class NotYours(RequestError):
    """Something that only who runs the server may do."""


class Busy(HaylessError):
    """As many requests wait as may."""


class Stopping(HaylessError):
    """The server is being stopped."""


class TookTooLong(HaylessError):
    """A request's time is over."""


_STATUS: dict[type[HaylessError], tuple[int, str]] = {
    UnknownModel: (404, "model_not_found"),
    NotYours: (403, "not_allowed"),
    InUse: (409, "adapter_in_use"),
    RequestError: (400, "invalid_value"),
    Busy: (429, "rate_limit_exceeded"),
    Stopping: (503, "server_stopping"),
    TookTooLong: (504, "timeout"),
    HaylessError: (500, "server_error"),
}
"""Kind → status and code; the first that fits."""

_TYPES = {401: "authentication_error", 429: "rate_limit_error"}


def status_of(error: HaylessError) -> tuple[int, str]:
    """The HTTP status and OpenAI's code of an error."""
    return next(found for kind, found in _STATUS.items() if isinstance(error, kind))


def error_body(message: str, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """The body of an answer that is an error."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
