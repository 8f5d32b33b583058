"""`key=value` on the command line: the same fields as in the file, by path.

A path starts at a field of the recipe (`seed`, `data.heldout`, `steps.1.train.tokens`), at the kind of a step
(`train.tokens`, `save.merge`) or at the name of a method (`kmeans.bits`, `adamw.learning_rate`), as long as only one
place has that name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hayless.core.errors import RequestError, nearest
from hayless.recipe import yaml

_KINDS = ("apply", "train", "measure", "save")
_TOP = ("name", "model", "data", "steps", "device", "seed")


def override(data: dict[str, Any], assignment: str) -> dict[str, Any]:
    """A copy of the recipe mapping `data` with one `key=value` applied."""
    path, equals, text = assignment.partition("=")
    parts = path.strip().split(".")
    if not equals or not all(parts):
        raise RequestError(f"{assignment!r} is no override; write key=value, such as train.tokens=2M.")
    changed = copy.deepcopy(data)
    holder, rest = _start(changed, parts, assignment)
    for position, part in enumerate(rest[:-1]):
        holder = _inside(holder, part, rest[position + 1], assignment)
    last = rest[-1]
    if isinstance(holder, list):
        index = _index(last, len(holder), assignment)
        holder[index] = yaml.value(text)
    else:
        holder[last] = yaml.value(text)
    return changed


def _start(data: dict[str, Any], parts: list[str], assignment: str) -> tuple[Any, list[str]]:
    first = parts[0]
    if first in data or first in _TOP:
        return data, parts
    places = list(_named(data, first))
    if len(places) == 1 and len(parts) > 1:
        return places[0], parts[1:]
    if len(places) > 1:
        raise RequestError(
            f"{assignment!r}: {first} stands in {len(places)} places of this recipe.",
            hint="Say which by its number, such as steps.1.train.tokens=2M (steps count from 0).",
        )
    names = sorted({*_TOP, *(name for name in _names(data))})
    near = nearest(first, names)
    hint = f"Did you mean {near!r}?" if near else None
    raise RequestError(f"{assignment!r}: this recipe has no {first!r}; it has: {', '.join(names)}.", hint=hint)


def _named(data: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Every section that `name` may stand for: steps of that kind, methods of that name (bare names expanded)."""
    steps = data.get("steps")
    if not isinstance(steps, list):
        return
    for position, step in enumerate(steps):
        if step in ("measure", "save"):
            step = steps[position] = {step: {}}
        if not isinstance(step, dict):
            continue
        for kind in _KINDS:
            if kind not in step:
                continue
            step[kind] = _expanded(step[kind]) if kind == "apply" else step[kind] or {}
            section = step[kind]
            if kind == name:
                yield section
            if isinstance(section, dict):
                yield from _methods_in(section, name)


def _methods_in(section: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if section.get("method") == name:
        yield section
    for key in ("objective", "optimizer"):
        if key in section:
            section[key] = _expanded(section[key])
            if isinstance(section[key], dict) and section[key].get("method") == name:
                yield section[key]
    memory = section.get("memory")
    if not isinstance(memory, list):
        return
    for position, item in enumerate(memory):
        memory[position] = _expanded(item)
        if isinstance(memory[position], dict) and memory[position].get("method") == name:
            yield memory[position]


def _names(data: dict[str, Any]) -> Iterator[str]:
    for step in data.get("steps") or []:
        if isinstance(step, dict):
            for kind, section in step.items():
                yield kind
                if isinstance(section, dict) and isinstance(section.get("method"), str):
                    yield section["method"]


def _expanded(value: Any) -> Any:
    return {"method": value} if isinstance(value, str) else value


def _inside(holder: Any, part: str, following: str, assignment: str) -> Any:
    if isinstance(holder, list):
        index = _index(part, len(holder), assignment)
        holder[index] = {following: None} if holder[index] is None else holder[index]
        if isinstance(holder[index], str) and holder[index] in ("measure", "save"):
            holder[index] = {holder[index]: {}}
        return holder[index]
    if part in ("apply", "optimizer", "objective"):
        holder[part] = _expanded(holder.get(part))
    if part == "model" and isinstance(holder.get(part), str):
        holder[part] = {"path": holder[part]}
    if holder.get(part) is None:
        holder[part] = {}
    if not isinstance(holder[part], dict | list):
        raise RequestError(f"{assignment!r}: {part} is {holder[part]!r} and has no field {following!r}.")
    return holder[part]


def _index(part: str, length: int, assignment: str) -> int:
    if not part.isdigit() or int(part) >= length:
        raise RequestError(f"{assignment!r}: {part!r} is not a number from 0 to {length - 1}.")
    return int(part)
