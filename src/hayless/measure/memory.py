"""Peak memory, with what the process held before the model beside it.

On CUDA: the allocator's peak, and what it reserved from the driver (the CUDA context, some hundred MB, is in neither).
On the CPU: the peak of resident memory of this process, which should be a fresh one. Linux keeps it as VmHWM and lets a
process restart it (`/proc/self/clear_refs`), so that loading is left out; macOS and Windows keep one peak for life,
loading included. (`ru_maxrss` is not used on Linux where VmHWM exists: it survives fork and exec.)
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from hayless.core.errors import NotSupported, WorkError

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESTART_PEAK = "5"
_CPU_ALLOCATOR = "can't allocate memory"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes at the peak and before the model; `reserved_bytes` on CUDA only; `note` says what the peak includes."""

    baseline_bytes: int
    peak_bytes: int
    reserved_bytes: int | None
    note: str

    @property
    def model_bytes(self) -> int:
        """The peak less what was there before the model."""
        return max(0, self.peak_bytes - self.baseline_bytes)


class MemoryMeter:
    """Make it before the model is loaded, `restart` it when loading is done, `read` it after the work.

    NotSupported for a device whose peak cannot be read.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise NotSupported(f"Peak memory cannot be read on {device.type}.", hint="Measure on cpu or cuda.")
        self._device = device
        self._restarted = False
        if device.type == "cuda":
            # Products of a rehearsal leave their workspaces allocated; the model's own will need them, and count.
            torch._C._cuda_clearCublasWorkspaces()
        self._baseline = current_bytes(device)

    @property
    def baseline_bytes(self) -> int:
        """What was held when the meter was made."""
        return self._baseline

    def restart(self) -> None:
        """Forget the peak so far, where the system allows it, and give back what is free."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()
        else:
            _return_free_memory()
        self._restarted = restart_peak(self._device)

    def read(self) -> Memory:
        """The peak since `restart` (or since the process began)."""
        start = "since the model was loaded" if self._restarted else "of the whole process, loading included"
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            peak = peak_bytes(self._device)
            reserved = torch.cuda.max_memory_reserved(self._device)
            return Memory(self._baseline, peak, reserved, f"CUDA allocator, {start}")
        return Memory(self._baseline, peak_rss(), None, f"resident memory, {start}")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left, on whatever device."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or _CPU_ALLOCATOR in str(error)


@contextmanager
def enough_memory(hint: str) -> Iterator[None]:
    """WorkError with `hint` where memory runs out in the block."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise WorkError(f"Memory ran out: {str(error).partition(chr(10))[0]}", hint=hint) from error


def current_bytes(device: torch.device | str = "cpu") -> int:
    """Bytes held now: by tensors on a CUDA device, or by this process in resident memory."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated(device)
    _return_free_memory()
    return int(psutil.Process().memory_info().rss)


def restart_peak(device: torch.device) -> bool:
    """Make the present the peak. False where the system does not allow it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    return _restart_peak_rss()


def peak_bytes(device: torch.device) -> int:
    """The peak of what `current_bytes` counts."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss()


def device_used_bytes(device: torch.device) -> int | None:
    """Bytes in use on a whole CUDA device, by whomever: contexts and libraries too. None on the CPU."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def peak_rss() -> int:
    """Bytes of resident memory at this process's peak."""
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _restart_peak_rss() -> bool:
    """Make the present the peak. False where the system does not allow it."""
    try:
        _CLEAR_REFS.write_text(_RESTART_PEAK, encoding="utf-8")
    except OSError:
        return False
    return True


def _return_free_memory() -> None:
    """Give back what glibc keeps of freed memory, so that leftovers of loading do not count."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):  # another C library: the leftovers stay
            return
