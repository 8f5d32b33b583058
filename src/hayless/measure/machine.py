"""The machine itself: what it is, what is free, how fast it copies and multiplies.

Rates are medians of repeated timings after a warm-up, within about a second each, and are remembered in the user's
cache folder under the machine and its versions. A cache that cannot be read or written is left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from hayless.core import atomic, devices
from hayless.core.devices import Device
from hayless.core.errors import HaylessError, NotSupported
from hayless.core.measurement import Machine

PACKAGES = ("torch", "transformers", "triton", "tokenizers", "safetensors", "datasets", "peft", "numpy", "hayless")
"""Packages whose versions belong to a measurement."""

_BUDGET_SECONDS = 1.0
_COPY_BYTES = {"cpu": 256 * 2**20, "cuda": 2 * 2**30}
_MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}
_MINIMUM_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Resources:
    """What a new process could use now: bytes of host memory, bytes of each CUDA device by its number, cores."""

    memory_bytes: int
    accelerator_bytes: dict[int, int]
    cores: int


@cache
def describe() -> Machine:
    """This machine and the versions that measurements depend on."""
    cuda = torch.cuda.is_available()
    properties = torch.cuda.get_device_properties(0) if cuda else None
    return Machine(
        processor=processor(),
        cores=cores(),
        memory_bytes=memory_bytes(),
        accelerator=properties.name if properties else ("Apple GPU (MPS)" if _mps() else None),
        accelerator_bytes=properties.total_memory if properties else None,
        python=platform.python_version(),
        versions={name: found for name in PACKAGES if (found := version(name))} | _build(cuda),
    )


def processor() -> str:
    """The processor's name as its maker gives it, where the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine() or "unknown"


def cores() -> int:
    """Cores this process may use: those it is bound to, and no more than a control group's quota allows."""
    try:
        bound = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        bound = os.cpu_count() or 1
    quota = _group_number("cpu.max")
    return max(1, min(bound, quota)) if quota else bound


def memory_bytes() -> int:
    """Bytes of memory this process may use: the machine's, or its control group's limit."""
    total = int(psutil.virtual_memory().total)
    limit = _group_number("memory.max")
    return min(total, limit) if limit else total


def free_memory_bytes() -> int:
    """Bytes of memory this process may still take: what the machine has free, and its control group allows."""
    free = int(psutil.virtual_memory().available)
    limit, used = _group_number("memory.max"), _group_number("memory.current")
    if limit and used is not None:
        free = min(free, max(0, limit - used + _reclaimable()))
    return free


def resources() -> Resources:
    """What is free now, for whoever starts processes. CUDA devices are asked, which makes a context on each."""
    accelerators = {}
    for number in range(torch.cuda.device_count()):
        with contextlib.suppress(RuntimeError):  # a device that is full or lost has nothing to give
            accelerators[number] = int(torch.cuda.mem_get_info(number)[0])
    return Resources(free_memory_bytes(), accelerators, cores())


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def copy_bandwidth(device: torch.device | str = "cpu", *, fresh: bool = False) -> float:
    """Bytes/s of a large copy within `device`'s memory, bytes read and bytes written counted.

    `fresh` measures again. NotSupported for a device that cannot be timed.
    """
    device = _timed(device)
    return _remembered(f"copy {_name(device)}", fresh, lambda: _measure_copy(device))


def matmul_rate(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, fresh: bool = False
) -> float:
    """FLOP/s of a large square matrix product of random numbers in `dtype` on `device`.

    `fresh` measures again. NotSupported for a dtype the device cannot multiply.
    """
    device = _timed(device)
    return _remembered(f"matmul {_name(device)} {dtype}", fresh, lambda: _measure_matmul(device, dtype))


def this_device(device: torch.device | str = "cpu") -> Device:
    """`device` as numbers for predictions, from measured rates."""
    device = _timed(device)
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        with contextlib.suppress(NotSupported):
            rates[str(dtype).removeprefix("torch.")] = matmul_rate(device, dtype)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return devices.this_machine(properties.name, properties.total_memory, copy_bandwidth(device), rates)
    return devices.this_machine(processor(), memory_bytes(), copy_bandwidth(device), rates)


def _measure_copy(device: torch.device) -> float:
    size = _COPY_BYTES[device.type]
    if device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(device)[0] // 8)
    else:
        size = min(size, free_memory_bytes() // 8)
    source = torch.ones(max(1, size // 4), dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def _measure_matmul(device: torch.device, dtype: torch.dtype) -> float:
    size = _MATMUL_SIZE[device.type]
    try:
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        out = torch.mm(a, b)
        return 2 * size**3 / _median_seconds(lambda: torch.mm(a, b, out=out), device)
    except (RuntimeError, TypeError) as error:
        raise NotSupported(f"{device} cannot multiply {dtype}: {error}") from error


def _median_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median of at least five timings, after one warm-up, for as long as the budget lasts."""
    seconds: list[float] = []
    end = time.perf_counter() + _BUDGET_SECONDS
    with torch.inference_mode(False), torch.no_grad():
        _run(work, device)
        while len(seconds) < _MINIMUM_REPEATS or (time.perf_counter() < end and len(seconds) < 100):
            seconds.append(_run(work, device))
    return statistics.median(seconds)


def _run(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _remembered(what: str, fresh: bool, measure: Callable[[], float]) -> float:
    """A rate from the cache, or measured and put there."""
    path = _cache_file()
    known = _read_cache(path)
    key = f"{what}, {torch.get_num_threads()} threads"
    if not fresh and key in known:
        return known[key]
    found = measure()
    with contextlib.suppress(HaylessError, OSError):
        atomic.write_json(path, {**known, key: found})
    return found


def _cache_file() -> Path:
    """One file a machine and set of versions."""
    machine = describe().model_dump_json()
    digest = hashlib.sha256(machine.encode()).hexdigest()[:16]
    base = os.environ.get("XDG_CACHE_HOME") or ""
    # The specification of XDG says to ignore relative paths.
    root = Path(base) if base and Path(base).is_absolute() else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111
    return root / "hayless" / f"machine-{digest}.json"


def _read_cache(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: float(value) for key, value in found.items() if isinstance(value, int | float) and 0 < value < 1e18}


def _timed(device: torch.device | str) -> torch.device:
    device = torch.device(device)
    if device.type not in _COPY_BYTES:
        raise NotSupported(f"{device.type} is not timed here.", hint="Measure on cpu or cuda.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise NotSupported("torch sees no CUDA device.")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _mps() -> bool:
    return torch.backends.mps.is_available()


def _build(cuda: bool) -> dict[str, str]:
    """torch with its build, which the package's version may leave out, and what it was built for."""
    return {"torch": str(torch.__version__)} | ({"cuda": str(torch.version.cuda)} if cuda else {})


def _group_number(name: str) -> int | None:
    """A limit of this process's control group (version 2): bytes, or whole cores for `cpu.max`; None without one."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        path = Path("/proc/self/cgroup").read_text(encoding="utf-8").strip().rpartition("::")[2].lstrip("/")
        for folder in (Path("/sys/fs/cgroup") / path, Path("/sys/fs/cgroup")):
            if (folder / name).is_file():
                fields = (folder / name).read_text(encoding="utf-8").split()
                if fields[0] == "max":
                    return None
                return -(-int(fields[0]) // int(fields[1])) if name == "cpu.max" else int(fields[0])
    return None


def _reclaimable() -> int:
    """Bytes of file cache that count as used in the control group but are given up when asked for."""
    with contextlib.suppress(OSError, ValueError):
        text = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="utf-8")
        return int(dict(line.split() for line in text.splitlines()).get("inactive_file", 0))
    return 0
