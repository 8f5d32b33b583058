"""Counting what is noticed in documents, with the names of the first few, and keeping it as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_NAMED = 5


@dataclass(slots=True)
class Noted:
    """How many documents something was noticed in, and the names of the first few."""

    count: int = 0
    ids: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        """Note one document."""
        self.count += 1
        if len(self.ids) < _NAMED:
            self.ids.append(name)


class Notes(dict[str, Noted]):
    """Kinds of what was noticed → in which documents."""

    def add(self, what: str, name: str) -> None:
        """Count document `name` under `what`."""
        self.setdefault(what, Noted()).add(name)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {what: {"count": noted.count, "ids": noted.ids} for what, noted in self.items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Notes:
        """What `to_json` gave."""
        return cls({what: Noted(noted["count"], list(noted["ids"])) for what, noted in content.items()})
