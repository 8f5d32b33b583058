"""ZeRO: model states a rank holds and what it sends (Rajbhandari et al., 2020, arXiv:1910.02054).

Mixed-precision Adam keeps 16 bytes a parameter: 2 of weights, 2 of gradients, 12 of optimizer states (a float32 copy
and two moments). Stage 1 shares out the states, stage 2 the gradients too, stage 3 the weights as well. GB: 10⁹ bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from hayless.core.devices import Device, find
from hayless.core.units import format_bytes, format_count
from hayless.plan.table import Table, beside, significant, whole

STAGES = (1, 2, 3)

SOURCE = "ZeRO (arXiv:1910.02054), table 1 (GB a rank), section 7 (traffic)"

PUBLISHED: Mapping[int, Mapping[int, tuple[str, str, str]]] = {
    7_500_000_000: {
        1: ("120", "120", "120"),
        4: ("52.5", "41.3", "30"),
        16: ("35.6", "21.6", "7.5"),
        64: ("31.4", "16.6", "1.88"),
        256: ("30.4", "15.4", "0.47"),
        1024: ("30.1", "15.1", "0.12"),
    },
    128_000_000_000: {
        1: ("2048", "2048", "2048"),
        4: ("896", "704", "512"),
        16: ("608", "368", "128"),
        64: ("536", "284", "32"),
        256: ("518", "263", "8"),
        1024: ("513", "257", "2"),
    },
    1_000_000_000_000: {
        1: ("16000", "16000", "16000"),
        4: ("7000", "5500", "4000"),
        16: ("4750", "2875", "1000"),
        64: ("4187", "2218", "250"),
        256: ("4046", "2054", "62.5"),
        1024: ("4011", "2013", "15.6"),
    },
}
"""Parameters → ranks → the cells of stages 1, 2 and 3 as they are printed."""

PUBLISHED_TRAFFIC: Mapping[int, str] = {0: "1", 1: "1", 2: "1", 3: "1.5"}
"""Stage (0: plain data parallelism) → traffic, in units of plain data parallelism's."""

CLAIMS = ((7_500_000_000, 4, "V100"), (128_000_000_000, 64, "V100"))
"""Parameters, ranks and device of the lecture's claims: that stage 3 trains them there."""


def state_bytes(parameters: int, ranks: int, stage: int) -> Fraction:
    """Bytes of weights, gradients and optimizer states a rank holds at `stage` (0: plain data parallelism)."""
    shared = {0: 0, 1: 12, 2: 14, 3: 16}[stage]
    return parameters * (16 - shared + Fraction(shared, whole("ranks", ranks)))


def sent_elements(parameters: int, ranks: int, stage: int) -> Fraction:
    """Elements a rank sends a step: a reduce-scatter and a gather each send Ψ(N−1)/N; stage 3 gathers weights twice."""
    return parameters * (3 if stage == 3 else 2) * Fraction(whole("ranks", ranks) - 1, ranks)


def table(models: Mapping[str, int], ranks: Sequence[int]) -> Table:
    """States a rank of each named model (name → parameters) for each number of ranks, beside what is printed."""
    cells, records = [], []
    for name, parameters in models.items():
        for count in ranks:
            values = [state_bytes(parameters, count, stage) for stage in STAGES]
            printed = PUBLISHED.get(parameters, {}).get(count)
            shown = [significant(float(value) / 1e9, 7) for value in values]
            if printed:
                shown = [beside(*of) for of in zip(shown, (value / 10**9 for value in values), printed, strict=True)]
            cells.append((name, f"{count:,}", significant(16 * parameters / 1e9, 7), *shown))
            records.append(
                {
                    "model": name,
                    "parameters": parameters,
                    "ranks": count,
                    "plain_gb": 16 * parameters / 1e9,
                    **{f"stage_{stage}_gb": float(value) / 1e9 for stage, value in zip(STAGES, values, strict=True)},
                    "printed_gb": list(printed) if printed else None,
                }
            )
    return Table(
        "ZeRO: GB of weights, gradients and optimizer states a rank holds (mixed-precision Adam)",
        ("model", "ranks", "plain", "stage 1", "stage 2", "stage 3"),
        tuple(cells),
        tuple(records),
        ("Activations, buffers and what the allocator keeps come on top.",),
        SOURCE if any(parameters in PUBLISHED for parameters in models.values()) else "",
    )


def traffic(parameters: int, ranks: int) -> Table:
    """What a rank sends a step at each stage, in 16-bit bytes and in units of plain data parallelism's."""
    cells, records = [], []
    for stage, printed in PUBLISHED_TRAFFIC.items():
        sent = sent_elements(parameters, ranks, stage)
        ratio = Fraction(3 if stage == 3 else 2, 2)
        name = f"stage {stage}" if stage else "plain"
        volume = f"{3 if stage == 3 else 2}Ψ·(N−1)/N"
        cells.append((name, volume, format_bytes(float(2 * sent)), beside(f"{float(ratio):g}", ratio, printed)))
        records.append(
            {
                "stage": stage,
                "sent_elements": float(sent),
                "sent_bytes": float(2 * sent),
                "times_plain": float(ratio),
                "printed_times_plain": float(printed),
            }
        )
    title = f"Sent by a rank in a step, {format_count(parameters)} parameters in 16 bits on {ranks:,} ranks"
    return Table(title, ("", "elements", "bytes", "times plain"), tuple(cells), tuple(records), (), SOURCE)


def claims() -> tuple[str, ...]:
    """The lecture's claims in words, checked."""
    return tuple(claim(parameters, ranks, find(device)) for parameters, ranks, device in CLAIMS)


def claim(parameters: int, ranks: int, device: Device) -> str:
    """Whether stage 3 on `ranks` of `device` holds the states of a model, and what is left for all else."""
    needs = state_bytes(parameters, ranks, 3)
    left = float(device.memory_bytes - needs)
    what = f"{format_count(parameters)} on {ranks:,} × {device.name} ({format_bytes(device.memory_bytes)})"
    states = f"stage 3 needs {format_bytes(float(needs))} a rank"
    if left > 0:
        return f"{what}: {states}; {format_bytes(left)} are left for activations, buffers and the CUDA context."
    if left == 0:
        return f"{what}: {states}: all there is; nothing is left for activations, so it cannot train."
    return f"{what}: {states}: {format_bytes(-left)} more than there is."
