"""Work in a fresh Python process, so that its peak of memory is its own and nothing is cached from before.

The request goes in as one line of JSON on stdin; the answer comes back as a JSON file, because libraries print to
stdout what they like. A worker module calls `answer(handler)` under `if __name__ == "__main__"`. The pipe stays open
while the work runs: when the parent dies, even by SIGKILL, the worker reads its end and leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from hayless.core import atomic
from hayless.core.errors import FileDamaged, HaylessError, NotSupported, RequestError, WorkError, bad_value

_ERRORS: dict[str, type[HaylessError]] = {
    error.__name__: error for error in (RequestError, NotSupported, WorkError, FileDamaged)
}
_TAIL_LINES = 12
_READY = ".ready"
"""What a worker's file for its answer ends in until it is asked."""


def in_fresh_process(module: str, request: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
    """Run `python -m module` on `request` and return its answer; both are plain JSON data.

    An error of this package in the worker is raised here as it was there. WorkError with the reason and the end of
    stderr for anything else that goes wrong: an exception, a kill, no answer, or more than `timeout` seconds (the
    worker and its children are then killed).
    """
    if timeout is not None and not timeout > 0:
        raise bad_value("timeout", timeout, allowed="seconds above 0")
    json.dumps(request, allow_nan=False)
    with FreshProcess(module) as process:
        return process.ask(request, timeout)


class FreshProcess:
    """A worker that imports its module and waits for its one request, so that it can be started before its turn.

    `environment` is what its environment has besides this process's.
    """

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        self._module = module
        self._folder = tempfile.TemporaryDirectory(prefix="hayless-")
        self._result, self._output = (Path(self._folder.name) / name for name in ("result.json", "output.txt"))
        self._ready = self._result.with_suffix(_READY)
        with self._output.open("wb") as printed:
            # -P keeps files of the current folder from standing in for modules.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(self._result)],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Wait until it has imported its module and only waits itself, or has ended."""
        end = time.monotonic() + timeout
        while self._process.poll() is None and not self._ready.exists() and time.monotonic() < end:
            time.sleep(0.05)

    def ask(self, request: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """The answer to `request`; raises as `in_fresh_process` does. A worker answers once."""
        _send(self._process, json.dumps(request, allow_nan=False) + "\n")
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise WorkError(
                f"{self._module} took more than {timeout:g} s and was stopped.{_tail(self._output)}",
                hint="Allow more time, or ask for less work.",
            ) from None
        finally:
            _end(self._process)
        if code != 0 or not self._result.exists():
            raise WorkError(f"{self._module} {_reason(code)}.{_tail(self._output)}", hint=_hint(code))
        answered = atomic.read_json(self._result)
        if "error" in answered:
            error = answered["error"]
            raise _ERRORS.get(error["kind"], WorkError)(error["message"], hint=error["hint"])
        found: dict[str, Any] = answered["result"]
        return found

    def close(self) -> None:
        """End the worker, asked or not."""
        _end(self._process)
        self._folder.cleanup()


def answer(handler: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The worker's side: read the request, run `handler`, write its answer or the error it raised on purpose."""
    Path(sys.argv[1]).with_suffix(_READY).touch()
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    content: dict[str, Any]
    try:
        content = {"result": handler(request)}
    except HaylessError as error:
        kind = type(error).__name__
        if kind not in _ERRORS:
            kind = "RequestError" if isinstance(error, RequestError) else "WorkError"
        content = {"error": {"kind": kind, "message": error.message, "hint": error.hint}}
    atomic.write_json(Path(sys.argv[1]), content)


def _leave_with_parent() -> None:
    # A raw read: a thread that holds sys.stdin's lock would disturb the interpreter's own end.
    while os.read(0, 1024):
        pass
    os._exit(1)


def _send(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # a worker that died at once is reported by its exit code
        process.stdin.write(line.encode())
        process.stdin.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the worker and its children if it still runs (timeout, interrupt), and close the pipe."""
    if process.poll() is None:
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.kill()
            process.kill()
        process.wait()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _reason(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"was killed by {name}"
    return f"failed with exit code {code}" if code else "ended without an answer"


def _hint(code: int) -> str | None:
    if os.name == "posix" and code == -signal.SIGKILL:
        return "The system kills a process like this when memory runs out."
    return None


def _tail(output: Path) -> str:
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if line.strip()][-_TAIL_LINES:]
    return "".join(f"\n  | {line[:300]}" for line in kept)
