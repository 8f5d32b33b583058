"""YAML in, plain data and line numbers out.

Only mappings, sequences and scalars are read. Aliases and tags are refused: recipes need neither, and they are how a
small file becomes a large one or a piece of code.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent, MappingStartEvent, ScalarEvent, SequenceStartEvent

from hayless.core.errors import RequestError

MAX_BYTES = 1_000_000
MAX_DEPTH = 40

Location = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """Plain data with where each part of it stands."""

    data: Any
    lines: dict[Location, int]
    """Path of keys and indices → line, counted from 1."""
    source: str

    def line(self, location: Location) -> int | None:
        """The line of `location`, or of the nearest thing around it that has one."""
        while location:
            if location in self.lines:
                return self.lines[location]
            location = location[:-1]
        return None


def read(path: Path) -> Text:
    """Read a YAML file. RequestError says what is wrong and where."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"There is no file {path}.") from None
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} is not UTF-8 (byte {error.start}).", hint="Save it as UTF-8.") from None
    return parse(text, str(path))


def parse(text: str, source: str = "recipe") -> Text:
    """Parse YAML text. RequestError says what is wrong and where."""
    if len(text) > MAX_BYTES:
        raise RequestError(f"{source} is larger than {MAX_BYTES:,} bytes.")
    try:
        _refuse_tricks(text, source)
        found = YAML(typ="rt", pure=True).load(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise RequestError(f"{source}{where}: {error.problem or error.context}.") from None
    except (YAMLError, RecursionError, ValueError) as error:
        raise RequestError(f"{source} is not valid YAML: {error}.") from None
    lines: dict[Location, int] = {}
    return Text(_plain(found, (), lines), lines, source)


def value(text: str) -> Any:
    """One value as YAML reads it: `3e-4` → 0.0003, `[a, b]` → a list, `2M` → the string."""
    return parse(text, f"the value {text!r}").data


def write(data: Any) -> str:
    """Plain data as YAML, keys in the order given."""
    dumper = YAML(typ="safe", pure=True)
    dumper.default_flow_style = False
    dumper.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    out = io.StringIO()
    dumper.dump(data, out)
    return out.getvalue()


def _refuse_tricks(text: str, source: str) -> None:
    depth = 0
    for event in YAML(typ="rt", pure=True).parse(io.StringIO(text)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, AliasEvent):
            raise RequestError(
                f"{source}, line {line}: aliases (*{event.anchor}) are not allowed; write the value out."
            )
        starts = isinstance(event, MappingStartEvent | SequenceStartEvent)
        if (starts or isinstance(event, ScalarEvent)) and event.ctag is not None:
            raise RequestError(f"{source}, line {line}: the tag {event.ctag} is not allowed; plain values only.")
        depth += starts - type(event).__name__.endswith("EndEvent")
        if depth > MAX_DEPTH:
            raise RequestError(f"{source}, line {line}: nested more than {MAX_DEPTH} deep.")


def _plain(node: Any, location: Location, lines: dict[Location, int]) -> Any:
    if isinstance(node, CommentedMap):
        for key in node:
            lines[(*location, key)] = node.lc.key(key)[0] + 1
        return {str(key): _plain(node[key], (*location, key), lines) for key in node}
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*location, index)] = node.lc.item(index)[0] + 1
        return [_plain(item, (*location, index), lines) for index, item in enumerate(node)]
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node
