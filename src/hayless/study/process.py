"""One row of a study as a process of its own: started, watched and ended. No torch.

The row is the command a user could type (`hayless run RECIPE --run-dir FOLDER`), with its output in a log file. It
stands in a session of its own, so that Ctrl-C reaches the study first, which then ends its rows in order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hayless.core.errors import FileDamaged
from hayless.recipe.folder import RunFolder

GRACE_SECONDS = 20.0
"""How long a row may take to save and leave after it was asked to."""

COMMAND = (sys.executable, "-P", "-m", "hayless")
"""How the command line is called. -P keeps files of the current folder from standing in for modules."""

_TAIL_LINES = 8
_TAIL_BYTES = 8192


@dataclass(slots=True)
class Process:
    """A running row."""

    folder: Path
    log: Path
    started: float
    popen: subprocess.Popen[bytes]
    peak_bytes: int = 0
    """Largest resident memory of the row and its children together, as far as it was watched."""
    _known: list[psutil.Process] = field(default_factory=list)

    @classmethod
    def start(cls, recipe: Path, folder: Path, log: Path, *, fresh: bool, peer: str = "") -> Process:
        """Start `hayless run` on a recipe, its output going to `log`; `peer` carries it out in hayless's place."""
        command = [*COMMAND, "run", str(recipe), "--run-dir", str(folder)]
        command += ["--peer", peer] if peer else []
        command += ["--fresh"] if fresh else []
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=os.name == "posix",
            )
        return cls(folder, log, time.monotonic(), popen)

    @property
    def seconds(self) -> float:
        """Wall time since it started."""
        return time.monotonic() - self.started

    def poll(self) -> int | None:
        """The exit code, or None while it runs. Watches its memory on the way."""
        code = self.popen.poll()
        if code is None:
            with contextlib.suppress(psutil.Error):
                self.peak_bytes = max(self.peak_bytes, self.resident_bytes())
        return code

    def resident_bytes(self) -> int:
        """Resident memory of the row and its children now; pages they share count for each."""
        total = 0
        self._known = _tree(self.popen.pid)
        for process in self._known:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def end(self, grace: float = GRACE_SECONDS) -> None:
        """Ask the row to save and leave; kill it and its children if it does not within `grace` seconds."""
        family = {process.pid: process for process in (*self._known, *_tree(self.popen.pid))}
        if self.popen.poll() is None:
            self.popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(grace)
        for process in family.values():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.popen.wait()

    def last_line(self) -> str:
        """The last thing the row printed, as plain letters."""
        lines = tail(self.log, 1)
        return lines[0] if lines else ""

    def failure(self, code: int) -> str:
        """Why the row failed: its own reason where it noted one, else how it ended and the last lines of its log."""
        status = {}
        with contextlib.suppress(FileDamaged, OSError):
            status = RunFolder(self.folder).status()
        if code > 0 and status.get("state") == "failed" and status.get("reason"):
            return str(status["reason"])
        lines = tail(self.log, _TAIL_LINES)
        marked = [position for position, line in enumerate(lines) if line.startswith("error: ")]
        if code > 0 and marked:
            return "\n".join(lines[marked[-1] :]).removeprefix("error: ")
        return "\n".join([_ended(code), *lines])


def tail(path: Path, count: int) -> list[str]:
    """The last `count` lines of a log that are not empty, without control characters."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = ("".join(letter for letter in line if letter.isprintable()).rstrip() for line in text.splitlines())
    return [line[:400] for line in lines if line.strip()][-count:]


def _ended(code: int) -> str:
    if code == 0:
        return "It left without finishing."
    if code > 0:
        return f"It left with exit code {code}."
    known = {member.value: member.name for member in signal.Signals}
    words = f"It was killed by {known.get(-code, f'signal {-code}')}."
    if os.name == "posix" and code == -signal.SIGKILL:
        words += " The system kills a process like this when memory runs out."
    return words


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []
