"""Energy: joules from a counter that behaves like NVML's, and reasons where there is none."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from hayless.measure import energy


class Nvml(ModuleType):
    """A counter of millijoules that grows by 2500 each time it is read."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken_at: int | None = None) -> None:
        super().__init__("pynvml")
        self.reads, self.broken_at, self.asked = 0, broken_at, ""

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked = uuid
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.reads += 1
        if self.reads == self.broken_at:
            raise self.NVMLError("Not Supported")
        return 1_000_000 + 2500 * self.reads


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="abc"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)


def test_joules_are_the_counters_difference(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    nvml = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    meter = energy.EnergyMeter("cuda")
    assert meter.available and nvml.asked == "GPU-abc"
    with meter:
        assert meter.joules is None
    assert meter.joules == 2.5 and meter.reason == ""


@pytest.mark.parametrize("broken_at", [1, 2, 3])
def test_a_counter_that_stops_gives_a_reason(monkeypatch: pytest.MonkeyPatch, gpu: None, broken_at: int) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(broken_at))
    meter = energy.EnergyMeter("cuda")
    with meter:
        pass
    assert meter.joules is None and "Not Supported" in meter.reason


def test_cpus_have_no_figure_and_work_goes_on() -> None:
    with energy.EnergyMeter("cpu") as meter:
        pass
    assert meter.joules is None and "cpu" in meter.reason
    assert energy.unavailable("cpu") == meter.reason


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "hayless[energy]" in str(energy.unavailable("cuda"))


def test_errors_of_the_work_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), energy.EnergyMeter("cpu"):
        _ = 1 / 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_uses_energy() -> None:
    a = torch.randn(4096, 4096, device="cuda")
    with energy.EnergyMeter("cuda") as meter:
        for _ in range(500):
            a @ a
    assert meter.joules is not None and meter.joules > 1
