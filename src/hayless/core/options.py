"""The base of everything a user can set: frozen, strict, documented."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from hayless.core.errors import HaylessError
from hayless.core.units import parse_bytes, parse_count


class Options(BaseModel):
    """Base of recipe sections and method configs. Unknown fields, NaN and later changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _count(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_count(value)
    except HaylessError as error:
        raise ValueError(error.message) from None


def _bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return parse_bytes(value)
    except HaylessError as error:
        raise ValueError(error.message) from None


Count = Annotated[int, BeforeValidator(_count)]
"""A whole number, also written `500k`, `2M`."""

ByteCount = Annotated[int, BeforeValidator(_bytes)]
"""A number of bytes, also written `24GB` (10⁹) or `24GiB` (2³⁰)."""
