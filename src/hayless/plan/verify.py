"""Running the grid: each case in a fresh process, what it took beside what was predicted, kept as it is finished.

Cases whose memory alone counts run side by side, as many as their predictions let fit; timed ones run alone. Finished
cases stand in `verify.json` and are not run again, so that an interrupted run goes on.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from hayless.core import atomic
from hayless.core.devices import Device, this_machine
from hayless.core.errors import FileDamaged, HaylessError, RequestError, bad_value
from hayless.core.units import format_bytes
from hayless.measure.process import FreshProcess, in_fresh_process
from hayless.plan.grid import Case, DecodeCase, Kind, TrainCase, config
from hayless.plan.memory import CONTEXT_BYTES

FILE = "verify.json"
TRAIN, DECODE, ORACLES, MACHINE = (
    "hayless.train.trial",
    "hayless.measure.bench",
    "hayless.train.oracles",
    "hayless.measure.probe",
)
"""Modules of the workers."""

SECONDS = 1.0
"""About how long the updates of a timed case are timed."""
TIMEOUT = 1200.0
"""Seconds that a case may take."""
_ROOM = 1.3
"""Cases side by side are given their predictions times this: an allocator keeps up to so much more than is in use."""
_TRACKER_BYTES = 1_000_000_000
"""Allowance for a process that follows fake tensors."""
_IDLE = 4
"""Workers that are started before their turn."""
_ENVIRONMENT: Mapping[Kind, Mapping[str, str]] = {"cuda": {}, "cpu": {"MALLOC_MMAP_THRESHOLD_": "65536"}}
"""On Linux' CPUs: what is freed goes back to the system at once, so that resident memory is memory in use. Without this
glibc keeps up to as much again."""

Say = Callable[[str, int, int], None]


def run(
    cases: Sequence[Case],
    folder: Path,
    *,
    device: str,
    say: Say,
    timed: bool = True,
    fresh: bool = False,
    at_once: int = 1,
    until: float | None = None,
) -> dict[str, Any]:
    """Run what is not finished yet in `folder`, and return its content: `machine`, `device`, `cases`, `accelerate`.

    `device` is torch's name of one. `at_once` processes at most run side by side; not `timed`, all cases do. No case
    is begun after `until` seconds. RequestError for a device that is not there. KeyboardInterrupt leaves what is done.
    """
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise bad_value("device", device, allowed="cpu, cuda or cuda:N, where peaks of memory can be read")
    folder.mkdir(parents=True, exist_ok=True)
    here = in_fresh_process(MACHINE, {"device": device})
    with contextlib.closing(_Run(folder, here, device, say, timed, fresh, until)) as going:
        going.all(cases, at_once)
        return going.content


def device_of(content: dict[str, Any]) -> Device:
    """The device of a finished run, with the rates measured on it."""
    found = content["device"]
    return this_machine(found["name"], found["memory_bytes"], found["bytes_per_second"], found["flops_per_second"])


class _Run:
    """One run of a grid: its file, its processes, and how much of the device they may take."""

    def __init__(
        self, folder: Path, here: dict[str, Any], device: str, say: Say, timed: bool, fresh: bool, until: float | None
    ) -> None:
        self._folder, self._device, self._say, self._timed = folder, device, say, timed
        self._kind: Kind = "cpu" if device.startswith("cpu") else "cuda"
        self._end = None if until is None else time.monotonic() + until
        before = {} if fresh else _read(folder / FILE)
        known = before.get("machine") == here["machine"]
        kept = before if known else {}
        self.content: dict[str, Any] = {**here, "kind": self._kind, "cases": kept.get("cases", {})}
        self.content |= {"accelerate": kept.get("accelerate", {}), "fitted": kept.get("fitted", [])}
        self._free = here["free_bytes"]
        self._lock = threading.Lock()
        self._idle: dict[str, deque[FreshProcess]] = {TRAIN: deque(), DECODE: deque()}
        self._busy: set[FreshProcess] = set()
        self._left: dict[str, int] = {TRAIN: 0, DECODE: 0}
        self._done = self._total = 0

    def all(self, cases: Sequence[Case], at_once: int) -> None:
        """Every case that is not finished: side by side first, then alone."""
        waiting = [case for case in cases if not self._finished(case)]
        self._total, self._done = len(cases), len(cases) - len(waiting)
        for case in waiting:
            self._left[_module(case)] += 1
        alone = [case for case in waiting if self._timed and (isinstance(case, DecodeCase) or case.timed)]
        tracked = [
            case
            for case in cases
            if isinstance(case, TrainCase) and case.tracked and "tracked" not in self._entry(case)
        ]
        self._together([case for case in waiting if case not in alone], tracked, at_once)
        for case in alone:
            if self._late():
                break
            self._one(case, alone=True)
        self._ask_accelerate(cases)

    def close(self) -> None:
        """End every worker."""
        with self._lock:
            open_ = [*self._busy, *(process for idle in self._idle.values() for process in idle)]
            self._idle = {TRAIN: deque(), DECODE: deque()}
        for process in open_:
            process.close()

    def _together(self, cases: Sequence[Case], tracked: Sequence[TrainCase], at_once: int) -> None:
        """Run as many as fit side by side, the largest first."""
        work: list[tuple[int, Callable[[], None]]] = sorted(
            [(_need(case, self._on, self._kind), _call(self._one, case)) for case in cases], key=lambda item: -item[0]
        )
        work[:0] = [(_TRACKER_BYTES, _call(self._track, case)) for case in tracked]
        running: dict[Future[None], int] = {}
        with ThreadPoolExecutor(max(1, at_once)) as pool:
            try:
                while (work and not self._late()) or running:
                    free = self._free - sum(running.values())
                    fits = next((item for item in work if item[0] <= free or not running), None)
                    if fits and len(running) < at_once and not self._late():
                        work.remove(fits)
                        running[pool.submit(fits[1])] = fits[0]
                        continue
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[future]
                        future.result()
            except BaseException:
                self.close()
                raise

    @property
    def _on(self) -> Device:
        return device_of(self.content)

    def _one(self, case: Case, *, alone: bool = False) -> None:
        """Run a case and keep what it took, or why it could not."""
        entry: dict[str, Any] = {"kind": "decode" if isinstance(case, DecodeCase) else "train", "alone": alone}
        need = _need(case, self._on, self._kind)
        if need / _ROOM > self._free:
            entry["skipped"] = f"needs {format_bytes(need / _ROOM)} of {format_bytes(self._free)}"
        else:
            if alone and self._kind == "cuda":
                entry["used_before_bytes"] = _used_by_others()
            start = time.monotonic()
            try:
                entry["found"] = self._ask(_module(case), self._asked(case, alone), alone=alone)
            except HaylessError as error:
                entry["failed"] = str(error)
            entry["seconds"] = round(time.monotonic() - start, 1)
        self._keep(case, entry)

    def _track(self, case: TrainCase) -> None:
        """Ask MemTracker for a case's peak."""
        asked = {"trial": case.asked(self._device, self._kind, 0.0)}
        try:
            found: dict[str, Any] = {"bytes": in_fresh_process(ORACLES, asked, TIMEOUT)["peak_bytes"]}
        except HaylessError as error:
            found = {"failed": str(error)}
        self._keep(case, {"tracked": found}, counts=False)

    def _ask_accelerate(self, cases: Sequence[Case]) -> None:
        """accelerate's figures for every model."""
        dtype = "bfloat16" if self._kind == "cuda" else "float32"
        names = [name for name in dict.fromkeys(case.model for case in cases) if name not in self.content["accelerate"]]
        if names and not self._late():
            with contextlib.suppress(HaylessError):
                asked = [{"config": config(name), "dtype": dtype} for name in names]
                found = in_fresh_process(ORACLES, {"models": asked})["models"]
                self.content["accelerate"] |= dict(zip(names, found, strict=True))
                atomic.write_json(self._folder / FILE, self.content)

    def _asked(self, case: Case, alone: bool) -> dict[str, Any]:
        if isinstance(case, TrainCase):
            return case.asked(self._device, self._kind, SECONDS if alone else 0.0)
        folder = self._folder / "configs" / case.model
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write_json(folder / "config.json", config(case.model))
        return case.asked(self._device, self._kind, str(folder / "config.json"))

    def _ask(self, module: str, request: dict[str, Any], *, alone: bool) -> dict[str, Any]:
        """The answer of a fresh process, which was started before its turn.

        Others are started in its place meanwhile, or, where it must be alone, in batches that are waited for: a process
        that imports takes time from one that launches kernels.
        """
        with self._lock:
            idle = self._idle[module]
            if not idle or not alone:
                while len(idle) < min(_IDLE, self._left[module]):
                    idle.append(FreshProcess(module, _ENVIRONMENT[self._kind]))
            process = idle.popleft()
            self._left[module] -= 1
            self._busy.add(process)
        if alone:
            for waiting in (process, *idle):
                waiting.wait_until_ready()
        try:
            return process.ask(request, TIMEOUT)
        finally:
            process.close()
            with self._lock:
                self._busy.discard(process)

    def _keep(self, case: Case, entry: dict[str, Any], *, counts: bool = True) -> None:
        with self._lock:
            self.content["cases"].setdefault(case.name, {}).update(entry)
            atomic.write_json(self._folder / FILE, self.content)
            self._done += counts
            done = self._done
        self._say(case.name, done, self._total)

    def _entry(self, case: Case) -> dict[str, Any]:
        found: dict[str, Any] = self.content["cases"].get(case.name, {})
        return found

    def _finished(self, case: Case) -> bool:
        """Whether there is a figure, and times where they are wanted."""
        entry = self._entry(case)
        return "found" in entry and (entry["alone"] or not self._timed or not getattr(case, "timed", True))

    def _late(self) -> bool:
        return self._end is not None and time.monotonic() > self._end


def _call(work: Callable[..., None], case: Case) -> Callable[[], None]:
    return lambda: work(case)


def _module(case: Case) -> str:
    return DECODE if isinstance(case, DecodeCase) else TRAIN


def _need(case: Case, on: Device, kind: Kind) -> int:
    """Bytes to set aside for a case."""
    costs = case.predicted(on, kind).costs.values()
    return round(_ROOM * max(cost.peak.total for cost in costs)) + CONTEXT_BYTES


def _used_by_others() -> int | None:
    """Bytes in use on the first GPU while no process of ours is on it; None where nvidia-smi does not say."""
    tool = shutil.which("nvidia-smi")
    if not tool:
        return None
    query = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
        return int(said.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def read(folder: Path) -> dict[str, Any]:
    """What is in a run's folder. RequestError where nothing is."""
    found = _read(folder / FILE)
    if not found:
        raise RequestError(f"There is no {folder / FILE}.", hint="Leave --no-run out to make one.")
    return found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    found = atomic.read_json(path)
    if not isinstance(found, dict) or not found.keys() >= {"machine", "device", "kind", "cases"}:
        raise FileDamaged(f"{path} is no run of a grid.", hint="Start over with --fresh.")
    return found
