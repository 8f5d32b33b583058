"""Finding methods by name without importing them all.

`hayless.methods.CATALOGUE` maps each name to the module that holds its card (`METHOD`). It is read here by name so that
rooms below `methods` (a saved model being loaded, say) can find a card without importing upwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any

from pydantic import ValidationError

from hayless.core.errors import FileDamaged, RequestError, nearest, unknown
from hayless.core.method import Method, MethodConfig, Part


def catalogue() -> dict[str, str]:
    """Every method's name → the module that defines its card."""
    return dict(import_module("hayless.methods").CATALOGUE)


@cache
def find(name: str) -> Method:
    """The method called `name`. RequestError with the nearest spelling for one that does not exist."""
    names = catalogue()
    if name not in names:
        raise unknown("method", name, names)
    method: Method = import_module(names[name]).METHOD
    return method


def methods(parts: Iterable[Part] = tuple(Part)) -> list[Method]:
    """All methods that fill one of `parts`, in the catalogue's order."""
    wanted = set(parts)
    return [method for name in catalogue() if (method := find(name)).part in wanted]


def configure(name: str, **options: Any) -> MethodConfig:
    """A validated config of method `name`; RequestError names a wrong option and what is allowed."""
    method = find(name)
    try:
        return method.config(method=name, **options)
    except ValidationError as error:
        raise RequestError("\n".join(_explain(method, item) for item in error.errors())) from None


def record_of(noted: Any) -> list[MethodConfig]:
    """The transforms of a record, which is what a config has under `hayless`.

    FileDamaged for what is no record; RequestError for methods and options that this version does not have.
    """
    if noted is None:
        return []
    entries = noted.get("methods") if isinstance(noted, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "method" in entry for entry in entries):
        raise FileDamaged(f"hayless in the model's config is no record of methods: {str(noted)[:100]}.")
    return configured(entries)


def configured(entries: Iterable[dict[str, Any]]) -> list[MethodConfig]:
    """Configs from plain data, each with its `method`. RequestError as in `configure`."""
    return [
        configure(str(entry["method"]), **{name: value for name, value in entry.items() if name != "method"})
        for entry in entries
    ]


def method_of(config: MethodConfig) -> Method:
    """The method a config belongs to."""
    return find(config.method)


def _explain(method: Method, item: Any) -> str:
    field = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        fields = [name for name in method.config.model_fields if name != "method"]
        near = nearest(field, fields)
        return f"{method.name} has no option {field!r}; it has: {', '.join(fields)}." + (
            f" Did you mean {near!r}?" if near else ""
        )
    return f"{method.name}.{field} = {item.get('input')!r}: {item['msg']}."
