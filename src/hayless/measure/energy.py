"""Joules of a GPU, from the energy counter that NVML keeps (Volta and newer). Elsewhere: no figure, and the reason.

NVML counts the whole device in millijoules, other programs on it included, and updates the counter some ten times a
second: intervals under about a second are rough. The package nvidia-ml-py is optional (the `energy` extra).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, Self

import torch


class EnergyMeter:
    """Joules used by a device between entering and leaving the context.

    Where energy cannot be read, `joules` is None and `reason` says why; nothing is raised for that. The device is
    waited for at both ends, so that work queued before or after does not count.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.joules: float | None = None
        self.reason = ""
        self._device = torch.device(device)
        self._nvml: ModuleType | None = None
        self._handle: Any = None
        self._start: int | None = None
        try:
            self._nvml, self._handle = _open(self._device)
        except _Unavailable as error:
            self.reason = str(error)

    @property
    def available(self) -> bool:
        """Whether energy can be read."""
        return self._handle is not None

    def __enter__(self) -> Self:
        self.joules = None
        self._start = self._read()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._start is not None and (end := self._read()) is not None:
            self.joules = max(0, end - self._start) / 1000

    def _read(self) -> int | None:
        """Millijoules since the driver was loaded; None, and a reason, where the counter does not answer."""
        if self._nvml is None:
            return None
        try:
            torch.cuda.synchronize(self._device)
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
        except (self._nvml.NVMLError, RuntimeError) as error:
            self.reason = f"the GPU stopped giving energy: {error}"
            return None


def unavailable(device: torch.device | str) -> str | None:
    """Why energy cannot be read on `device`, or None where it can."""
    return EnergyMeter(device).reason or None


class _Unavailable(Exception):
    """Energy cannot be read; the message says why."""


def _open(device: torch.device) -> tuple[ModuleType, Any]:
    """NVML and its handle of a CUDA device whose counter answers."""
    if device.type != "cuda":
        raise _Unavailable(f"energy is read from NVIDIA GPUs only, not from {device.type}")
    try:
        import pynvml
    except ImportError:
        raise _Unavailable('the package nvidia-ml-py is not installed: pip install "hayless[energy]"') from None
    try:
        pynvml.nvmlInit()
        # By UUID, since CUDA's numbers follow CUDA_VISIBLE_DEVICES and NVML's do not.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError, RuntimeError, AssertionError) as error:
        raise _Unavailable(f"NVML does not give energy here: {error}") from None
    return pynvml, handle
