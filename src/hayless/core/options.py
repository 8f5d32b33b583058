"""The base of everything a user can set: frozen, strict, documented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from hayless.core.errors import HaylessError, RequestError
from hayless.core.units import parse_bytes, parse_count


class Options(BaseModel):
    """Base of recipe sections and method configs. Unknown fields, NaN and later changes are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __hash__(self) -> int:
        # Options may hold mappings, which have no hash of their own.
        return hash(self.model_dump_json())


O = TypeVar("O", bound=Options)


def checked(kind: type[O], values: Mapping[str, Any], names: Mapping[str, str]) -> O:
    """Options of `kind`. RequestError for wrong values; `names` has what the user calls a field, where that differs."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RequestError("\n".join(_explain(item, names) for item in error.errors())) from None


def _explain(item: Any, names: Mapping[str, str]) -> str:
    field = ".".join(str(part) for part in item["loc"])
    name = names.get(field, field)
    if item["type"] == "value_error":
        # A validator of ours, with a sentence of its own; one that looks at several fields names them itself.
        reason = item["msg"].removeprefix("Value error, ").removesuffix(".")
        return f"{name}: {reason}." if name else f"{reason}."
    return f"{name} = {item['input']!r} is not possible; allowed: {item['msg'].removeprefix('Input should be ')}."


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
