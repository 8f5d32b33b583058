"""Errors a user can act on.

Every error says what was wrong, what is allowed and what to do next. The command line prints `str(error)` without a
traceback and leaves with `exit_code`: 2 when the request cannot be right, 1 when the work itself failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HaylessError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = message
        self.hint = hint
        super().__init__(f"{message}\n  {hint}" if hint else message)


class RequestError(HaylessError):
    """The request is wrong: a bad option, an impossible recipe, a file that is not there."""

    exit_code = 2


class WorkError(HaylessError):
    """The request was fine, but the work failed: a full disk, a loss that is not finite, memory that ran out."""


class FileDamaged(WorkError):
    """A file is truncated, altered or not what its name says."""


class NotSupported(RequestError):
    """The request makes sense, but is not built. Raised instead of doing something else in silence."""


class MissingExtra(RequestError):
    """An optional dependency is needed and absent."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}.", hint=f'pip install "hayless[{extra}]"')


def bad_value(field: str, value: object, *, allowed: str, hint: str | None = None) -> RequestError:
    """A `RequestError` in the one form used for wrong values."""
    return RequestError(f"{field} = {value!r} is not possible; allowed: {allowed}.", hint=hint)


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, or None when nothing is near."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return found[0] if found else None


def unknown(kind: str, name: str, options: Iterable[str]) -> RequestError:
    """A `RequestError` for a name that is not in a list: names the nearest spelling and everything there is."""
    options = sorted(options)
    near = nearest(name, options)
    hint = f"Did you mean {near!r}?" if near else None
    return RequestError(f"Unknown {kind} {name!r}; there are: {', '.join(options) or 'none'}.", hint=hint)
