"""Peaks of memory are the work's own."""

from __future__ import annotations

import sys

import pytest
import torch

from hayless.core.errors import NotSupported, WorkError
from hayless.measure import memory
from hayless.measure.memory import Memory, MemoryMeter, enough_memory

MB = 10**6
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process restart its peak")


def _hold(megabytes: int) -> torch.Tensor:
    return torch.ones(megabytes * MB // 4)


@linux_only
def test_the_peak_leaves_out_loading_and_what_was_there_before():
    before = _hold(100)
    meter = MemoryMeter(torch.device("cpu"))
    model, loading = _hold(80), _hold(150)
    del loading
    meter.restart()
    work = _hold(60)
    del work
    found = meter.read()
    assert found.model_bytes == pytest.approx(140 * MB, abs=6 * MB)
    assert found.baseline_bytes > 100 * MB
    assert "since the model was loaded" in found.note
    assert len(before) and len(model)


def test_a_system_that_keeps_one_peak_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path)
    meter = MemoryMeter(torch.device("cpu"))
    loading = _hold(90)
    del loading
    meter.restart()
    found = meter.read()
    assert "loading included" in found.note and found.reserved_bytes is None
    assert found.peak_bytes >= found.baseline_bytes + 80 * MB


def test_the_peak_is_never_below_the_baseline():
    assert Memory(10, 4, None, "").model_bytes == 0


def test_devices_without_a_peak_are_refused():
    with pytest.raises(NotSupported, match="mps"):
        MemoryMeter(torch.device("mps"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_peaks():
    device = torch.device("cuda")
    meter = MemoryMeter(device)
    model, loading = _hold(80).to(device), _hold(150).to(device)
    del loading
    meter.restart()
    work = _hold(60).to(device)
    del work
    found = meter.read()
    assert found.model_bytes == pytest.approx(140 * MB, abs=2 * MB)
    assert found.reserved_bytes >= 140 * MB and len(model)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory.\nMore"), MemoryError(), RuntimeError("can't allocate memory: 9")],
)
def test_memory_that_runs_out_says_what_to_do(error):
    with pytest.raises(WorkError, match="Memory ran out") as caught, enough_memory("Ask for less."):
        raise error
    assert caught.value.hint == "Ask for less." and "More" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("Ask for less."):
        raise RuntimeError("shapes do not fit")
