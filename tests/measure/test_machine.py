"""What the machine is, and its rates: measured, remembered, and never in the way."""

from __future__ import annotations

import json
import platform
import types
from pathlib import Path

import pytest
import torch

from hayless.core.errors import NotSupported
from hayless.measure import machine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Small work, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(machine, "_COPY_BYTES", {"cpu": 2**20, "cuda": 2**20})
    monkeypatch.setattr(machine, "_MATMUL_SIZE", {"cpu": 64, "cuda": 64})
    return tmp_path


def test_the_machine_is_described() -> None:
    found = machine.describe()
    assert found.python == platform.python_version()
    assert found.versions["torch"] == torch.__version__ and "transformers" in found.versions
    assert found.cores >= 1 and found.memory_bytes > 10**8 and found.processor
    assert (found.accelerator is None) == (found.accelerator_bytes is None) or not torch.cuda.is_available()
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_free_memory_is_what_the_machine_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 0 < machine.free_memory_bytes() <= machine.memory_bytes()
    # What really is free changes with everything else that runs here, between two lines too.
    monkeypatch.setattr(machine, "_group_number", lambda name: None)
    for available in (3 * 10**9, 10**9):
        seen = types.SimpleNamespace(available=available, total=4 * 10**9)
        monkeypatch.setattr(machine.psutil, "virtual_memory", lambda seen=seen: seen)
        assert machine.resources().memory_bytes == machine.free_memory_bytes() == available


def test_rates_are_remembered_by_device_and_dtype(quick: Path) -> None:
    copied = machine.copy_bandwidth("cpu")
    wide, narrow = machine.matmul_rate("cpu"), machine.matmul_rate("cpu", torch.bfloat16)
    (file,) = (quick / "hayless").iterdir()
    assert sorted(json.loads(file.read_text()).values()) == sorted([copied, wide, narrow])
    assert min(copied, wide, narrow) > 0
    assert machine.copy_bandwidth("cpu") == copied and machine.matmul_rate("cpu") == wide


def test_fresh_measures_again(quick: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.copy_bandwidth("cpu")
    monkeypatch.setattr(machine, "_measure_copy", lambda device: 42.0)
    assert machine.copy_bandwidth("cpu") != 42.0
    assert machine.copy_bandwidth("cpu", fresh=True) == machine.copy_bandwidth("cpu") == 42.0


@pytest.mark.parametrize("content", ["", "{", "[1, 2]", '{"copy cpu": "fast"}', '{"copy cpu, 1 threads": -1}', "\x00"])
def test_a_broken_cache_is_measured_again(quick: Path, content: str) -> None:
    machine.copy_bandwidth("cpu")
    (file,) = (quick / "hayless").iterdir()
    file.write_text(content)
    assert machine.copy_bandwidth("cpu") > 0
    assert len(json.loads(file.read_text())) >= 1


def test_a_cache_that_cannot_be_written_is_left_alone(quick: Path) -> None:
    (quick / "hayless").write_text("a file where the folder should be")
    assert machine.copy_bandwidth("cpu") > 0
    assert (quick / "hayless").read_text() == "a file where the folder should be"


def test_relative_cache_folders_are_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "somewhere")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert machine._cache_file().parent == tmp_path / "home" / ".cache" / "hayless"


def test_what_cannot_be_timed_is_refused() -> None:
    with pytest.raises(NotSupported, match="meta"):
        machine.copy_bandwidth("meta")
    with pytest.raises(NotSupported, match="bool"):
        machine.matmul_rate("cpu", torch.bool)
    if not torch.cuda.is_available():
        with pytest.raises(NotSupported, match="CUDA"):
            machine.matmul_rate("cuda")


def test_this_device_has_the_measured_rates() -> None:
    found = machine.this_device("cpu")
    assert found.bytes_per_second == machine.copy_bandwidth("cpu")
    assert found.rate("float32") == machine.matmul_rate("cpu")
    assert found.source == "measured"


def test_limits_of_a_control_group_count(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"cpu.max": 1, "memory.max": 10**9, "memory.current": 4 * 10**8}
    monkeypatch.setattr(machine, "_group_number", limits.get)
    monkeypatch.setattr(machine, "_reclaimable", lambda: 10**8)
    assert machine.cores() == 1 and machine.memory_bytes() == 10**9
    plenty = types.SimpleNamespace(available=10**12, total=10**12)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: plenty)
    assert machine.resources().memory_bytes == machine.free_memory_bytes() == 7 * 10**8
