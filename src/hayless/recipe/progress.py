"""Progress of work that takes long, as a bar on a terminal: what rooms below report through a plain callable."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from hayless.core.progress import Progress


@contextmanager
def shown(console: Console) -> Iterator[Progress]:
    """A callable that shows what it is told on `console` while the block runs; nothing where that is no terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, visible=False)
        doing = ""

        def report(what: str, done: int, total: int) -> None:
            nonlocal doing
            if what != doing:
                doing = what
                bar.reset(task, total=total, description=what, visible=True)
            bar.update(task, completed=done, total=total)

        yield report
