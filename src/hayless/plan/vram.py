"""Memory of mixed-precision Adam by part: 2 + 2 + 4 + 4 + 4 bytes a parameter (ZeRO, arXiv:1910.02054, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping

from hayless.core.units import format_count
from hayless.plan.table import Table, beside, significant

PARTS: Mapping[str, int] = {
    "weights": 2,
    "gradients": 2,
    "master weights": 4,
    "first moment": 4,
    "second moment": 4,
}
"""What is kept → bytes a parameter."""

SOURCE = "The lecture (HuatuoGPT-7B), and ZeRO (arXiv:1910.02054), section 3.1 (GPT-2)"

PUBLISHED: Mapping[str, tuple[int, Mapping[str, str]]] = {
    "HuatuoGPT-7B": (
        7_000_000_000,
        {
            "weights": "14",
            "gradients": "14",
            "master weights": "28",
            "first moment": "28",
            "second moment": "28",
        },
    ),
    "GPT-2": (1_500_000_000, {"all": "24"}),
}
"""Model → parameters as the source counts them, and printed GB by part."""


def part_bytes(parameters: int) -> dict[str, int]:
    """Bytes of each part, and of all."""
    found = {part: parameters * each for part, each in PARTS.items()}
    return {**found, "all": sum(found.values())}


def table(models: Mapping[str, int]) -> Table:
    """GB by part of each named model (name → parameters), beside what is printed."""
    cells, records = [], []
    for name, parameters in models.items():
        counted, printed = PUBLISHED.get(name, (0, {}))
        published = printed if counted == parameters else {}
        row = []
        for part, size in part_bytes(parameters).items():
            ours = significant(size / 1e9)
            row.append(beside(ours, size / 1e9, published[part]) if part in published else ours)
            records.append(
                {
                    "model": name,
                    "parameters": parameters,
                    "part": part,
                    "gb": size / 1e9,
                    "printed_gb": float(published[part]) if part in published else None,
                }
            )
        cells.append((name, format_count(parameters), *row))
    return Table(
        "Mixed-precision Adam: GB (10⁹ bytes) by part, activations not counted",
        ("model", "parameters", *(f"{part} ({each} B)" for part, each in PARTS.items()), "all (16 B)"),
        tuple(cells),
        tuple(records),
        (),
        SOURCE if any(name in PUBLISHED for name in models) else "",
    )
