"""A fresh process that says what machine and device it is on, for whoever plans without torch."""

from __future__ import annotations

from typing import Any

from hayless.measure import machine
from hayless.measure.process import answer
from hayless.model.build import checked_device


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    """`machine`, `device` with its measured rates, and the bytes of memory that are free there."""
    device = checked_device(request["device"])
    free = machine.resources()
    found = machine.this_device(device)
    return {
        "machine": machine.describe().model_dump(mode="json"),
        "device": {
            "name": found.name,
            "memory_bytes": found.memory_bytes,
            "bytes_per_second": found.bytes_per_second,
            "flops_per_second": dict(found.flops_per_second),
        },
        "free_bytes": free.accelerator_bytes[device.index or 0] if device.type == "cuda" else free.memory_bytes,
    }


if __name__ == "__main__":
    answer(_probe)
