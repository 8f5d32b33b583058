"""A worker for the tests of fresh processes: does what the request says, mostly harm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hayless.core.errors import MissingExtra, NotSupported
from hayless.measure.process import answer


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Obey the request's `do`."""
    match request["do"]:
        case "echo":
            print("noise on stdout { that is no JSON")
            return {"request": request, "pid": os.getpid(), "there": os.environ.get("HAYLESS_TEST")}
        case "refuse":
            raise NotSupported("no such thing", hint="do another")
        case "missing extra":
            raise MissingExtra("pynvml", "energy", "Energy")
        case "fail":
            print("a first line", file=sys.stderr)
            raise ValueError("it broke")
        case "not a number":
            return {"value": float("nan")}
        case "leave":
            os._exit(0)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
            Path(request["pids"]).write_text(f"{os.getpid()} {child.pid}", encoding="utf-8")
            time.sleep(60)
    return {}


if __name__ == "__main__":
    answer(handle)
