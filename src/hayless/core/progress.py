"""How work that takes long says how far it is: a plain callable, so that any room can report and any front can show."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done so far, in all)."""


def no_progress(what: str, done: int, total: int) -> None:
    """Shows nothing."""
