"""`hayless doctor`: what can this machine do."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import typer

from hayless.cli.output import Json, emit, err, out, table


def doctor(
    json: bool = Json,
    quick: bool = typer.Option(False, "--quick", help="Do not measure copy bandwidth and matrix products."),
) -> None:
    """Show what this machine can do: versions, devices, backends and why one is not usable, measured rates."""
    try:
        document = _examine(measure=not quick)
    except ImportError as error:
        document = _broken(error)
    if json:
        emit(document)
    else:
        _show(document)


def _examine(*, measure: bool) -> dict[str, Any]:
    import torch

    from hayless.measure import backends, machine

    found = machine.describe()
    free = machine.resources()
    folders = [Path.cwd(), Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")]
    problems = backends.problems(folders)
    return {
        "python": {"version": found.python, "implementation": platform.python_implementation()},
        "system": platform.platform(),
        "versions": found.versions,
        "torch_build": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
        "devices": [_cpu(found, free.memory_bytes), *_gpus(free.accelerator_bytes)],
        "threads": torch.get_num_threads(),
        "disk": [{"folder": str(path), "free_bytes": backends.free_disk_bytes(path)} for path in folders],
        "backends": [
            {"name": entry.name, "usable": entry.usable, "note": entry.reason} for entry in backends.backends()
        ],
        "extras": [
            {"name": extra.name, "purpose": extra.purpose, "installed": extra.installed, "packages": extra.packages}
            for extra in backends.extras()
        ],
        "rates": _rates() if measure else [],
        "problems": [{"problem": problem.what, "todo": problem.todo} for problem in problems],
    }


def _cpu(found: Any, free: int) -> dict[str, Any]:
    return {
        "device": "cpu",
        "name": found.processor,
        "cores": found.cores,
        "memory_bytes": found.memory_bytes,
        "free_bytes": free,
    }


def _gpus(free: dict[int, int]) -> list[dict[str, Any]]:
    import torch

    found = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        found.append(
            {
                "device": f"cuda:{number}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "free_bytes": free.get(number),
            }
        )
    return found


def _rates() -> list[dict[str, Any]]:
    """Measured now, not remembered: one pair of rates a kind of device."""
    import torch

    from hayless.core.errors import NotSupported
    from hayless.measure import machine

    rates = []
    for device in ("cpu", *(["cuda:0"] if torch.cuda.is_available() else [])):
        err.print(f"Measuring {device} ...", style="dim")
        rates.append({"device": device, "copy_bytes_per_second": machine.copy_bandwidth(device, fresh=True)})
        for dtype in (torch.float32, torch.bfloat16):
            try:
                rate = machine.matmul_rate(device, dtype, fresh=True)
            except NotSupported:
                continue
            rates[-1][f"matmul_{str(dtype).removeprefix('torch.')}_flops_per_second"] = rate
    return rates


def _broken(error: ImportError) -> dict[str, Any]:
    todo = "Install hayless again with pip; if torch itself does not import, install torch first, by itself."
    return {
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "system": platform.platform(),
        "problems": [{"problem": f"A package cannot be imported: {error}.", "todo": todo}],
    }


def _show(document: dict[str, Any]) -> None:
    from rich.markup import escape

    table(["", ""], _summary(document))
    if "backends" in document:
        rows = [(_yes(entry["usable"]), entry["name"], entry["note"]) for entry in document["backends"]]
        table(["usable", "backend", "note"], rows)
        rows = [(_yes(extra["installed"]), extra["name"], extra["purpose"]) for extra in document["extras"]]
        table(["installed", "extra", "for"], rows)
    for entry in document["problems"]:
        out.print(f"\n[bold]problem:[/bold] {escape(entry['problem'])}\n  {escape(entry['todo'])}", soft_wrap=True)
    if not document["problems"]:
        out.print("\nNo problems found.")


def _summary(document: dict[str, Any]) -> list[tuple[str, ...]]:
    from hayless.core.units import format_bytes

    python = document["python"]
    rows: list[tuple[str, ...]] = [("Python", f"{python['implementation']} {python['version']}")]
    rows.append(("system", document["system"]))
    for name, version in document.get("versions", {}).items():
        build = f" ({document['torch_build']} build)" if name == "torch" else ""
        rows.append((name, version + build))
    for device in document.get("devices", []):
        free = f", {format_bytes(device['free_bytes'])} free" if device["free_bytes"] is not None else ""
        cores = f", {device['cores']} cores" if "cores" in device else f", capability {device['capability']}"
        rows.append((device["device"], f"{device['name']}{cores}, {format_bytes(device['memory_bytes'])}{free}"))
    if "threads" in document:
        rows.append(("threads", f"{document['threads']} used by torch (OMP_NUM_THREADS changes it)"))
    for disk in document.get("disk", []):
        rows.append(("disk", f"{format_bytes(disk['free_bytes'])} free for {disk['folder']}"))
    for rate in document.get("rates", []):
        rows.append((rate["device"], f"copies {format_bytes(rate['copy_bytes_per_second'])}/s, read and written"))
        for name, value in rate.items():
            if name.startswith("matmul_"):
                dtype = name.removeprefix("matmul_").removesuffix("_flops_per_second")
                rows.append((rate["device"], f"multiplies {dtype} at {value / 1e12:.3g} TFLOP/s"))
    return rows


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"
