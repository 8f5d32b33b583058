"""`hayless doctor`: a report that never fails, and problems with what to do about them."""

from __future__ import annotations

import builtins
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from hayless.cli.doctor import doctor
from hayless.measure import backends, machine


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machine, "_BUDGET_SECONDS", 0.0)
    monkeypatch.setattr(machine, "_COPY_BYTES", {"cpu": 2**20, "cuda": 2**20})
    monkeypatch.setattr(machine, "_MATMUL_SIZE", {"cpu": 64, "cuda": 64})


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, list(arguments))


def test_json_is_one_document() -> None:
    found = run("--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    assert document["versions"]["torch"] == torch.__version__
    assert document["devices"][0]["device"] == "cpu" and document["devices"][0]["memory_bytes"] > 0
    rates = document["rates"][0]
    assert rates["copy_bytes_per_second"] > 0 and rates["matmul_float32_flops_per_second"] > 0
    names = {entry["name"]: entry for entry in document["backends"]}
    assert names["plain PyTorch"]["usable"]
    assert names["CUDA"]["usable"] == torch.cuda.is_available()
    assert all(entry["note"] for entry in document["backends"] if not entry["usable"])


def test_quick_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "copy_bandwidth", lambda *_, **__: pytest.fail("measured"))
    assert json.loads(run("--quick", "--json").stdout)["rates"] == []


def test_the_table_shows_what_the_document_says() -> None:
    shown = run("--quick")
    assert shown.exit_code == 0
    for words in ("plain PyTorch", "Triton interpreter", "MPS", "NVML", "energy", torch.__version__):
        assert words in shown.stdout


def test_a_missing_package_is_a_problem_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_torch(name: str, *rest: Any, **options: Any) -> Any:
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    found = run("--json")
    assert found.exit_code == 0 and "torch" in json.loads(found.stdout)["problems"][0]["problem"]
    assert "install torch" in run().stdout


def test_every_extra_of_the_package_is_explained() -> None:
    there = set(importlib.metadata.metadata("hayless").get_all("Provides-Extra") or [])
    assert set(backends.EXTRAS) == there - {"dev"}


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        ({"torch": "2.9.1+cpu"}, "older"),
        ({"transformers": "4.57.0"}, "not a version"),
        ({"transformers": "6.0.0"}, "not a version"),
        ({"transformers": None}, "not installed"),
    ],
)
def test_wrong_versions_are_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, versions: dict[str, str | None], words: str
) -> None:
    real = machine.version
    assert not backends._wrong_versions()
    monkeypatch.setattr(machine, "version", lambda name: versions[name] if name in versions else real(name))
    (problem,) = backends._wrong_versions()
    assert words in problem.what and problem.todo


def test_little_disk_and_memory_are_problems(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(backends, "free_disk_bytes", lambda folder: 10**9)
    monkeypatch.setattr(machine, "resources", lambda: machine.Resources(10**8, {}, 1))
    found = " ".join(problem.what for problem in backends.problems([tmp_path]))
    assert "1.00 GB of free disk" in found and "100 MB of memory" in found


def test_a_gpu_that_torch_cannot_use_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(backends.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert "without CUDA" in backends._unused_gpu()[0].what
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "CUDA_VISIBLE_DEVICES" in backends._unused_gpu()[0].todo


def test_disk_of_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    assert backends.free_disk_bytes(tmp_path / "not" / "there") == backends.free_disk_bytes(tmp_path)
