"""From YAML (or a mapping) and overrides to a validated Recipe, with every mistake named at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from hayless.core.errors import RequestError, nearest
from hayless.recipe import yaml
from hayless.recipe.overrides import override
from hayless.recipe.schema import STEPS, Recipe

_Model = TypeVar("_Model", bound=BaseModel)


def load(source: Path | str | Mapping[str, Any], overrides: Iterable[str] = ()) -> Recipe:
    """A Recipe from a YAML file or a mapping, with `key=value` overrides applied.

    Raises RequestError that lists every mistake with its path, line, what is allowed and the nearest spelling.
    """
    if isinstance(source, Mapping):
        text = yaml.Text(dict(source), {}, "recipe")
    else:
        text = yaml.read(Path(source))
    if not isinstance(text.data, dict):
        raise RequestError(f"{text.source} holds no recipe: a mapping with name, model and steps is expected.")
    data = text.data
    for assignment in overrides:
        data = override(data, assignment)
    return validate(Recipe, yaml.Text(data, text.lines, text.source))


def validate(model: type[_Model], text: yaml.Text) -> _Model:
    """`text.data` as `model`; RequestError lists every mistake."""
    try:
        return model.model_validate(text.data)
    except ValidationError as error:
        mistakes = [_explain(model, item, text) for item in _causes(error.errors())]
        count = f"{len(mistakes)} mistakes" if len(mistakes) > 1 else "a mistake"
        raise RequestError(
            f"{text.source} has {count}:\n" + "\n".join(f"  - {mistake}" for mistake in mistakes)
        ) from None


def _causes(errors: Sequence[Any]) -> list[Any]:
    """Errors without those that only follow from others: a list is too short because its entries were refused."""
    places = [item["loc"] for item in errors]

    def follows(item: Any) -> bool:
        inside = any(place[: len(item["loc"])] == item["loc"] != place for place in places)
        return item["type"] == "too_short" and inside

    return [item for item in errors if not follows(item)]


def _explain(model: type[BaseModel], item: Any, text: yaml.Text) -> str:
    location = _in_data(item["loc"], text.data, absent_last=item["type"] == "missing")
    line = text.line(location)
    where = (".".join(str(part) for part in location) or "recipe") + (f" (line {line})" if line else "")
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{where}: there is no such field; {_allowed(model, item['loc'])}"
    if kind == "missing":
        return f"{where}: is missing."
    if kind == "union_tag_invalid":
        allowed = [tag.strip(" '") for tag in str(context["expected_tags"]).split(",")]
        return (
            f"{where}: {context['tag']!r} is not one of {', '.join(allowed)}.{_did_you_mean(context['tag'], allowed)}"
        )
    if kind == "union_tag_not_found":
        if location and location[0] == "steps" and len(location) == 2:
            found = item["input"]
            named = ", ".join(map(str, found)) if isinstance(found, dict) else repr(found)
            return f"{where}: a step is one of {', '.join(STEPS)}, alone; found {named}.{_did_you_mean(named, STEPS)}"
        return f"{where}: names no method; write `method: NAME`."
    message = item["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(item["input"], dict | BaseModel) else f"{item['input']!r}: "
    return f"{where}: {shown}{message}" + ("" if message.endswith((".", "?")) else ".")


def _in_data(location: Sequence[str | int], data: Any, *, absent_last: bool) -> yaml.Location:
    """The location without the tags that the validator adds for union members; a missing field keeps its name."""
    found: list[str | int] = []
    for position, part in enumerate(location):
        present = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if present:
            data = data[part]
            found.append(part)
        elif absent_last and position == len(location) - 1:
            found.append(part)
    return tuple(found)


def _allowed(model: type[BaseModel], location: Sequence[str | int]) -> str:
    """What the section at `location` may hold, and the spelling nearest to its last part."""
    fields = _fields_at(model.model_json_schema(), location[:-1])
    near = _did_you_mean(str(location[-1]), fields)
    return f"allowed: {', '.join(sorted(fields))}.{near}"


def _did_you_mean(name: str, options: Iterable[str]) -> str:
    near = nearest(name, options) or next(iter(difflib.get_close_matches(name, list(options), 1, 0.5)), None)
    return f" Did you mean {near!r}?" if near else ""


def _fields_at(schema: dict[str, Any], location: Sequence[str | int]) -> list[str]:
    """Field names of the object that `location` leads to, by walking a JSON Schema."""
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = definitions[node["$ref"].rsplit("/", 1)[1]]
        return node

    def options(node: dict[str, Any]) -> list[dict[str, Any]]:
        node = resolve(node)
        return [resolve(each) for each in node.get("oneOf", node.get("anyOf", [node]))]

    def tagged(node: dict[str, Any], tag: str | int) -> bool:
        names = node.get("properties", {})
        return names.get("method", {}).get("const") == tag or (len(names) == 1 and tag in names)

    nodes = [resolve(schema)]
    for part in location:
        if isinstance(part, int):
            nodes = [found for node in nodes for found in options(node.get("items", {}))]
            continue
        by_tag = [node for node in nodes if tagged(node, part)]
        if by_tag and not (len(nodes) == 1 and part in nodes[0].get("properties", {})):
            nodes = by_tag
            continue
        nodes = [
            found for node in nodes if part in node.get("properties", {}) for found in options(node["properties"][part])
        ]
    return sorted({name for node in nodes for name in node.get("properties", {})})
